"""Backends of a store behind one protocol: memory, a folder with the embedded engine, or a Qdrant server."""
