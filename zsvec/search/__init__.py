"""Search: compares images with the references of each expert, in indexes that are kept up to date with the catalog."""
