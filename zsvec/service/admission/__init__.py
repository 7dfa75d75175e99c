"""Admission control: bounds on connections, bodies, responses and work."""
