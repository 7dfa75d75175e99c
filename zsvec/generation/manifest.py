"""The folder that keeps the answers and images of a run, so that a killed run can be resumed.

```
FOLDER/manifest.jsonl          one record per line: answers, images, refusals
FOLDER/images/NAME/0000.png    the images, one sub-folder per category
```

Each record is appended to the manifest as one line and synced. If a kill leaves an incomplete last line, `Manifest`
drops the line. An image file is written and synced before the record of the image. If a kill leaves a file without a
record, the next run sends the request again with the same idempotency key, and the image of the response replaces the
file. A deleted image is bought again. The folder may come from elsewhere, so records and links that lead out of the
folder are refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, TypeAdapter, ValidationError

from zsvec.errors import InvalidInputError
from zsvec.inputs.files import inside, open_to_append, read_regular, sync, write_whole

_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif"}
_UNSAFE = re.compile(r"[^\w .()'&+,-]|^\.|[. ]$")
_MAX_NAME_BYTES = 200  # maximum for the folder name of a category; file systems allow 255
_START = b'{"at":"'  # first bytes of a manifest

Place: TypeAlias = tuple[str, int]
"""A category, and the index of an image within the category."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


_Dollars: TypeAlias = NonNegativeFloat | None


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    at: str = Field(default_factory=_now)


class FolderRecord(_Record):
    """The first record of a manifest.

    Attributes:
        id: Random part of all idempotency keys, so that two folders never share an answer or image.
    """

    kind: Literal["folder"] = "folder"
    id: str


class AnswerRecord(_Record):
    """An answer of the language model.

    Attributes:
        step: Name of the step of the analysis.
        version: Version of the prompts.
        about: Subjects of the question: names, or groups of names.
        answer: The answer; ``None`` if declined.
        declined: Code and reason, if declined.
        model: The language model.
        response: Id of the response.
        cost: Cost in dollars, if known.
    """

    kind: Literal["answer"] = "answer"
    step: str
    version: int
    about: list[str | list[str]]
    answer: dict[str, Any] | None
    declined: str | None = None
    model: str
    response: str
    cost: _Dollars


class _RequestRecord(_Record):
    """A request for an image.

    Attributes:
        category: The category to show.
        index: Position among the images of the category.
        prompt: The prompt that was sent.
        model: The image model.
        cost: Cost in dollars, if known.
    """

    category: str
    index: int
    prompt: str
    model: str
    cost: _Dollars


class ImageRecord(_RequestRecord):
    """A bought image.

    Attributes:
        revised_prompt: Prompt that the service used instead of the requested one, if any.
        version: Version of the prompts.
        size: Requested size.
        quality: Requested quality.
        response: Id of the response.
        seconds: Time from request to response, including retries.
        sha256: Hash of the file, which is also the ``hash`` of the reference in the store.
        file: Path relative to the folder: ``images/FOLDER/FILE``.
    """

    kind: Literal["image"] = "image"
    revised_prompt: str | None = None
    version: int
    size: str
    quality: str | None
    response: str
    seconds: float
    sha256: str
    file: str


class DeclinedRecord(_RequestRecord):
    """An image that the service declined to draw.

    Attributes:
        code: As in `client.Declined`.
        reason: As in `client.Declined`.
    """

    kind: Literal["declined"] = "declined"
    code: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec generate --json`` prints."""
        record = self.model_dump(include={"category", "index", "prompt", "cost"})
        return {**record, "stored": False, "error": f"{self.code}: {self.reason}"}


Record: TypeAlias = Annotated[FolderRecord | AnswerRecord | ImageRecord | DeclinedRecord, Field(discriminator="kind")]
_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


class Manifest:
    """The folder of a run. Only one run can have the folder open at a time.

    Args:
        folder: Path of the folder, which is created if necessary.

    Raises:
        InvalidInputError: The folder cannot be created or read, is in use by another run, contains a manifest that this
            version of zsvec did not write, or has a link that leads out of the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writing = threading.Lock()
        file, lock_file, place = (folder / name for name in ("manifest.jsonl", ".lock", "images"))
        with _usable(folder), ExitStack() as opened:
            for path in (file, lock_file, place):
                inside(folder, path)
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(lock_file, thread_local=False)
            try:
                lock.acquire(blocking=False)
            except Timeout as exc:
                raise InvalidInputError(
                    f"{folder} is in use by another run: wait for it, or take another folder"
                ) from exc
            opened.callback(lock.release)
            self._open = opened.enter_context(open_to_append(file))
            content = self._open.read()
            self.records, whole = _parsed(file, content)
            if whole < len(content):
                self._open.truncate(whole)
            if not any(isinstance(record, FolderRecord) for record in self.records):
                self.append(FolderRecord(id=uuid.uuid4().hex))
            for unfinished in place.rglob(".zsvec-*.new"):
                unfinished.unlink()  # cut short by a kill
            self._opened = opened.pop_all()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        with _usable(self.folder):  # after a full disk, closing raises again
            self._opened.close()

    @property
    def id(self) -> str:
        """Id of the folder."""
        return next(record.id for record in self.records if isinstance(record, FolderRecord))

    def append(self, record: Record) -> None:
        """Adds a record durably. Thread-safe."""
        with self._writing, _usable(self.folder):
            self._open.write(record.model_dump_json().encode() + b"\n")
            self._open.flush()
            os.fsync(self._open.fileno())
            self.records.append(record)

    def purchases(self, category: str, index: int) -> int:
        """Returns the number of images that were bought for a category and index, including deleted images."""
        bought = [record for record in self.records if isinstance(record, ImageRecord)]
        return sum((record.category, record.index) == (category, index) for record in bought)

    def add_image(self, data: bytes, *, category: str, index: int, **fields: Any) -> ImageRecord:
        """Writes an image, then its record, durably. Thread-safe.

        Args:
            data: The encoded image.
            category: The category to show.
            index: Position among the images of the category.
            **fields: Other fields of `ImageRecord`, except `sha256` and `file`.
        """
        suffix = next((suffix for magic, suffix in _SUFFIXES.items() if data.startswith(magic)), ".bin")
        earlier = self.purchases(category, index)  # in the file name: no two records share a file
        name = f"{index:04d}-{earlier}{suffix}" if earlier else f"{index:04d}{suffix}"
        record = ImageRecord(
            category=category,
            index=index,
            sha256=hashlib.sha256(data).hexdigest(),
            file=f"images/{folder_name(category)}/{name}",
            **fields,
        )
        with _usable(self.folder):
            path = inside(self.folder, self.folder / record.file)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
            sync(path.parent)
        self.append(record)
        return record


