"""The catalog: one record per category, replaced by compare-and-set, and how readers keep in step with it."""
