"""Stores on a Qdrant server or cluster."""
