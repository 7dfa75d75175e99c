"""The collections: references of each encoder, small copies of images, and images that wait for a label."""
