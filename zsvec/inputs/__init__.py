"""The way in: images, categories, folders and sources, checked where they enter."""
