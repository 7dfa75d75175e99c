"""The write path: arguments are checked, embedded and written; then the store is calibrated again."""
