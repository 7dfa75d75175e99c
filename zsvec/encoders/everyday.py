"""Words for everyday things: an image of a category is nearer to the texts of the category than to these words."""

from __future__ import annotations

EVERYDAY = (
    *("person", "dog", "cat", "bird", "fish", "insect", "reptile", "horse", "tree", "flower"),
    *("fruit", "vegetable", "meal", "bottle", "chair", "bed", "lamp", "book", "computer", "camera"),
    *("car", "bicycle", "train", "boat", "aeroplane", "building", "bridge", "road", "mountain", "beach"),
    *("sky", "forest", "shirt", "shoe", "hat", "bag", "tool", "ball", "musical instrument", "machine"),
)
"""Broad words for what photos show."""
