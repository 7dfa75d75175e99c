"""Embedded stores in a folder, on Qdrant Edge. Each collection has a sub-folder, which is checked when opened."""
