"""Pictures in a terminal that shows colours: two pixels a character, the upper half of a block above the lower one."""

from __future__ import annotations

from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from zsvec.errors import ImageError
from zsvec.inputs.small import open_small
from zsvec.types import SmallImage

_COLUMNS, _ROWS = 24, 24  # pixels; a character is twice as high as wide


def shows_pictures(console: Console) -> bool:
    """Whether a console has the colours for a picture."""
    return console.color_system in ("truecolor", "256", "windows")


def thumbnail(small: SmallImage | None) -> Text:
    """A small copy as characters; of none, or one that cannot be read, a dash."""
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
