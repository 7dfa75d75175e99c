"""Data quality: label errors, near-duplicates, outliers, scenes, and images to label next."""
