"""What requests send: images, as files of a form, as a body of their own, or as base64 in JSON."""

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

from zsvec.service.api.schemas import CategoryGiven, Image, Images
from zsvec.service.problems import Problem

_log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)

_LONGEST = 255  # characters of a file name
_FIELDS = 1000  # of a form
_PARTS = 100_000  # of JSON, each of which may take a hundred times its bytes, or an error of its own
_UTF_8 = ("utf-8", "utf8")
_SEMICOLONS = 32  # of a header: the library that reads its parameters takes two microseconds for each
_METADATA = TypeAdapter(dict[str, Any])


class Upload(io.BytesIO):
    """An image that was sent.

    Args:
        content: Its bytes.
        name: How it was called; only the last part of a path, and what a file name can have, are kept.
    """

    def __init__(self, content: bytes, name: str | None) -> None:
        super().__init__(content)
        last = re.split(r"[/\\]", name or "")[-1]
        self.name = "".join(filter(str.isprintable, last))[:_LONGEST].strip() or "upload"


@dataclass(frozen=True)
class Material:
    """What a request sends of a category.

    Attributes:
        images: Reference images, in order.
        texts: Definition texts; ``None``: none are given.
        metadata: JSON to keep; ``None``: none is given.
    """

    images: Sequence[Upload]
    texts: Sequence[str] | None = None
    metadata: Mapping[str, Any] | None = None


async def sent_images(request: Request, most: int) -> list[Upload]:
    """The images of a request, one or more.

    Args:
        request: With a form, JSON, or an image as its body.
        most: Images.

    Raises:
        Problem: There is none, or there are too many, or the body cannot be read.
    """
    kind = _content_type(request)
    if kind == "multipart/form-data":
        images, fields = await sent_form(request, most)
        if fields:
            raise Problem(422, f"the form has a field {next(iter(fields))!r}, which has no meaning here: send images")
    elif kind == "application/json":
        images = _named((await sent_json(request, Images)).images, most)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        images = [Upload(await request.body(), None)]
    else:
        raise _unsupported(kind, "multipart/form-data, application/json or image/*")
    if not images:
        raise Problem(422, "there is no image: send files as 'images'")
    return images


async def sent_material(request: Request, most: int) -> Material:
    """What a request sends of a category; the arguments and errors are those of `sent_images`."""
    kind = _content_type(request)
    if kind == "application/json":
        given = await sent_json(request, CategoryGiven)
        return Material(_named(given.images, most), given.texts, given.metadata)
    if kind != "multipart/form-data":
        raise _unsupported(kind, "multipart/form-data or application/json")
    images, fields = await sent_form(request, most)
    texts, metadata = fields.pop("texts", None), fields.pop("metadata", [])
    if fields:
        raise Problem(422, f"the form has a field {next(iter(fields))!r}: it may have images, texts and metadata")
    if len(metadata) > 1:
        raise Problem(422, "metadata is given more than once")
    with _as_problems():
        return Material(images, texts, _METADATA.validate_json(metadata[0]) if metadata else None)


async def sent_json(request: Request, model: type[Model]) -> Model:
    """The object that the body is.

    Raises:
        Problem: It is no JSON, or not as the model says.
    """
    if (kind := _content_type(request)) != "application/json":
        raise _unsupported(kind, "application/json")
    body = await request.body()
    if sum(map(body.count, (b",", b"[", b"{"))) > _PARTS:
        raise Problem(413, f"the JSON has more than {_PARTS:,} parts: send several requests")
    with _as_problems():
        return model.model_validate_json(body)


@contextmanager
def _as_problems() -> Iterator[None]:
    """Errors of pydantic as problems; what was given is not in them, for it may be large."""
    try:
        yield
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "json_invalid":
            raise Problem(400, f"the body is no JSON: {first['msg']}") from exc
        raise Problem(422, f"{where or 'the body'}: {first['msg']}") from exc


async def sent_form(request: Request, most: int) -> tuple[list[Upload], dict[str, list[str]]]:
    """The images of a form, and its texts by name; the arguments and errors are those of `sent_images`."""
    images: list[Upload] = []
    fields: dict[str, list[str]] = {}
    async with _form(request) as items:
        for name, value in items:
            if not isinstance(value, UploadFile):
                fields.setdefault(name, []).append(value)
                continue
            filename = _utf_8(value.filename or "")
            if name != "images":
                raise Problem(422, f"the file {filename!r} is sent as {name!r}: send images as 'images'")
            if filename or value.size:  # of a field without a chosen file, browsers send an empty one
                _check_number(len(images) + 1, most)
                images.append(Upload(await value.read(), filename))
    return images, fields


class _Parser(MultiPartParser):
    """Reads forms, and refuses a part with more parameters than `_SEMICOLONS` in a header."""

    def on_header_end(self) -> None:
        """Takes a header of a part."""
        if (found := self._current_partial_header_value.count(b";")) > _SEMICOLONS:
            raise MultiPartException(f"a header of a part must have at most {_SEMICOLONS} semicolons, got {found:,}")
        super().on_header_end()


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[list[tuple[str, str | UploadFile]]]:
    """Reads a form; its files are closed in the end."""
    kind = _content_type(request)
    try:
        if kind == "application/x-www-form-urlencoded":
            yield _fields(await request.body())
        elif kind == "multipart/form-data":
            # Starlette decodes text by any codec, and by Latin-1 where that fails. Latin-1 gives every byte back.
            headers = Headers({"content-type": f"{request.headers['content-type']}; charset=latin-1"})
            parser = _Parser(headers, request.stream(), max_files=_FIELDS, max_fields=_FIELDS)
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
    """The fields of a form that is URL-encoded, as browsers send those without files."""
    if len(body) > MultiPartParser.max_part_size:
        raise Problem(413, f"the form has more than {MultiPartParser.max_part_size:,} bytes: send less at once")
    try:
        return [*parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS)]
    except ValueError as exc:
        raise Problem(400, f"the form cannot be read: {exc}") from exc


def _utf_8(text: str) -> str:
    return text.encode("latin-1").decode()


def _named(images: Sequence[Image], most: int) -> list[Upload]:
    _check_number(len(images), most)
    return [Upload(one, None) if isinstance(one, bytes) else Upload(one.data, one.name) for one in images]


def _check_number(images: int, most: int) -> None:
    if images > most:
        raise Problem(413, f"there are more than {most} images: send them in several requests")


def _content_type(request: Request) -> str:
    """Returns the type of the body, without its parameters; raises a Problem if its text is not UTF-8."""
    given = request.headers.get("content-type", "")
    if given.count(";") > _SEMICOLONS:
        raise Problem(415, f"Content-Type must have at most {_SEMICOLONS} semicolons, got {given.count(';'):,}")
    kind, parameters = parse_options_header(given)
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in _UTF_8:
        raise Problem(415, f"text must be UTF-8, got the charset {charset!r}. Leave the charset out, or send UTF-8")
    return kind.strip().decode("latin-1")


def _unsupported(kind: str, taken: str) -> Problem:
    return Problem(415, f"a body of the type {kind or 'that is not said'} is not taken: send {taken}")
