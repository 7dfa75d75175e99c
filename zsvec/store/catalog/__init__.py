"""The catalog: one record per category, replaced by compare-and-set, and incremental reads."""
