"""Inputs, checked where they enter: images, category definitions, folders, tables, videos, HTTP answers.

`images` reads and decodes images, `categories` checks the parts of a category, `folders` finds images and categories on
disk, `tables` and `coco` read labels from files, frames and data sets, `watch` yields new images of a folder, `video`
the frames of a video or camera.
"""
