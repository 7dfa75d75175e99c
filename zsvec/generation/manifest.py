"""Purchases on disk: a folder from which a run that was killed can be resumed.

```
FOLDER/manifest.jsonl          one record a line: each answer, each image, each refusal
FOLDER/images/NAME/0000.png    the images, a sub-folder per category
FOLDER/received/…              images on their way: written whole, with their record, as soon as they arrive
```

A line of the manifest is appended and made durable in one piece; a line that a kill has torn is dropped
when the folder is opened again. An image arrives as one file, with its record, under its final name or not
at all, so that each image received is filed sooner or later, once. An image that was deleted is bought again.
The folder may come from elsewhere: nothing that its records or links say leads out of it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self, TypeAlias

from filelock import FileLock, Timeout
from pydantic import (
    AfterValidator,
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from zsvec.errors import InvalidInputError
from zsvec.inputs.files import inside, open_to_append, read_regular, sync, write_whole

_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif"}
_UNSAFE = re.compile(r"[^\w .()'&+,-]|^\.|[. ]$")
_LONGEST = 200  # bytes of a folder's name, of which file systems take 255
_FIRST = b'{"at":"'  # what the file begins with


def _place(file: str) -> str:
    """Checks the path of an image in its folder, which a record from elsewhere may name."""
    images, *parts = file.split("/")
    if (
        images != "images"
        or len(parts) != 2
        or any(not part or _UNSAFE.search(part.replace("~", "_")) for part in parts)
    ):
        raise ValueError(f"file must be images/FOLDER/FILE, got {file!r}")
    return file


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    at: str = Field(default_factory=_now)


class FolderRecord(_Record):
    """The first line.

    Attributes:
        id: Part of the idempotency keys, so that no two folders share a purchase.
    """

    kind: Literal["folder"] = "folder"
    id: str


class AnswerRecord(_Record):
    """An answer of the language model.

    Attributes:
        step: Name of the step of the analysis.
        version: Of the prompts.
        about: Subjects of the question: names, or groups of names.
        answer: As it came; ``None`` if it was declined.
        declined: Code and reason, if it was declined.
        model: The language model.
        response: Id of the response.
        cost: In dollars, if known.
    """

    kind: Literal["answer"] = "answer"
    step: str
    version: int
    about: list[Any]
    answer: dict[str, Any] | None
    declined: str | None = None
    model: str
    response: str
    cost: float | None


class ImageRecord(_Record):
    """An image that was bought.

    Attributes:
        category: The category to show.
        index: Its place among the images of the category.
        prompt: As it was sent.
        revised_prompt: The prompt that the service made of it, if it says so.
        version: Of the prompts.
        model: The image model.
        size: As it was asked for.
        quality: As it was asked for.
        response: Id of the response.
        seconds: From request to response.
        cost: In dollars, if known.
        sha256: Of the file; also the ``hash`` of the reference in the store.
        file: Path relative to the folder: ``images/FOLDER/FILE``.
        receipt: Id of this purchase.
    """

    kind: Literal["image"] = "image"
    category: str
    index: int
    prompt: str
    revised_prompt: str | None = None
    version: int
    model: str
    size: str
    quality: str | None
    response: str
    seconds: float
    cost: float | None
    sha256: str
    file: Annotated[str, AfterValidator(_place)]
    receipt: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class DeclinedRecord(_Record):
    """An image that the service does not draw.

    Attributes:
        category: The category to show.
        index: Its place among the images of the category.
        prompt: As it was sent.
        code: As in `responses.Declined`.
        reason: In words.
        model: The image model.
        cost: In dollars, if known.
    """

    kind: Literal["declined"] = "declined"
    category: str
    index: int
    prompt: str
    model: str
    code: str
    reason: str
    cost: float | None

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec generate --json`` prints."""
        record = self.model_dump(include={"category", "index", "prompt", "cost"})
        return {**record, "stored": False, "error": f"{self.code}: {self.reason}"}


Record: TypeAlias = Annotated[FolderRecord | AnswerRecord | ImageRecord | DeclinedRecord, Field(discriminator="kind")]
_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


class _Received(BaseModel):
    """An image that was received and not yet filed: image and record in one file."""

    record: ImageRecord
    data: Base64Bytes

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if hashlib.sha256(self.data).hexdigest() != self.record.sha256:
            raise ValueError("the image is not as it was received")
        return self


