"""Fixtures of all tests of the command line."""

from __future__ import annotations

from tests.cli.support import cli, colours, filled, hash_encoders, imported, new, stocked
from tests.support import isolated

__all__ = ["cli", "colours", "filled", "hash_encoders", "imported", "isolated", "new", "stocked"]
