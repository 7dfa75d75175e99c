"""Archives: a whole store in one zip file, to keep, to send, and to read without zsvec.

The format is described in ``zsvec/docs/archive.md``.
"""
