"""A contact sheet: small copies of images with what is known of them, as one PNG or one web page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from zsvec.cli.output import shortened
from zsvec.cli.process import harmless
from zsvec.errors import InvalidInputError, without_password
from zsvec.inputs.decoding import recognised
from zsvec.inputs.files import replacing_named
from zsvec.inputs.small import open_small
from zsvec.store import SmallImage
from zsvec.types import StoredReference

_TILE = 160  # pixels of a picture's place in a PNG
_CAPTION = 40
_MARGIN = 8
_COLUMNS = 8
_MOST = 600  # pictures of a PNG

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
    """An image with what is known of it.

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
    """Refuse a file that is neither a picture nor a page.

    Raises:
        InvalidInputError: It is so.
    """
    if file.suffix not in (".png", ".html"):
        raise InvalidInputError(f"--sheet takes a file that ends in .png or .html. Got {str(file)!r}")


def write_sheet(
    file: Path,
    title: str,
    pictures: Sequence[Picture],
    find: Callable[[str], SmallImage | None],
    texts: Sequence[str] = (),
) -> int:
    """Write the contact sheet of some images.

    Args:
        file: Ends in ``.png``, or is a page; a file or a link of that name is replaced.
        title: Of the page.
        pictures: The images.
        find: Gives the small copy of an image by its hash.
        texts: Shown above the images, on a page alone.

    Returns:
        How many images have no copy that can be read.

    Raises:
        InvalidInputError: There are more images than a PNG has room for.
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
        if file.suffix == ".png":
            _sheet(found(), len(pictures)).save(opened, "PNG")
        else:
            opened.writelines(part.encode() for part in _page(title, texts, found()))
    return len(missing)


def _sheet(found: Iterator[tuple[Picture, SmallImage | None]], number: int) -> Image.Image:
    if number > _MOST:
        raise InvalidInputError(f"a PNG has room for {_MOST} pictures, and there are {number}: give a file .html")
    columns = max(1, min(_COLUMNS, number))
    width, height = _TILE + _MARGIN, _TILE + _CAPTION + _MARGIN
    sheet = Image.new("RGB", (columns * width + _MARGIN, -(-number // columns) * height + _MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (picture, small) in enumerate(found):
        left, top = i % columns * width + _MARGIN, i // columns * height + _MARGIN
        if small is None:
            draw.rectangle((left, top, left + _TILE - 1, top + _TILE - 1), fill="#eee")
        else:
            opened = open_small(small.content)
            opened.thumbnail((_TILE, _TILE))
            sheet.paste(opened, (left + (_TILE - opened.width) // 2, top + (_TILE - opened.height) // 2))
        for line, text in enumerate(_captions(picture)):
            draw.text((left, top + _TILE + 2 + 12 * line), shortened(text, 24), fill="#555", font=font)
    return sheet


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
    """What is known of an image, without control characters."""
    return [harmless(without_password(line)) for line in picture.captions if line]


def _escaped(text: str) -> str:
    return escape(harmless(without_password(text)))
