"""Search: the references of each expert, ready to be compared, in step with the catalog."""
