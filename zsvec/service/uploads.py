"""Reads request bodies: forms with images and fields, single images, and JSON with images as base64."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, TypeAdapter, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from zsvec.errors import ImageError
from zsvec.service.api.schemas import Boxes, CategoryGiven, Image, Images, Margin, NamedImage, Regions
from zsvec.service.problems import Problem

_log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)

_MAX_NAME = 255  # characters of a file name
_MAX_FIELDS = 1000  # of a form
_MAX_JSON_PARTS = 100_000  # each part may take a hundred times its bytes in memory, or cause an error object
_UTF_8 = ("utf-8", "utf8")
_MAX_SEMICOLONS = 32  # of a header: python-multipart takes two microseconds to parse each
_METADATA = TypeAdapter(dict[str, Any])
_BOXES: TypeAdapter[list[list[float]]] = TypeAdapter(Boxes)
_MARGIN: TypeAdapter[float] = TypeAdapter(Margin)


class Upload(io.BytesIO):
    """An uploaded image. Folders and unprintable characters are removed from the name."""

    def __init__(self, content: bytes, name: str | None) -> None:
        super().__init__(content)
        last = re.split(r"[/\\]", name or "")[-1]
        self.name = "".join(filter(str.isprintable, last))[:_MAX_NAME].strip() or "upload"


class _Unreadable(Upload):
    """An image with invalid base64. Reading raises the error, so that other images of a request are read."""

    def __init__(self, error: ImageError, name: str | None) -> None:
        super().__init__(b"?", name)
        self._error = error

    def read(self, size: int | None = -1, /) -> bytes:
        raise self._error


@dataclass(frozen=True)
class Material:
    """Reference images, texts, metadata and parent of a category in a request. ``None`` means not given."""

    images: Sequence[Upload] | None = None
    texts: Sequence[str] | None = None
    metadata: Mapping[str, Any] | None = None
    parent: str | None = None


async def sent_images(request: Request, max_images: int, *, each: bool = False) -> list[Upload]:
    """Reads one or more images from a form, from JSON, or from a body that is an image.

    Args:
        request: The request.
        max_images: Maximum number of images.
        each: Whether an image with invalid base64 raises an error only when it is read.

    Raises:
        Problem: There are too few or too many images, or the body cannot be read.
    """
    kind = _content_type(request)
    if kind == "multipart/form-data":
        images, fields = await sent_form(request, max_images)
        if fields:
            raise Problem(422, f"the form must have files 'images' only, got a field {next(iter(fields))!r}")
    elif kind == "application/json":
        images = _named((await sent_json(request, Images)).images, max_images, each=each)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        images = [Upload(await request.body(), None)]
    else:
        raise _unsupported(kind, "multipart/form-data, application/json or image/*")
    if not images:
        raise Problem(422, "there is no image: send files as 'images'")
    return images


async def sent_boxes(request: Request, max_boxes: int) -> tuple[Upload, list[list[float]], float]:
    """Reads an image, boxes and a margin from a form or from JSON.

    Raises:
        Problem: There are too many boxes, or the body cannot be read.
    """
    kind = _content_type(request)
    if kind == "application/json":
        given = await sent_json(request, Regions)
        (image,), boxes, margin = _named([given.image], 1, each=True), given.boxes, given.margin
    elif kind == "multipart/form-data":
        images, fields = await sent_form(request, 1, files="image")
        texts, margins = fields.pop("boxes", []), fields.pop("margin", ["0"])
        if fields or len(images) != 1 or len(texts) != 1 or len(margins) != 1:
            raise Problem(422, "the form must have one file 'image', one field 'boxes', and may have one 'margin'")
        with _as_problems():
            boxes = _BOXES.validate_json(texts[0], strict=True)
            margin = _MARGIN.validate_json(margins[0], strict=True)
        (image,) = images
    else:
        raise _unsupported(kind, "multipart/form-data or application/json")
    if len(boxes) > max_boxes:
        detail = f"a request must have at most {max_boxes} boxes: send several requests"
        raise Problem(422, detail, error="too_many_images")
    return image, boxes, margin


async def sent_material(request: Request, max_images: int) -> Material:
    """Reads the texts, images, metadata and parent of a category from a form or from JSON.

    Raises:
        Problem: There are too many images, or the body cannot be read.
    """
    kind = _content_type(request)
    if kind == "application/json":
        given = await sent_json(request, CategoryGiven)
        images = None if given.images is None else _named(given.images, max_images)
        return Material(images, given.texts, given.metadata, given.parent)
    if kind != "multipart/form-data":
        raise _unsupported(kind, "multipart/form-data or application/json")
    images, fields = await sent_form(request, max_images)
    texts, once = fields.pop("texts", None), {name: fields.pop(name, []) for name in ("metadata", "parent")}
    if fields:
        field = next(iter(fields))
        raise Problem(422, f"the form must have images, texts, metadata and parent only, got a field {field!r}")
    for name, values in once.items():
        if len(values) > 1:
            raise Problem(422, f"{name} must be given once, got {len(values)} fields")
    metadata, parent = (next(iter(values), None) for values in once.values())
    with _as_problems():
        return Material(images or None, texts, None if metadata is None else _METADATA.validate_json(metadata), parent)


async def sent_json(request: Request, model: type[Model]) -> Model:
    """Reads a JSON body.

    Raises:
        Problem: The body is not JSON or does not match the model.
    """
    if (kind := _content_type(request)) != "application/json":
        raise _unsupported(kind, "application/json")
    body = await request.body()
    if sum(map(body.count, (b",", b"[", b"{"))) > _MAX_JSON_PARTS:
        raise Problem(413, f"the JSON must have at most {_MAX_JSON_PARTS:,} parts: send several requests")
    with _as_problems():
        return model.model_validate_json(body)


@contextmanager
def _as_problems() -> Iterator[None]:
    """Raises validation errors of pydantic as problems, without the invalid input, which may be large."""
    try:
        yield
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "json_invalid":
            raise Problem(400, f"the body is not JSON: {first['msg']}") from exc
        raise Problem(422, f"{where or 'the body'}: {first['msg']}") from exc


async def sent_form(
    request: Request, max_images: int, *, files: str = "images"
) -> tuple[list[Upload], dict[str, list[str]]]:
    """Reads the images, which must be files named `files`, and the text fields of a form.

    Raises:
        Problem: There are too many images, or the form cannot be read.
    """
    images: list[Upload] = []
    fields: dict[str, list[str]] = {}
    async with _form(request) as items:
        for name, value in items:
            if not isinstance(value, UploadFile):
                fields.setdefault(name, []).append(value)
                continue
            filename = _utf_8(value.filename or "")
            if name != files:
                raise Problem(422, f"files must be sent as {files!r}, got {filename!r} as {name!r}")
            if filename or value.size:  # browsers send an empty file for a field without a chosen file
                _check_number(len(images) + 1, max_images)
                images.append(Upload(await value.read(), filename))
    return images, fields


class _Parser(MultiPartParser):
    """Limits the number of parameters in each header of a part, because parsing them is slow."""

    def on_header_end(self) -> None:
        if (found := self._current_partial_header_value.count(b";")) > _MAX_SEMICOLONS:
            raise MultiPartException(f"a part's header must have at most {_MAX_SEMICOLONS} semicolons, got {found:,}")
        super().on_header_end()


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[list[tuple[str, str | UploadFile]]]:
    """Yields the fields and files of a form, and closes the files at the end of the block."""
    kind = _content_type(request)
    try:
        if kind == "application/x-www-form-urlencoded":
            yield _fields(await request.body())
        elif kind == "multipart/form-data":
            # Starlette would decode text by any codec that a client names, or by Latin-1 if that fails. Latin-1
            # preserves every byte, so that `_utf_8` can decode again.
            headers = Headers({"content-type": f"{request.headers['content-type']}; charset=latin-1"})
            parser = _Parser(headers, request.stream(), max_files=_MAX_FIELDS, max_fields=_MAX_FIELDS)
            form = await parser.parse()
            try:
                yield [
                    (_utf_8(name), _utf_8(value) if isinstance(value, str) else value)
                    for name, value in form.multi_items()
                ]
            finally:
                await form.close()
        elif not kind:  # a form without fields
            yield []
        else:
            raise _unsupported(kind, "multipart/form-data or application/x-www-form-urlencoded")
    except (MultiPartException, UnicodeError) as exc:
        raise Problem(400, f"the form cannot be read: {getattr(exc, 'message', exc)}") from exc
    except OSError as exc:
        detail = f"the folder for temporary files cannot hold the form: {exc.strerror}. Free space there, or set TMPDIR"
        _log.warning("%s", detail)
        raise Problem(503, detail) from exc


def _fields(body: bytes) -> list[tuple[str, str | UploadFile]]:
    if len(body) > MultiPartParser.max_part_size:
        raise Problem(413, f"the form must have at most {MultiPartParser.max_part_size:,} bytes: send less at once")
    try:
        return [*parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)]
    except ValueError as exc:
        raise Problem(400, f"the form cannot be read: {exc}") from exc


def _utf_8(text: str) -> str:
    return text.encode("latin-1").decode()


def _named(images: Sequence[Image], max_images: int, *, each: bool = False) -> list[Upload]:
    _check_number(len(images), max_images)
    uploads: list[Upload] = []
    for position, image in enumerate(images):
        content, name = (image.data, image.name) if isinstance(image, NamedImage) else (image, None)
        if not isinstance(content, ImageError):
            uploads.append(Upload(content, name))
        elif each:
            uploads.append(_Unreadable(content, name))
        else:
            raise Problem(422, f"images.{position}: {content}", error="invalid_image")
    return uploads


def _check_number(images: int, max_images: int) -> None:
    if images > max_images:
        detail = f"a request must have at most {max_images} images: send several requests"
        said = f"Send at most {max_images} {'photo' if max_images == 1 else 'photos'} at once."
        raise Problem(422, detail, error="too_many_images", said=said)


def _content_type(request: Request) -> str:
    """Returns the media type of the body. Raises a Problem if the charset is not UTF-8."""
    given = request.headers.get("content-type", "")
    if given.count(";") > _MAX_SEMICOLONS:
        raise Problem(415, f"Content-Type must have at most {_MAX_SEMICOLONS} semicolons, got {given.count(';'):,}")
    kind, parameters = parse_options_header(given)
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in _UTF_8:
        raise Problem(415, f"text must be UTF-8, got the charset {charset!r}. Leave the charset out, or send UTF-8")
    return kind.strip().decode("latin-1")


def _unsupported(kind: str, supported: str) -> Problem:
    return Problem(415, f"the body must be {supported}, got {kind or 'no Content-Type'}")
