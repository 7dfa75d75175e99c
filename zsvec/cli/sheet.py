"""A contact sheet: small copies of images with their captions, as one web page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path

from zsvec.cli.output import counted, print_note
from zsvec.cli.process import harmless
from zsvec.errors import InvalidInputError, without_password
from zsvec.inputs.encoded import recognised
from zsvec.inputs.files import replacing_named
from zsvec.types import SmallImage, StoredReference

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 14px sans-serif; margin: 2em; }}
main {{ display: flex; flex-wrap: wrap; gap: 1em; }}
figure {{ margin: 0; width: 256px; }}
img, .none {{ width: 256px; height: 192px; object-fit: contain; background: #eee; display: block; }}
figcaption {{ overflow-wrap: anywhere; color: #555; }}
</style></head><body><h1>{title}</h1>
"""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image with its captions.

    Attributes:
        hash: Content hash of the image.
        captions: Up to three lines.
    """

    hash: str
    captions: Sequence[str]


def pictures_of(references: Sequence[StoredReference]) -> list[Picture]:
    """The images among references, each with its hash, its source, and when it was added by whom."""
    return [
        Picture(one.hash, [one.hash[:12], one.source, " ".join(filter(None, (day_of(one.added), one.by)))])
        for one in references
        if one.modality == "image"
    ]


def day_of(added: datetime | None) -> str:
    """A day, as captions have it; empty for none."""
    return f"{added:%Y-%m-%d}" if added else ""


def check_sheet(file: Path) -> None:
    """Raise InvalidInputError for a file that does not end in ``.html``."""
    if file.suffix != ".html":
        raise InvalidInputError(f"--sheet must be a file that ends in .html. Got {str(file)!r} instead")


def write_sheet(
    file: Path,
    title: str,
    pictures: Sequence[Picture],
    find: Callable[[str], SmallImage | None],
    texts: Sequence[str] = (),
) -> None:
    """Write the contact sheet of some images, and note where it is and what it lacks.

    Args:
        file: Replaced, where it is a file or a link.
        title: Of the page.
        pictures: The images.
        find: Gives the small copy of an image by its hash.
        texts: Shown above the images.

    Raises:
        OSError: The file cannot be written.
    """
    missing: list[Picture] = []

    def found() -> Iterator[tuple[Picture, SmallImage | None]]:
        for picture in pictures:
            small = find(picture.hash)
            if small is None:
                missing.append(picture)
            yield picture, small

    with replacing_named(file) as opened:
        opened.writelines(part.encode() for part in _page(title, texts, found()))
    lacking = f"; of {counted(len(missing), 'image')} the store has no copy" if missing else ""
    print_note(f"the contact sheet is {file}{lacking}")


def _page(title: str, texts: Sequence[str], found: Iterator[tuple[Picture, SmallImage | None]]) -> Iterator[str]:
    yield _PAGE.format(title=_escaped(title))
    yield "<ul>\n" + "".join(f"<li>{_escaped(text)}</li>\n" for text in texts) + "</ul>\n<main>\n"
    for picture, small in found:
        caption = "<br>".join(map(escape, _captions(picture)))
        yield f"<figure>{_shown(small)}<figcaption>{caption}</figcaption></figure>\n"
    yield "</main></body></html>\n"


def _shown(small: SmallImage | None) -> str:
    if small is None:
        return '<div class="none"></div>'
    kind = recognised(small.content[:16]).lower()
    return f'<img alt="" src="data:image/{kind};base64,{b64encode(small.content).decode()}">'


def _captions(picture: Picture) -> list[str]:
    """The captions of an image, without control characters."""
    return [harmless(without_password(line)) for line in picture.captions if line]


def _escaped(text: str) -> str:
    return escape(harmless(without_password(text)))
