"""Keeps the references of a store right: label errors, duplicates, the inbox, undo. Independent of the classifier."""