def read_manifest(folder: Path) -> list[Record]:
    """Returns the records of a folder; an empty list if the folder does not exist.

    Raises:
        InvalidInputError: The path is not a folder, the manifest cannot be read or was not written by this version of
            zsvec, or a link leads out of the folder.
    """
    with _usable(folder):
        if folder.exists() and not folder.is_dir():
            raise InvalidInputError(f"{folder} is not a folder: give one for generated images, which may be new")
        file = inside(folder, folder / "manifest.jsonl")
        return _parsed(file, read_regular(file) if file.exists() else b"")[0]


def images(records: Sequence[Record], folder: Path) -> dict[Place, ImageRecord]:
    """Returns the latest image of each category and index, unless the image file was deleted.

    Raises:
        InvalidInputError: A record names a file outside the folder.
    """
    latest = {(record.category, record.index): record for record in records if isinstance(record, ImageRecord)}
    return {place: record for place, record in latest.items() if inside(folder, folder / record.file).is_file()}


def settled(records: Sequence[Record], model: str) -> set[Place]:
    """Returns category and index of each image that a model declined to draw.

    Requests with unusable responses are not included, because a later run repeats them.
    """
    declined = [record for record in records if isinstance(record, DeclinedRecord)]
    return {
        (record.category, record.index) for record in declined if record.model == model and record.code != "unusable"
    }


def spent(records: Sequence[Record], categories: Sequence[str]) -> float:
    """Returns the sum of the known costs, in dollars, of all requests that concern one of `categories`."""
    wanted = set(categories)
    return sum(
        record.cost or 0.0
        for record in records
        if not isinstance(record, FolderRecord) and not wanted.isdisjoint(_subjects(record))
    )


def _subjects(record: AnswerRecord | ImageRecord | DeclinedRecord) -> Iterator[str]:
    for about in record.about if isinstance(record, AnswerRecord) else [record.category]:
        yield from [about] if isinstance(about, str) else about


def folder_name(category: str) -> str:
    """Returns the folder name of a category: the category's name, or a safe form with a hash of the name."""
    safe = _UNSAFE.sub("_", category).encode()[:_MAX_NAME_BYTES].decode(errors="ignore").rstrip(" .")
    return safe if safe == category else f"{safe}~{hashlib.sha256(category.encode()).hexdigest()[:8]}"


def _parsed(file: Path, content: bytes) -> tuple[list[Record], int]:
    """Returns the records in the complete lines of a manifest, and the total bytes of these lines."""
    whole = content[: content.rfind(b"\n") + 1]
    try:
        records = [_RECORD.validate_json(line) for line in whole.splitlines()]
    except ValidationError as exc:
        raise _foreign(file, exc) from exc
    if not content.startswith(_START[: len(content)]):  # also checks a manifest of a single torn line
        raise _foreign(file, f"it begins with {content[:20]!r}")
    return records, len(whole)


def _foreign(file: Path, problem: object) -> InvalidInputError:
    return InvalidInputError(
        f"{file} has a line that this version of zsvec did not write: take another folder, or remove it; {problem}"
    )


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise InvalidInputError(
            f"the folder {folder} for generated images cannot be used: {exc.strerror}; give one that you may read "
            "and write, with free space"
        ) from exc
