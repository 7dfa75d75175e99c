"""Reads and checks inputs: images, category definitions, folders, tables, videos and HTTP responses.

`images` reads and decodes images. `categories` checks the parts of a category. `folders` finds images and categories on
disk. `tables` and `coco` read labels from files, data frames and data sets. `watch` yields the new images of a folder.
`video` yields the frames of a video or camera.
"""
