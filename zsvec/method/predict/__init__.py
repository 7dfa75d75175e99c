"""From the similarities of a search to predictions."""
