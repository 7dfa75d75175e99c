"""Bounded, ordered stages of a stream that run in threads, and the state that the stages share."""
