"""Stores on a Qdrant server."""