class Manifest:
    """The folder of a run; open in one process at a time.

    Args:
        folder: Made if it is not there.

    Raises:
        InvalidInputError: It cannot be made or read, belongs to another run at work, or is of something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "manifest.jsonl"
        self._received = folder / "received"
        self._writing = threading.Lock()
        with _usable(folder), ExitStack() as opened:
            for path in (self._file, self._received, folder / ".lock"):
                inside(folder, path)
            self._received.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock", thread_local=False)
            try:
                lock.acquire(blocking=False)
            except Timeout as exc:
                raise InvalidInputError(
                    f"{folder} is in use by another run: wait for it, or take another folder"
                ) from exc
            opened.callback(lock.release)
            self._open = opened.enter_context(open_to_append(self._file))
            content = self._open.read()
            self.records, whole = _parsed(self._file, content)
            if whole < len(content):
                self._open.truncate(whole)
            self._filed = {record.receipt for record in self.records if isinstance(record, ImageRecord)}
            if not any(isinstance(record, FolderRecord) for record in self.records):
                self.append(FolderRecord(id=uuid.uuid4().hex))
            for file in sorted(self._received.glob("*.json")):
                self.file_image(file)
            for place in (self._received, inside(folder, folder / "images")):
                for unfinished in place.rglob(".zsvec-*.new"):
                    unfinished.unlink()  # a kill has cut it short
            self._opened = opened.pop_all()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _usable(self.folder):  # a full disk is noticed again
            self._opened.close()

    @property
    def id(self) -> str:
        """Of the folder."""
        return next(record.id for record in self.records if isinstance(record, FolderRecord))

    def append(self, record: Record) -> None:
        """Add a record, durably; may be called from any thread."""
        with self._writing, _usable(self.folder):
            self._open.write(record.model_dump_json().encode() + b"\n")
            self._open.flush()
            os.fsync(self._open.fileno())
            self.records.append(record)

    def receive(self, data: bytes, **fields: Any) -> Path:
        """Keep an image as it arrives, with its record, in one step; may be called from any thread.

        Args:
            data: The encoded image.
            **fields: Of `ImageRecord`, but for what follows from the image and its place.

        Returns:
            What `file_image` takes.
        """
        suffix = next((suffix for magic, suffix in _SUFFIXES.items() if data.startswith(magic)), ".bin")
        record = ImageRecord(
            sha256=hashlib.sha256(data).hexdigest(),
            file=f"images/{folder_name(fields['category'])}/{fields['index']:04d}{suffix}",
            receipt=uuid.uuid4().hex,
            **fields,
        )
        whole = _Received(record=record, data=base64.b64encode(data))
        file = self._received / f"{record.receipt}.json"
        with _usable(self.folder):
            _write(file, whole.model_dump_json().encode())
        return file

    def file_image(self, received: Path) -> ImageRecord:
        """Move a received image to its place and add its record. Repeated after a kill, it is still there once."""
        with _usable(self.folder):
            whole = _read_received(received)
            path = inside(self.folder, self.folder / whole.record.file)
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, whole.data)
            if whole.record.receipt not in self._filed:
                self.append(whole.record)
            received.unlink()
        return whole.record


def read_manifest(folder: Path) -> list[Record]:
    """The records of a folder, which may not exist; nothing is changed.

    Raises:
        InvalidInputError: It cannot be read, is of something else, or leads out of itself.
    """
    with _usable(folder):
        if folder.exists() and not folder.is_dir():
            raise InvalidInputError(f"{folder} is not a folder: give one for what is generated, which may be new")
        arrived = []
        for file in sorted(inside(folder, folder / "received").glob("*.json")):
            with suppress(FileNotFoundError):  # a run at work has filed it meanwhile
                arrived.append(_read_received(file).record)
        file = inside(folder, folder / "manifest.jsonl")
        records, _ = _parsed(file, read_regular(file) if file.exists() else b"")
    filed = {record.receipt for record in records if isinstance(record, ImageRecord)}
    return [*records, *(record for record in arrived if record.receipt not in filed)]


def images(records: Sequence[Record], folder: Path) -> Iterator[ImageRecord]:
    """The images that are filed, or received and yet to be filed; of each place the latest.

    Raises:
        InvalidInputError: A record leads out of the folder.
    """
    latest = {(record.category, record.index): record for record in records if isinstance(record, ImageRecord)}
    for record in latest.values():
        paths = folder / record.file, folder / "received" / f"{record.receipt}.json"
        if any(inside(folder, path).is_file() for path in paths):
            yield record


def settled(records: Sequence[Record], model: str) -> list[DeclinedRecord]:
    """Images that an image model has declined to draw, and is not asked for again; a failure may be asked again."""
    declined = [record for record in records if isinstance(record, DeclinedRecord)]
    return [record for record in declined if record.model == model and record.code != "unusable"]


def spent(records: Sequence[Record], categories: Sequence[str]) -> float:
    """Dollars paid for images of some categories, and for answers about them, as far as the costs are known."""
    wanted = set(categories)
    return sum(
        record.cost or 0.0
        for record in records
        if not isinstance(record, FolderRecord) and not wanted.isdisjoint(_subjects(record))
    )


def _subjects(record: AnswerRecord | ImageRecord | DeclinedRecord) -> Iterator[str]:
    """The categories that a record is about."""
    for about in record.about if isinstance(record, AnswerRecord) else [record.category]:
        yield from [about] if isinstance(about, str) else about


def folder_name(category: str) -> str:
    """A category's name as that of a folder, the same where file systems allow it."""
    safe = _UNSAFE.sub("_", category).encode()[:_LONGEST].decode(errors="ignore").rstrip(" .")
    return safe if safe == category else f"{safe}~{hashlib.sha256(category.encode()).hexdigest()[:8]}"


def _parsed(file: Path, content: bytes) -> tuple[list[Record], int]:
    """The records in the lines of a manifest, and the length of these lines: a kill may have cut the last one short."""
    whole = content[: content.rfind(b"\n") + 1]
    try:
        records = [_RECORD.validate_json(line) for line in whole.splitlines()]
    except ValidationError as exc:
        raise _foreign(file, exc) from exc
    if not content.startswith(_FIRST[: len(content)]):  # all that there is may be one line without an end
        raise _foreign(file, f"it begins with {content[:20]!r}")
    return records, len(whole)


def _read_received(file: Path) -> _Received:
    try:
        return _Received.model_validate_json(read_regular(file, follow_links=False))
    except ValidationError as exc:
        raise _foreign(file, exc) from exc


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
            f"the folder {folder} for what is generated cannot be used: {exc.strerror}; give one that you may read "
            "and write, with room in it"
        ) from exc


def _write(path: Path, data: bytes) -> None:
    """Writes a file whole, or not at all, and durably."""
    write_whole(path, data)
    sync(path.parent)
