"""Self-contained HTML pages, without scripts, of an evaluation and of an audit."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from zsvec.curation.audit import Audit
from zsvec.errors import InvalidInputError
from zsvec.evaluation.tables import shown
from zsvec.inputs.files import replacing_named


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure of a page.

    Attributes:
        id: Anchor on the page, and name of the file without suffix.
        title: Heading.
        caption: Text below the figure.
        png: Content of the PNG file, which must state a resolution in dots per inch.
    """

    id: str
    title: str
    caption: str
    png: bytes

    @property
    def width(self) -> int:
        """Width in CSS pixels, at the resolution of the PNG."""
        with Image.open(io.BytesIO(self.png)) as image:
            return round(image.width * 96 / float(image.info["dpi"][0]))


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrongly answered image, with the nearest reference image.

    Attributes:
        image: The image, a small JPEG; ``None`` if the file cannot be read.
        truth: Category of the image.
        answer: The answered category.
        probability: Probability of the answer, 0 to 1.
        nearest: The nearest reference image, a small JPEG; ``None`` without a readable reference image.
        nearest_category: Category of the reference.
    """

    image: bytes | None
    truth: str
    answer: str
    probability: float
    nearest: bytes | None
    nearest_category: str


def report_page(results: Mapping[str, Any], figures: Sequence[Drawing], mistakes: Sequence[Mistake] = ()) -> str:
    """Returns the page of an evaluation, as HTML.

    Args:
        results: Mapping with the keys ``set``, ``profile``, ``created``, ``images``, ``unknown_images``,
            ``categories``, ``references`` (number by expert), ``versions`` (a mapping), ``summary`` (a list of
            sentences) and ``tables`` (in the form of `zsvec.evaluation.tables`). The key ``format``, the format version
            of `results.json`, is optional.
        figures: Figures to show after the tables.
        mistakes: Mistakes to show after the figures.
    """
    return _rendered(
        "report.html.jinja",
        results=results,
        figures=list(figures),
        mistakes=mistakes,
        shown=shown,
        best=_best,
        interval=_interval,
    )


def write_audit(
    path: Path, found: Audit, location: str, picture: Callable[[str], bytes | None] = lambda _: None
) -> None:
    """Writes an audit as an HTML page.

    Args:
        path: Path of the page. An existing file or link is replaced.
        found: The audit.
        location: Location of the store.
        picture: Takes the hash of a reference image, and returns a small WebP or JPEG. If ``None`` is returned, the
            page shows only the source of the image.

    Raises:
        InvalidInputError: The page cannot be written.
    """

    def shown_picture(digest: str) -> str | None:
        content = picture(digest)
        return None if content is None else _data_url("webp" if content.startswith(b"RIFF") else "jpeg", content)

    page = _rendered("audit.html.jinja", audit=found, location=location, picture=shown_picture)
    try:
        with replacing_named(path) as file:
            file.write(page.encode(errors="backslashreplace"))  # file names need not be Unicode
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        raise InvalidInputError(f"the page {str(path)!r} cannot be written: {exc}; name another file") from exc


def _rendered(template: str, **values: Any) -> str:
    """Renders a template of this folder. Everything is escaped, because names of categories and files are untrusted."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values, data_url=_data_url)


def _data_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode('ascii')}"


def _best(table: Mapping[str, Any], column: Mapping[str, Any]) -> str | None:
    """Returns the best value of a column as text. Values that are shown as the same text are equally good."""
    values = [row["values"].get(column["key"]) for row in table["rows"]]
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if not numbers or "best" not in column:
        return None
    return shown(max(numbers) if column["best"] == "high" else min(numbers), column["unit"])


def _interval(limits: tuple[float, float], unit: str) -> str:
    low, high = (shown(limit, unit) for limit in limits)
    return f"{low} to {high}" if "−" in low + high else f"{low}–{high}"
