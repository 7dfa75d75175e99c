"""Bounded, ordered stages in threads, and their shared state."""
