"""What is wrong or missing among images: wrong labels, near-duplicates, images to label next."""
