"""A store in a folder: Qdrant Edge, one folder per collection, replaced whole and checked when it is opened."""
