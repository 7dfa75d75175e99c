"""The findings of an audit as one HTML page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

from zsvec.curation.audit import Audit
from zsvec.errors import InvalidInputError
from zsvec.evaluation.pages import rendered
from zsvec.inputs.files import replacing_named


def write_audit(
    path: Path, found: Audit, location: str, picture: Callable[[str], bytes | None] = lambda _: None
) -> None:
    """Write an audit to a page that needs no other file.

    Args:
        path: The page; a file or a link of that name is replaced.
        found: The audit.
        location: Where the store is.
        picture: Gives a small WebP or JPEG of a reference image by its hash; ``None`` where there is none, and the page
            names its source alone.

    Raises:
        InvalidInputError: The page cannot be written.
    """

    def shown(digest: str) -> str | None:
        content = picture(digest)
        if content is None:
            return None
        kind = "webp" if content.startswith(b"RIFF") else "jpeg"
        return f"data:image/{kind};base64,{b64encode(content).decode('ascii')}"

    page = rendered("audit.html.jinja", audit=found, location=location, picture=shown)
    try:
        with replacing_named(path) as file:
            file.write(page.encode(errors="backslashreplace"))  # a file name may be no Unicode
    except (OSError, ValueError) as exc:  # a NUL in its name
        raise InvalidInputError(f"the page {str(path)!r} cannot be written: {exc}; name another file") from exc
