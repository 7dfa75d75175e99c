"""A contact sheet: the small copies of a category's images with what is known of them, as one PNG or one web page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from zsvec.cli.output import shortened
from zsvec.cli.process import harmless
from zsvec.errors import InvalidInputError, without_password
from zsvec.inputs.decoding import recognised
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


def write_sheet(
    file: Path, title: str, references: Sequence[StoredReference], find: Callable[[str], SmallImage | None]
) -> int:
    """Write the contact sheet of some references.

    Args:
        file: Ends in ``.png``, or is a page.
        title: Of the page.
        references: Of these, texts are shown on a page alone.
        find: Gives the small copy of an image by its hash.

    Returns:
        How many images have no copy that can be read.

    Raises:
        InvalidInputError: There are more images than a PNG has room for.
        OSError: The file cannot be written.
    """
    images = [reference for reference in references if reference.modality == "image"]
    found = ((reference, find(reference.hash)) for reference in images)
    missing: list[StoredReference] = []

    def counted() -> Iterator[tuple[StoredReference, SmallImage | None]]:
        for reference, small in found:
            if small is None:
                missing.append(reference)
            yield reference, small

    if file.suffix == ".png":
        _picture(counted(), len(images)).save(file, "PNG")
    else:
        with file.open("w", encoding="utf-8") as opened:
            opened.writelines(_page(title, [r for r in references if r.modality == "text"], counted()))
    return len(missing)


def _picture(found: Iterator[tuple[StoredReference, SmallImage | None]], number: int) -> Image.Image:
    if number > _MOST:
        raise InvalidInputError(f"a PNG has room for {_MOST} pictures, and there are {number}: give a file .html")
    columns = max(1, min(_COLUMNS, number))
    width, height = _TILE + _MARGIN, _TILE + _CAPTION + _MARGIN
    sheet = Image.new("RGB", (columns * width + _MARGIN, -(-number // columns) * height + _MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (reference, small) in enumerate(found):
        left, top = i % columns * width + _MARGIN, i // columns * height + _MARGIN
        if small is None:
            draw.rectangle((left, top, left + _TILE - 1, top + _TILE - 1), fill="#eee")
        else:
            picture = open_small(small.content)
            picture.thumbnail((_TILE, _TILE))
            sheet.paste(picture, (left + (_TILE - picture.width) // 2, top + (_TILE - picture.height) // 2))
        for line, text in enumerate(_captions(reference)):
            draw.text((left, top + _TILE + 2 + 12 * line), shortened(text, 24), fill="#555", font=font)
    return sheet


def _page(
    title: str, texts: Sequence[StoredReference], found: Iterator[tuple[StoredReference, SmallImage | None]]
) -> Iterator[str]:
    yield _PAGE.format(title=_escaped(title))
    yield "<ul>\n" + "".join(f"<li>{_escaped(text.source)}</li>\n" for text in texts) + "</ul>\n<main>\n"
    for reference, small in found:
        caption = "<br>".join(map(escape, _captions(reference)))
        yield f"<figure>{_shown(small)}<figcaption>{caption}</figcaption></figure>\n"
    yield "</main></body></html>\n"


def _shown(small: SmallImage | None) -> str:
    if small is None:
        return '<div class="none"></div>'
    kind = recognised(small.content[:16]).lower()
    return f'<img alt="" src="data:image/{kind};base64,{b64encode(small.content).decode()}">'


def _captions(reference: StoredReference) -> list[str]:
    """What is known of an image, in up to three lines without control characters."""
    added = f"{reference.added:%Y-%m-%d}" if reference.added else ""
    lines = (reference.hash[:12], reference.source, " ".join(filter(None, (added, reference.by))))
    return [harmless(without_password(line)) for line in lines if line]


def _escaped(text: str) -> str:
    return escape(harmless(without_password(text)))
