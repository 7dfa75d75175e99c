"""Names, sizes and checksums of the entries of an archive.

A category is in a folder of the zip, and in *parts*, which are small enough to be read as a whole. A part is a pair of
entries: a table of JSON lines, and a safetensors file. The list of categories has the checksums of all parts, and the
manifest has the checksum of this list. So a part is verified before it is parsed.
"""

from __future__ import annotations

import re
from hashlib import sha256

FORMAT = "zsvec archive"
VERSION = 1

MANIFEST = "manifest.json"
CATEGORIES = "categories.jsonl"
CALIBRATION = "calibration.json"
INBOX = "inbox"
IMAGES = "images"
"""Name of the parts with small copies of images. No encoder may have this name."""
WAITING = "waiting"
"""Name of the parts of the inbox."""

ENTRY = re.compile(
    rf"{MANIFEST}|{CATEGORIES}|{CALIBRATION}"
    rf"|(categories/[0-9a-z-]+|{INBOX})/[A-Za-z0-9][A-Za-z0-9_.-]*\.(jsonl|safetensors)"
)
"""The names that an entry may have. None leads out of the folder in which another program unpacks the zip."""

FOLDER = re.compile(r"categories/[0-9]{6,12}(-[0-9a-z-]{1,40})?")
"""The folders that a category may have."""

PART_BYTES = 8 * 2**20
"""Size at which a part ends: bytes of vectors and images, or of the table."""
LARGEST_PART = 2 * PART_BYTES
"""Maximum bytes of one entry of a part: a table may end with a line of `LONGEST_SOURCE` characters."""
MOST_IN_TABLE = PART_BYTES // 10
"""Maximum lines, objects, lists and commas in a table, without those in texts: a line has at most 10 in 100 bytes."""
LARGEST_RECORD = 16 * 2**20
"""Maximum bytes of the manifest, of the calibration, and of one line of the categories."""
LARGEST_LIST = 128 * 2**20
"""Maximum bytes of the list of categories."""
MOST_CATEGORIES = 50_000
"""Maximum number of categories, including removed categories of which the marks are left."""
MOST_MARKS = 1_000_000
"""Maximum number of marks of all categories together. A mark takes about 73 bytes of memory."""
LARGEST_DIRECTORY = 48 * 2**20
"""Maximum bytes of the directory of the zip, which Python reads as a whole."""

_SLUG = re.compile("[^a-z0-9]+")
_LONGEST_SLUG = 40


def folder_of(number: int, name: str) -> str:
    """Returns the folder of a category, which only the number makes unique: the name is for readers."""
    return f"categories/{number:06}-{_SLUG.sub('-', name.lower())[:_LONGEST_SLUG].strip('-')}".rstrip("-")


def part_of(kind: str, number: int) -> str:
    """Returns the name of a part, without folder and ending.

    Args:
        kind: Name of an encoder, `IMAGES` or `WAITING`.
        number: Number of the part, from 1 on.
    """
    return f"{kind}-{number:06}"


def checksum(content: bytes) -> str:
    """Returns the checksum of an entry: SHA-256, in hexadecimal digits."""
    return sha256(content).hexdigest()
