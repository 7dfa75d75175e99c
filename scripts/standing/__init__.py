"""Divides sets of images into references and photos, and measures how well the references classify the photos."""
