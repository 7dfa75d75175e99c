"""The way into a store: what a caller gives is checked, embedded and written; then the store is calibrated again."""
