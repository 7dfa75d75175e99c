"""Shows small copies of images: as characters in a terminal, or in a contact sheet, which is one HTML page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from zsvec.cli.output import counted, print_note
from zsvec.errors import ImageError, InvalidInputError, harmless, without_password
from zsvec.inputs.encoded import recognised
from zsvec.inputs.files import replacing_named
from zsvec.inputs.small import open_small
from zsvec.types import SmallImage, StoredReference

_COLUMNS, _ROWS = 24, 24  # largest thumbnail in pixels; a character shows two pixels, one above the other
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


def shows_pictures(console: Console) -> bool:
    """Returns whether a console has enough colours for pictures."""
    return console.color_system in ("truecolor", "256", "windows")


def thumbnail(small: SmallImage | None) -> Text:
    """Returns a small copy drawn in characters, or a dash if the copy is missing or unreadable."""
    try:
        picture = open_small(small.content).convert("RGB") if small else None
    except ImageError:
        picture = None
    if picture is None:
        return Text("–")
    picture.thumbnail((_COLUMNS, _ROWS))
    width, height = picture.size
    pixels = [Color.from_rgb(*picture.getpixel((x, y))) for y in range(height) for x in range(width)]  # type: ignore[misc]
    lines = []
    for y in range(0, height, 2):
        line = Text()
        for x in range(width):
            lower = pixels[(y + 1) * width + x] if y + 1 < height else None
            line.append("▀", Style(color=pixels[y * width + x], bgcolor=lower))
        lines.append(line)
    return Text("\n").join(lines)


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of a contact sheet: its content hash and the lines of its caption."""

    hash: str
    captions: Sequence[str]


def pictures_of(references: Sequence[StoredReference]) -> list[Picture]:
    """Returns the images among references. A caption has hash, source, date and author."""
    return [
        Picture(one.hash, [one.hash[:12], one.source, f"{one.added:%Y-%m-%d}" if one.added else "", one.by or ""])
        for one in references
        if one.modality == "image"
    ]


def check_sheet(file: Path) -> None:
    """Raises InvalidInputError for a file that does not end in ``.html``."""
    if file.suffix != ".html":
        raise InvalidInputError(f"--sheet must be a file that ends in .html. Got {str(file)!r} instead")
    if not file.parent.is_dir():
        raise InvalidInputError(f"{file} cannot be written: there is no folder {file.parent}; make it first")


def write_sheet(
    file: Path,
    title: str,
    pictures: Sequence[Picture],
    find: Callable[[str], SmallImage | None],
    texts: Sequence[str] = (),
) -> None:
    """Writes a contact sheet. Prints a note with the path and the number of images without a small copy.

    Args:
        file: Path of the page, which is replaced atomically.
        title: Heading of the page.
        pictures: Images in the order of the page.
        find: Returns the small copy of an image by content hash.
        texts: Definition texts, shown above the images.

    Raises:
        OSError: The file cannot be written.
    """
    missing = 0
    with replacing_named(file) as opened:
        items = "".join(f"<li>{_escaped(text)}</li>\n" for text in texts)
        opened.write(f"{_PAGE.format(title=_escaped(title))}<ul>\n{items}</ul>\n<main>\n".encode())
        for picture in pictures:
            small = find(picture.hash)
            missing += small is None
            caption = "<br>".join(_escaped(line) for line in picture.captions if line)
            opened.write(f"<figure>{_shown(small)}<figcaption>{caption}</figcaption></figure>\n".encode())
        opened.write(b"</main></body></html>\n")
    lacking = f"; of {counted(missing, 'image')} the store has no copy" if missing else ""
    print_note(f"the contact sheet is {file}{lacking}")


def _shown(small: SmallImage | None) -> str:
    if small is None:
        return '<div class="none"></div>'
    kind = recognised(small.content[:16]).lower()
    return f'<img alt="" src="data:image/{kind};base64,{b64encode(small.content).decode()}">'


def _escaped(text: str) -> str:
    return escape(harmless(without_password(text)))
