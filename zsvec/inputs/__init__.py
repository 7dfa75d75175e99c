"""The way in: whatever a caller gives, checked where it enters.

`images` reads and decodes an image, `categories` checks what a category is made of, `folders` finds images and
categories on disk, `tables` and `coco` find them in files, frames and data sets, `watch` gives the images that appear
in a folder, and `video` the frames of a video or camera.
"""
