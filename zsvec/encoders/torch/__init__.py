"""Encoders on torch: models of sentence-transformers and timm, and their export."""
