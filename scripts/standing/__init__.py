"""What `scripts/conditions.py` is made of: sets of images, the conditions, what is measured."""
