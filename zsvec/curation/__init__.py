"""Curation of the references: label errors, duplicates, the inbox and undo. Independent of the classifier."""
