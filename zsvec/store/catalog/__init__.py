"""The catalog: the records of a store, committed by compare-and-set and read incrementally."""
