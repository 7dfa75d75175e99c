"""Encoders on onnxruntime: graphs that zsvec has exported, and your own graphs."""
