"""A store in a folder: Qdrant Edge, one folder per collection, replaced atomically and checked on opening."""
