"""The collections: references by encoder, small copies of images, and images that wait for a label."""
