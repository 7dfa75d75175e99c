"""Divisions of sets of images into references and photos, and how well the photos are classified by the references."""
