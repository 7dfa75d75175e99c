"""The commands of `scripts/bench.py`."""
