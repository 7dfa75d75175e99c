"""Admission control: limits of connections, bodies, responses and queued work."""
