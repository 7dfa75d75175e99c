"""Attached collections: points of other collections in the deployment as references of a store."""
