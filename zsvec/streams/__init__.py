"""Stages that run in threads, bounded and in order, and what they tell of themselves."""
