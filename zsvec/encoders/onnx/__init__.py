"""Encoders on onnxruntime: graphs that zsvec exported, or that people exported themselves."""
