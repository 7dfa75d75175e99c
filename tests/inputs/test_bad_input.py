"""Bad input of every kind against one store that holds two categories: an error of ours, and nothing is lost."""

from __future__ import annotations

import http.server
import io
import json
import os
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zsvec
from tests.support import coloured, encode, fast_folder, isolated, photo, state, trusted_settings, two_encoders  # noqa: F401
from zsvec.classifier import Classifier
from zsvec.cli import main
from zsvec.encoders import EncoderSet
from zsvec.errors import (
    CategoryNotFoundError,
    EncoderError,
    EncoderMismatchError,
    GenerationError,
    ImageError,
    InvalidInputError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    ZSVecError,
)
from zsvec.generation import Budget
from zsvec.inputs.categories import CategoryInput
from zsvec.store.backends.base import Points, Where
from zsvec.store.catalog.schema import record_id
from zsvec.testing import HashEncoder

KNOWN = coloured("red", 100)
LONGEST_MESSAGE = 6000  # names of files are not cut

as_root = pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read and write everything")


class Bench:
    """A store with the categories red and blue, and an empty folder for what a row needs.

    Attributes:
        folder: Of the store.
        scratch: Of the row, and where it runs.
        patch: Undone after the row.
        run: Runs a command line on the store: its exit code, and what it printed on stderr.
        before: What the store contained before the first row; nothing changes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "store"
        self.scratch = Path()
        self.patch = pytest.MonkeyPatch()
        self.run: Callable[[list[str]], tuple[int, str]] = lambda arguments: (-1, "")
        self.before: Any = None
        self._classifier: Classifier | None = None

    @property
    def clf(self) -> Classifier:
        if self._classifier is None:
            self._classifier = self.open()
        return self._classifier

    def open(self, **settings: Any) -> Classifier:
        return zsvec.open(**{"store": str(self.folder), "encoders": two_encoders(), **settings})

    def close(self) -> None:
        if self._classifier is not None:
            self._classifier.close()
            self._classifier = None

    def contents(self) -> Any:
        """All that is stored, whether committed or not, and an answer by it."""
        store = self.clf._store
        points = {
            name: store._backend.count(store.collection(name), Where())  # also what nobody sees
            for name in ("clip", "dino", "catalog")
        }
        assert store.incomplete() == []
        return points, state(store), self.clf.classify(KNOWN).to_dict()

    def file(self, content: bytes, name: str = "photo.jpg") -> Path:
        path = self.scratch / name
        path.write_bytes(content)
        return path


@pytest.fixture(scope="module")
def shared() -> Iterator[Bench]:
    with fast_folder() as folder:
        bench = Bench(folder)
        for colour in ("red", "blue"):
            images = [coloured(colour, seed) for seed in range(3)]
            bench.clf.add_category(colour, [f"all {colour}"], images, metadata={"of": colour})
        bench.before = bench.contents()
        yield bench
        bench.close()


@pytest.fixture
def bench(shared: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    def run(arguments: list[str]) -> tuple[int, str]:
        shared.close()
        monkeypatch.setenv("ZSVEC_STORE", str(shared.folder))
        monkeypatch.setattr("zsvec.encoders.load_encoders", lambda specs, **options: EncoderSet(two_encoders()))
        monkeypatch.setattr(sys, "argv", ["zsvec", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        for line in out.splitlines():
            json.loads(line)
        assert isinstance(stop.value.code, int)
        return stop.value.code, err

    shared.scratch, shared.patch, shared.run = Path.cwd(), pytest.MonkeyPatch(), run
    return shared


@dataclass(frozen=True)
class Row:
    """A kind of bad input.

    Attributes:
        name: Of the row.
        do: What a user does.
        error: What is raised; or the exit code, where `do` runs a command line.
        says: A part of the message, which names the value.
        marks: Where the row cannot be tried, or is known to fail.
    """

    name: str
    do: Callable[[Bench], Any]
    error: type[ZSVecError] | int
    says: str
    marks: tuple[pytest.MarkDecorator, ...] = ()


# ---- images


def image(name: str, make: Callable[[Bench], Any], says: str, marks: tuple[pytest.MarkDecorator, ...] = ()) -> Row:
    """An image that cannot be read: the same error from each way in, as a report and as an exception."""

    def do(bench: Bench) -> None:
        given = make(bench)
        reported, fine = bench.clf.classify_stream([given, KNOWN])
        assert reported.error
        assert (reported.label, reported.experts, fine.label) == (None, {}, "red")
        left_out: list[str] = []
        inputs = [CategoryInput(name="red", images=[given])]
        (kept,) = bench.clf.add_categories(inputs, on_error=lambda source, error: left_out.append(str(error)))
        assert (kept.version, left_out) == (1, [reported.error])
        for action in (
            lambda: bench.clf.classify(given),
            lambda: bench.clf.add_category("new", images=[photo(1), given]),
            lambda: bench.clf.add_category("red", images=[given], replace=True),
        ):
            with pytest.raises(ImageError) as error:
                action()
            assert str(error.value) == reported.error
        raise error.value

    return Row(f"image: {name}", do, ImageError, says, marks)


def png(size: tuple[int, int]) -> bytes:
    """A PNG with one row of pixels, whatever its header says."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


def cut(format_name: str) -> Callable[[Bench], Path]:
    """A file of which the second half is missing."""
    data = encode(coloured("red", 1).resize((64, 64)), format_name)
    return lambda bench: bench.file(data[: len(data) // 2])


def text(content: str, name: str = "photo.jpg") -> Callable[[Bench], Path]:
    return lambda bench: bench.file(content.encode(), name)


def array(*shape: int, dtype: Any = np.uint8, value: Any = 0) -> Callable[[Bench], Any]:
    return lambda bench: np.full(shape, value, dtype=dtype)


def made(make: Callable[[Path], object], name: str = "photo.jpg") -> Callable[[Bench], Path]:
    """A path at which something else than a file was made."""

    def path(bench: Bench) -> Path:
        make(bench.scratch / name)
        return bench.scratch / name

    return path


def closed_file(bench: Bench) -> Any:
    file = bench.file(encode(photo(1))).open("rb")
    file.close()
    return file


def exhausted_file(bench: Bench) -> Any:
    file = io.BytesIO(encode(photo(1)))
    file.read()
    return file


def closed_image(bench: Bench) -> Image.Image:
    opened = Image.open(bench.file(encode(photo(1)), "photo.png"))
    opened.close()
    return opened


class Failing(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise ConnectionResetError("the camera went away")


class Letters:
    def read(self, size: int = -1) -> str:
        return "letters"


def unreadable(path: Path) -> None:
    path.write_bytes(encode(photo(1)))
    path.chmod(0)


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)  # the whole path may be too long for one


IMAGES = [
    image("empty file", text(""), "photo.jpg': it is empty (0 bytes)"),
    image("text named .jpg", text("hello world"), "photo.jpg': unknown format, it begins with b'hello wo'"),
    image("HTML", text("<!DOCTYPE html>404", "photo.png"), "photo.png': unknown format, it begins with b'<!DOCTYP'"),
    image("PDF", text("%PDF-1.7\n%âãÏÓ"), "unknown format, it begins with b'%PDF-1.7'"),
    image("SVG", text('<svg xmlns="http://www.w3.org/2000/svg"/>', "photo.svg"), "photo.svg': unknown format"),
    image("ICO", lambda bench: bench.file(encode(photo(1), "ICO")), r"it begins with b'\x00\x00\x01\x00"),
    image("EPS", text("%!PS-Adobe-3.0 EPSF-3.0\n"), "unknown format, it begins with b'%!PS-Ado'"),
    image("ZIP", text("PK\x03\x04"), "unknown format"),
    image("truncated JPEG", cut("JPEG"), "photo.jpg': "),
    image("truncated PNG", cut("PNG"), "photo.jpg': "),
    image("truncated WebP", cut("WEBP"), "photo.jpg': "),
    image("truncated GIF", cut("GIF"), "photo.jpg': image file is truncated"),
    image("truncated TIFF", cut("TIFF"), "photo.jpg': "),
    image("JPEG signature alone", lambda bench: b"\xff\xd8\xff\xe0", "cannot read bytes: "),
    image("bomb", lambda bench: bench.file(png((100_000, 100_000))), "100000 × 100000 pixels are more than max_pixels"),
    image("no pixels", lambda bench: bench.file(png((0, 5))), "photo.jpg': "),
    image("folder", made(Path.mkdir), "photo.jpg': it is a folder"),
    image("missing", lambda bench: "no such file.jpg", "'no such file.jpg': No such file or directory"),
    image("URL", lambda bench: "https://example.com/a.jpg", "'https://example.com/a.jpg': URLs are not fetched"),
    image("empty path", lambda bench: "", "cannot read ''"),
    image("zero byte in the path", lambda bench: "a\0b.jpg", r"cannot read 'a\x00b.jpg': "),
    image("path too long", lambda bench: "x" * 5000, "File name too long"),
    image("path into a file", lambda bench: bench.file(b"x") / "y.jpg", "photo.jpg/y.jpg': Not a directory"),
    image("link to nothing", made(lambda path: path.symlink_to("nothing")), "photo.jpg': No such file"),
    image("link to itself", made(lambda path: path.symlink_to(path)), "photo.jpg': "),
    image("no permission", made(unreadable), "photo.jpg': Permission denied", (as_root,)),
    image("pipe", made(os.mkfifo), "photo.jpg': it is a device, pipe or socket"),
    image("socket", made(socket_at), "photo.jpg': it is a device, pipe or socket"),
    image("device", lambda bench: "/dev/zero", "'/dev/zero': it is a device, pipe or socket"),
    image("no bytes", lambda bench: b"", "cannot read bytes: it is empty"),
    image("random bytes", lambda bench: bytes(range(100)), "cannot read bytes: unknown format"),
    image("text file", lambda bench: io.StringIO("text"), "cannot read file: the file is open in text mode"),
    image("closed file", closed_file, "I/O operation on closed file"),
    image("exhausted file", exhausted_file, "cannot read file: it is empty"),
    image("file that fails", lambda bench: Failing(), "cannot read file: the camera went away"),
    image("file of letters", lambda bench: Letters(), "its read() gives str, not bytes"),
    image("closed PIL image", closed_image, "photo.png: Operation on closed image"),
    image("PIL image without pixels", lambda bench: Image.new("RGB", (0, 5)), "it has no pixels (0 × 5)"),
    image("NaN", array(4, 4, 3, dtype=float, value=np.nan), "float64 values from nan to nan"),
    image("infinite", array(4, 4, 3, dtype=np.float32, value=np.inf), "float32 values from inf to inf"),
    image("floats up to 255", array(4, 4, 3, dtype=float, value=255), "float64 values from 255.0 to 255.0"),
    image("int64", array(4, 4, 3, dtype=np.int64), "dtype int64 is no image"),
    image("complex", array(4, 4, 3, dtype=complex), "dtype complex128 is no image"),
    image("objects", array(4, 4, dtype=object), "dtype object is no image"),
    image("one dimension", array(4), "shape (4,) is no image"),
    image("five channels", array(4, 4, 5), "shape (4, 4, 5) is no image"),
    image("a batch", array(2, 4, 4, 3), "shape (2, 4, 4, 3) is no image"),
    image("array without pixels", array(0, 4, 3), "shape (0, 4, 3) is no image"),
    image("None", lambda bench: None, "None is no image"),
    image("number", lambda bench: 5, "5 is no image"),
    image("generator", lambda bench: (i for i in ()), "cannot read generator: <generator ob"),
    image("dictionary", lambda bench: {"image": b""}, "{'image': b''} is no image"),
]


# ---- arguments of an open classifier


def argument(name: str, do: Callable[[Bench], Any], says: str, error: type[ZSVecError] = InvalidInputError) -> Row:
    return Row(f"argument: {name}", do, error, says)


def add(*arguments: Any, **options: Any) -> Callable[[Bench], Any]:
    return lambda bench: bench.clf.add_category(*arguments, **options)


def add_many(*categories: Any) -> Callable[[Bench], Any]:
    return lambda bench: list(bench.clf.add_categories(categories))


def vectors(value: Any, expert: str = "clip:image") -> Callable[[Bench], Any]:
    return add("new", vectors={expert: value})


def metadata(value: Any) -> Callable[[Bench], Any]:
    return add("red", ["more"], metadata=value)


def classify(**options: Any) -> Callable[[Bench], Any]:
    return lambda bench: bench.clf.classify(KNOWN, **options)


def stream(images: Any, **options: Any) -> Callable[[Bench], Any]:
    return lambda bench: list(bench.clf.classify_stream(images, **options))


def query(**vectors: Any) -> Callable[[Bench], Any]:
    return lambda bench: bench.clf.classify_vectors(vectors)


def remove(name: Any) -> Callable[[Bench], Any]:
    return lambda bench: bench.clf.remove_category(name)


def closed(action: Callable[[Classifier], Any]) -> Callable[[Bench], Any]:
    """Something that is done with a classifier after it was closed."""

    def do(bench: Bench) -> Any:
        classifier = bench.clf
        bench.close()
        return action(classifier)

    return do


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return {"a": value}


def broken_encoder(bench: Bench) -> None:
    class Broken(HashEncoder):
        def embed(self, batch: Any, modality: Any) -> Any:
            return super().embed(batch, modality)[:, :5]

    bench.close()
    clip, dino = two_encoders()
    with bench.open(encoders=[Broken("clip", dim=clip.fingerprint.dim), dino]) as classifier:
        classifier.add_category("new")


def plan(categories: Any, **options: Any) -> Callable[[Bench], Any]:
    return lambda bench: bench.clf.generation.plan(categories, **options)


def plan_within(**budget: Any) -> Callable[[Bench], Any]:
    return lambda bench: bench.clf.generation.plan(["new"], budget=Budget(**budget))


def generate_in_a_file(bench: Bench) -> None:
    bench.clf.generation.references(["new"], folder=bench.file(b""))


def generate_among_others(bench: Bench) -> None:
    bench.clf.generation.references(["new"], folder=bench.file(b'{"somebody": "else\'s"}\n', "manifest.jsonl").parent)


COUNT = "must be a whole number from 1 up. Got"
ARGUMENTS = [
    argument("empty name", add(""), "must not be empty. Got ''"),
    argument("name of spaces", add(" \t "), r"must not be empty. Got ' \t '"),
    argument("invisible name", add("\u200b"), r"must not be empty. Got '\u200b'"),
    argument("name of two lines", add("red\nblue"), r"printable in one line. Got 'red\nblue'"),
    argument("name with an escape", add("\x1b[2J"), r"printable in one line. Got '\x1b[2J'"),
    argument("name that is no Unicode", add("\ud800"), r"printable in one line. Got '\ud800'"),
    argument("huge name", add("x" * 10_000_000), "at most 500 characters. Got 10000000, 'xxx"),
    argument("name None", add(None), "must be a str. Got None"),
    argument("name of bytes", add(b"red"), "must be a str. Got b'red'"),
    argument("names twice", add_many(CategoryInput(name="red"), CategoryInput(name=" red")), "'red' is given twice"),
    argument("names for categories", add_many("new"), "must be CategoryInput objects. Got 'new'"),
    argument("no categories", lambda bench: list(bench.clf.add_categories(None)), "list of CategoryInput. Got None"),  # type: ignore[arg-type]
    argument("one str for texts", add("new", "a feline"), "texts must be a list of str. Got 'a feline'"),
    argument("a number for texts", add("new", 5), "texts must be a list of str. Got 5"),
    argument("empty text", add("new", ["a", ""]), "must be a str that is not empty. Got ''"),
    argument("text None", add("new", [None]), "must be a str that is not empty. Got None"),
    argument("huge text", add("new", ["x" * 10_000_000]), "at most 20,000 characters. Got 10,000,000, 'xxx"),
    argument("text that is no Unicode", add("new", ["\udcff"]), r"valid Unicode. Got '\udcff'"),
    argument("no texts and no images", add("new", []), "category 'new' has no reference"),
    argument("a path for images", add("new", images="photo.jpg"), "of images. Got 'photo.jpg'"),
    argument("an image for images", add("new", images=KNOWN), "of images. Got <PIL.Image"),
    argument("an array for images", add("new", images=np.zeros((4, 5, 3))), "Got an array of shape (4, 5, 3)"),
    argument("None for images", add("new", images=None), "of images. Got None"),
    argument("an array for replace", add("new", ["a"], replace=np.array([1, 2])), "replace must be True or False"),
    argument("a word for replace", add("red", ["a"], replace="no"), "replace must be True or False. Got 'no'"),
    argument("an array for names", lambda bench: bench.clf.inbox.groups(names=np.array([1, 2])), "names must be True"),  # type: ignore[arg-type]
    argument("vectors of no expert", vectors(np.ones((1, 32)), "clip:audio"), "no expert 'clip:audio'"),
    argument("vectors of another shape", vectors(np.ones((2, 31))), "must have the shape (n, 32). Got (2, 31)"),
    argument("one vector", vectors(np.ones(32)), "must have the shape (n, 32). Got (32,)"),
    argument("ragged vectors", vectors([[1.0] * 32, [1.0]]), "clip:image must be numbers of the shape (n, 32)"),
    argument("vectors of words", vectors([["red"] * 32]), "must be numbers of the shape (n, 32). Got [['red'"),
    argument("NaN vectors", vectors([[1.0] * 32, [np.nan] * 32]), "finite and not zero; rows that are not: [1]"),
    argument("zero vectors", vectors(np.zeros((1, 32))), "finite and not zero; rows that are not: [0]"),
    argument("vectors of nobody", add("new", vectors=np.ones((1, 32))), "a mapping of experts to arrays. Got array"),
    argument("metadata: object", metadata({"a": object()}), "Object of type object is not JSON serializable"),
    argument("metadata: set", metadata({"a": {1}}), "Object of type set is not JSON serializable"),
    argument("metadata: NaN", metadata({"a": float("nan")}), "Out of range float values"),
    argument("metadata: list", metadata(["a"]), "must be a mapping of str to JSON. Got ['a']"),
    argument("metadata: tuple for a key", metadata({(1, 2): 3}), "keys must be str"),
    argument(
        "metadata: huge", metadata({"a": "x" * 1_000_000}), "100,000 characters as JSON and 32 levels. Got 1,000,009"
    ),
    argument("metadata: deep", metadata(deep(200)), "32 levels. Got 408 and 201"),
    argument("metadata: huge number", metadata({"a": 2**64}), "the number 18446744073709551616… has more than 64 bits"),
    argument("metadata: no Unicode", metadata({"a": "\ud800"}), "surrogates not allowed"),
    argument("unknown category", remove("green"), "no category 'green'", CategoryNotFoundError),
    argument("removing None", remove(None), "must be a str. Got None"),
    argument("generate: one str for names", plan("red"), "must be a list of names. Got 'red'"),
    argument("generate: a number for names", plan(5), "must be a list of names. Got 5"),
    argument("generate: no names", plan([]), "has no category to draw: name some"),
    argument("generate: empty name", plan(["new", " "]), "a category name must not be empty. Got ' '"),
    argument("generate: name None", plan([None]), "a category name must be a str. Got None"),
    argument("generate: per_category 0", plan(["new"], per_category=0), f"per_category {COUNT} 0"),
    argument("generate: per_category fraction", plan(["new"], per_category=1.5), f"per_category {COUNT} 1.5"),
    argument("generate: negative budget", plan_within(images=-1), "a budget of images must be"),
    argument("generate: budget of words", plan_within(dollars="2usd"), "Got '2usd'"),
    argument("generate: endless budget", plan_within(dollars=float("inf")), "Got inf"),
    argument("generate: budget that is no number", plan_within(dollars=float("nan")), "Got nan"),
    argument("generate: folder is a file", generate_in_a_file, "photo.jpg"),
    argument("generate: folder of something else", generate_among_others, "manifest.jsonl"),
    argument("generate: folder with a name too long", plan(["new"], folder="x" * 300), "too long"),
    argument(
        "generate: no key",
        lambda bench: bench.clf.generation.references(["new"]),
        "set OPENAI_API_KEY in the environment",
        GenerationError,
    ),
    argument("top_k 0", classify(top_k=0), f"top_k {COUNT} 0"),
    argument("top_k negative", classify(top_k=-3), f"top_k {COUNT} -3"),
    argument("top_k fraction", classify(top_k=2.5), f"top_k {COUNT} 2.5"),
    argument("top_k words", classify(top_k="five"), f"top_k {COUNT} 'five'"),
    argument("errors", classify(errors="ignore"), "errors must be 'raise' or 'report'. Got 'ignore'"),
    argument("zero batch", stream([KNOWN], batch_size=0), "batch_size must be a whole number from 1 to 4,096. Got 0"),
    argument("stream of a path", stream("photo.jpg"), "of images. Got 'photo.jpg'"),
    argument("stream of a file", stream(io.BytesIO(b"")), "of images. Got <_io.BytesIO"),
    argument("stream of None", stream(None), "of images. Got None"),
    argument("query without vectors", query(), "of the encoders clip, dino. Got none"),
    argument("query of one encoder", query(clip=np.ones((1, 32))), "of the encoders clip, dino. Got clip"),
    argument("query of another shape", query(clip=np.ones((1, 9)), dino=np.ones((1, 16))), "(n, 32). Got (1, 9)"),
    argument("query of unequal counts", query(clip=np.ones((1, 32)), dino=np.ones((2, 16))), "{'clip': 1, 'dino': 2}"),
    argument("query of NaN", query(clip=np.full((1, 32), np.nan), dino=np.ones((1, 16))), "of clip must be finite"),
    argument("adding to what is closed", closed(lambda clf: clf.add_category("new")), "is closed: open", StoreError),
    argument("asking what is closed", closed(lambda clf: clf.classify(KNOWN)), "is closed: open it again", StoreError),
    argument(
        "encoder of another shape", broken_encoder, "encoder 'clip' returned an array of shape (1, 5)", EncoderError
    ),
]


# ---- opening


def opening(
    name: str,
    says: str,
    error: type[ZSVecError] = InvalidInputError,
    marks: tuple[pytest.MarkDecorator, ...] = (),
    before: Callable[[Bench], Any] = Bench.close,
    **settings: Any,
) -> Row:
    def do(bench: Bench) -> None:
        before(bench)
        with bench.open(**settings) as classifier:
            classifier.add_category("new")

    return Row(f"opening: {name}", do, error, says, marks)


def settings_file(content: bytes) -> Callable[[Bench], None]:
    def write(bench: Bench) -> None:
        bench.close()
        bench.file(content, "zsvec.toml")

    return write


def trusted_file(toml: str) -> Callable[[Bench], None]:
    def write(bench: Bench) -> None:
        bench.close()
        trusted_settings(toml)

    return write


def environment(name: str, value: str) -> Callable[[Bench], None]:
    def set_it(bench: Bench) -> None:
        bench.close()
        bench.patch.setenv(name, value)

    return set_it


def empty_file(bench: Bench) -> None:
    bench.file(b"")


def damaged(bench: Bench) -> None:
    (bench.scratch / "damaged" / "zsvec__catalog").mkdir(parents=True)


def locked_folder(bench: Bench) -> None:
    (bench.scratch / "locked").mkdir(mode=0o500)


def of_another_schema(bench: Bench) -> None:
    with fast_folder() as folder, bench.open(store=str(folder)) as classifier:
        classifier.add_category("cat")
        backend, catalog = classifier._store._backend, "zsvec__catalog"
        identifier = record_id("store", "")
        record = {**backend.retrieve(catalog, [identifier])[identifier], "schema": 99}
        backend.upsert(catalog, Points([identifier], np.ones((1, 1), np.float32), [record]))
        classifier.close()
        bench.open(store=str(folder))


@contextmanager
def web_server() -> Iterator[str]:
    """A server that is no Qdrant: it answers everything with a page."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def no_qdrant(bench: Bench) -> None:
    with web_server() as url:
        bench.open(store=url, timeout=60.0)


CLIP = HashEncoder("clip", dim=32)
OTHER_CLIP = [HashEncoder("clip", dim=99), two_encoders()[1]]
NOBODY = "~nobody-of-this-name/store"
OPENINGS = [
    opening("unknown profile", "no profile is named 'bass'; choose one of base, offline, plus", profile="bass"),
    opening("namespace", "(got 'a/b')", namespace="a/b"),
    opening("empty namespace", "(got '')", namespace=""),
    opening("index", "(got 'both')", index="both"),
    opening("fusion", "(got 'sum')", fusion="sum"),
    opening("aggregation", "(got 'median')", aggregation="median"),
    opening("device", "(got 'tpu')", device="tpu"),
    opening("dtype", "(got 'int8')", dtype="int8"),
    opening("negative temperature", "(got -1.0)", temperatures={"clip:text": -1.0}),
    opening(
        "temperature of no expert", "temperatures: there is no expert 'dino:text'", temperatures={"dino:text": 1.0}
    ),
    opening("weight of no expert", "weights: there is no expert 'clip:audio'", weights={"clip:audio": 1.0}),
    opening("negative weight", "(got -1)", weights={"clip:text": -1}),
    opening("zero batch", "batch_size: Input should be greater than 0 (got 0)", batch_size=0),
    opening("words for a number", "(got 'many')", batch_size="many"),
    opening("threshold", "unknown_above: Input should be less than or equal to 1 (got 7)", unknown_above=7),
    opening("unknown setting", "no setting 'temprature'; did you mean 'temperatures'?", temprature=1),
    opening("no encoders", "there are no encoders", encoders=[]),
    opening("encoders of one name", "two encoders are named 'clip'", encoders=[CLIP, CLIP]),
    opening("encoder named catalog", "cannot be named 'catalog'", encoders=[HashEncoder("catalog")]),
    opening("encoder named by a path", "cannot be named '../up'", encoders=[HashEncoder("../up")]),
    opening("one encoder for several", "encoders", encoders=CLIP),
    opening("other encoders", "of the encoders clip, dino, and clip are in use", EncoderMismatchError, encoders=[CLIP]),
    opening("other dimensions", "'clip' in", EncoderMismatchError, encoders=OTHER_CLIP),
    opening("second handle", "is already open, here or in another", StoreLockedError, before=lambda bench: bench.clf),
    opening("store is a file", "the store 'photo.jpg' is a file", before=empty_file, store="photo.jpg"),
    opening(
        "store in a file",
        "a.jpg/b cannot be used",
        StoreUnavailableError,
        before=lambda bench: bench.file(b"", "a.jpg"),
        store="a.jpg/b",
    ),
    opening(
        "store that cannot be written",
        "locked/store cannot be used",
        StoreUnavailableError,
        (as_root,),
        locked_folder,
        store="locked/store",
    ),
    opening(
        "store that is damaged", "of the embedded store damaged failed", StoreError, before=damaged, store="damaged"
    ),
    Row(
        "opening: store of another schema",
        of_another_schema,
        StoreError,
        "has schema 99 and this version of zsvec knows 3",
    ),
    opening("zero byte in the store", "embedded store a\0b failed: ", StoreError, store="a\0b"),
    opening("store with a name too long", "xxx", store="x" * 300),
    opening("store URL with a space in its host", "http://a b", store="http://a b"),
    opening("store of an unknown user", NOBODY, store=NOBODY),
    opening("no scheme", "'host:6333' looks like a server: write http://host:6333", store="host:6333"),
    opening("ftp", "'ftp://host' is neither a folder nor an http:// or https:// URL", store="ftp://host"),
    opening("URL without a host", "'http://'", store="http://"),
    opening("URL with a wrong port", "'http://host:port'", store="http://host:port"),
    opening(
        "server away",
        "http://127.0.0.1:9 did not answer within 0.2 s",
        StoreUnavailableError,
        store="http://127.0.0.1:9",
        timeout=0.2,
    ),
    Row("opening: server that is no Qdrant", no_qdrant, StoreUnavailableError, "is it a Qdrant?"),
    opening(
        "settings file: unknown name", "no setting 'stor'; did you mean 'store'?", before=settings_file(b"stor = 1")
    ),
    opening("settings file: no TOML", "zsvec.toml", before=settings_file(b"store = ")),
    opening("settings file: no Unicode", "zsvec.toml", before=settings_file(b"\xff")),
    opening("generation: ftp", "generation.base_url: String should match", generation={"base_url": "ftp://x"}),
    opening("generation: unknown name", "there is no setting 'generation.colour'", generation={"colour": "red"}),
    opening("generation: no requests at once", "generation.concurrency: Input", generation={"concurrency": 0}),
    opening("generation: words for seconds", "(got 'soon')", generation={"timeout": "soon"}),
    opening("generation: empty model", "generation.image_model: String should", generation={"image_model": ""}),
    opening(
        "generation: negative price",
        "generation.prices.mine.image: Input should be greater than or equal to 0 (got -1)",
        generation={"prices": {"mine": {"image": -1}}},
    ),
    opening(
        "generation: unknown kind of price",
        "there is no setting 'generation.prices.mine.per_image'",
        generation={"prices": {"mine": {"per_image": 1}}},
    ),
    opening(
        "generation: a key in the settings file",
        "there is no setting 'generation.api_key'",
        before=trusted_file('[generation]\napi_key = "sk-secret"'),
    ),
    opening(
        "settings file: a service, and no trust",
        "sets generation, which only a file that you trust may",
        before=settings_file(b'[generation]\napi_key = "sk-secret"'),
    ),
    opening(
        "environment: generation",
        "generation.base_url: String should match",
        before=environment("ZSVEC_GENERATION__BASE_URL", "ftp://x"),
    ),
    opening("environment", "(got 'sum')", before=environment("ZSVEC_FUSION", "sum")),
    opening(
        "environment: no JSON",
        "ZSVEC_WEIGHTS in the environment is a table and must be JSON",
        before=environment("ZSVEC_WEIGHTS", "high"),
    ),
]


# ---- command lines


def command(name: str, code: int, says: str, line: str, before: Callable[[Bench], Any] = Bench.close) -> Row:
    """A command line; its words are separated by ``|``."""

    def do(bench: Bench) -> tuple[int, str]:
        before(bench)
        return bench.run(line.split("|"))

    return Row(f"command: {name}", do, code, says)


def definitions(name: str, content: bytes) -> Callable[[Bench], None]:
    def make(bench: Bench) -> None:
        pets(bench)
        bench.file(content, name)

    return make


def table(content: str, name: str = "t.csv") -> Callable[[Bench], None]:
    return definitions(name, content.encode())


def pets(bench: Bench) -> None:
    """A folder with a category that is not in the store."""
    (bench.scratch / "pets" / "cat").mkdir(parents=True)
    (bench.scratch / "pets" / "cat" / "tom.png").write_bytes(encode(photo(1)))


def reds(bench: Bench) -> None:
    """A folder with a readable red, one with a file that is no image, one without sub-folders, and an empty one."""
    for path in ("reds/red/1.png", "broken/red/1.png", "flat/1.png"):
        (bench.scratch / path).parent.mkdir(parents=True)
        (bench.scratch / path).touch()
    (bench.scratch / "reds/red/1.png").write_bytes(encode(KNOWN))
    (bench.scratch / "empty").mkdir()


REPLACE = "import|t.csv|--replace"
JSON_FILE, CSV_FILE = "import|pets|--definitions|d.json", "import|pets|--definitions|d.csv"
COMMANDS = [
    command("none", 2, "Missing command", "--store|x"),
    command("unknown command", 2, "remember", "remember"),
    command("unknown option", 2, "--colour", "list|--colour"),
    command("classify without images", 2, "Missing argument", "classify"),
    command("classify: missing file", 1, "1 of 1 image could not be read", "classify|--json|missing.jpg"),
    command("classify: name too long", 1, "1 of 1 image could not be read", f"classify|--json|{'x' * 5000}"),
    command("classify: top-k 0", 2, "--top-k", "classify|--top-k|0|x"),
    command("classify: fusion", 2, "sum", "classify|--fusion|sum|x"),
    command("classify: no categories", 1, "has no category yet", "--namespace|other|classify|x"),
    command("add: empty name", 2, "must not be empty. Got ''", "add|"),
    command("add: empty text", 2, "not empty. Got ''", "add|new|--text|"),
    command("add: missing image", 1, "cannot read 'missing.jpg'", "add|new|--image|missing.jpg"),
    command("add: replaced by a missing image", 1, "'missing.jpg'", "add|red|--replace|--image|missing.jpg"),
    command("remove: unknown", 2, "no category 'green'", "remove|green"),
    command("show: unknown", 2, "no category 'green'", "show|green"),
    command("import: missing folder", 2, "missing is not a folder", "import|missing"),
    command("import: file", 2, "photo.jpg is not a folder", "import|photo.jpg", empty_file),
    command("import: empty folder", 2, "empty has no sub-folders", "import|empty", reds),
    command("import: flat folder", 2, "flat has no sub-folders", "import|flat", reds),
    command("import: missing definitions", 2, "d.json cannot be read", JSON_FILE, pets),
    command("import: no JSON", 2, "d.json are not JSON", JSON_FILE, definitions("d.json", b"{")),
    command(
        "import: JSON of another form", 2, "d.json are not JSON of", JSON_FILE, definitions("d.json", b'{"red": 5}')
    ),
    command("import: no CSV", 2, "d.csv are no CSV", CSV_FILE, definitions("d.csv", b'category,text\nred,"a')),
    command("import: other columns", 2, "Got name, text", CSV_FILE, definitions("d.csv", b"name,text\nred,a")),
    command(
        "import: no Unicode", 2, "d.csv cannot be read", CSV_FILE, definitions("d.csv", b"category,text\nr\xe9d,a")
    ),
    command("import: empty text", 2, "not empty. Got ''", CSV_FILE, definitions("d.csv", b"category,text\ncat,\n")),
    command("import: columns of a file", 2, "must name the columns path and label", "import|t.csv", table("a,b\n")),
    command("import: a file of nothing", 2, "no image with a label", "import|t.csv", table("path,label\n")),
    command("import: a path that leads out", 2, "leads out of .", REPLACE, table("path,label\n../x.png,cat\n")),
    command("import: a row too long", 2, "2 columns where", REPLACE, table("path,label,x\npets/cat/tom.png,cat\n")),
    command("import: no folder of images", 2, "nowhere is no folder", "import|t.csv|--images|nowhere", table("")),
    command("import: boxes of a CSV", 2, "--boxes needs COCO", "import|t.csv|--boxes", table("path,label\n")),
    command("import: no annotations", 2, "has no COCO annotations", "import|t.json", table("[]", "t.json")),
    command("import: nested annotations", 2, "is no JSON", "import|t.json", table("[" * 100_000, "t.json")),
    command("evaluate: unknown labels", 2, "is no category of", "evaluate|pets", pets),
    command("evaluate: missing folder", 2, "cannot list the folder 'missing'", "evaluate|missing"),
    command("evaluate: empty folder", 2, "empty has no images in sub-folders", "evaluate|empty", reds),
    command("evaluate: flat folder", 2, "flat has no images in sub-folders", "evaluate|flat", reds),
    command("evaluate: nothing readable", 2, "no image with a label can be read", "evaluate|broken", reds),
    command("evaluate: no unknown images", 2, "empty has no images", "evaluate|reds|--unknown|empty", reds),
    command(
        "evaluate: unreadable unknown images",
        2,
        "no image of no category can be",
        "evaluate|reds|--unknown|broken",
        reds,
    ),
    command("generate: no names", 2, "name categories, or give --all", "generate"),
    command("generate: names and all", 2, "name categories, or give --all", "generate|cat|--all"),
    command("generate: empty name", 2, "must not be empty. Got ''", "generate|"),
    command("generate: per-category 0", 2, "--per-category", "generate|cat|--per-category|0"),
    command("generate: images in words", 2, "--max-images", "generate|cat|--max-images|lots"),
    command("generate: negative dollars", 2, "--max-cost", "generate|cat|--max-cost|-1"),
    command("generate: folder is a file", 2, "photo.jpg", "generate|cat|--folder|photo.jpg", empty_file),
    command(
        "generate: folder of something else",
        2,
        "manifest.jsonl has a line",
        "generate|cat|--folder|.|--dry-run",
        lambda bench: bench.file(b"hello\n", "manifest.jsonl"),
    ),
    command("generate: no key", 1, "set OPENAI_API_KEY in the environment", "generate|cat"),
    command("profile", 2, "no profile is named 'bass'", "--profile|bass|classify|x"),
    command("namespace", 2, "(got 'a b')", "--namespace|a b|list"),
    command("store: ftp", 2, "'ftp://host'", "--store|ftp://host|list"),
    command("store: file", 2, "'photo.jpg' is a file", "--store|photo.jpg|list", empty_file),
    command("other encoders", 1, "vectors of the encoders clip, dino", "--profile|offline|add|new"),
]


ROWS = [*IMAGES, *ARGUMENTS, *OPENINGS, *COMMANDS]


@pytest.mark.parametrize("row", [pytest.param(row, marks=row.marks, id=row.name) for row in ROWS])
def test_bad_input_gives_an_error_of_ours_and_does_no_harm(bench: Bench, row: Row) -> None:
    try:
        if isinstance(row.error, int):
            code, message = row.do(bench)
            assert code == row.error
            assert "Traceback" not in message
        else:
            with pytest.raises(ZSVecError) as caught:
                row.do(bench)
            assert type(caught.value) is row.error
            message = str(caught.value)
            assert len(message) < LONGEST_MESSAGE
        assert row.says in message
    finally:
        bench.patch.undo()
        Path("zsvec.toml").unlink(missing_ok=True)
        assert bench.contents() == bench.before


def test_the_rows_differ() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) >= 150


def test_what_is_fine_is_not_refused(bench: Bench) -> None:
    """Unusual images that look like bad ones, as a control of the table."""
    frames = [coloured("red", 5), coloured("blue", 6)]
    animation = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    fine: list[Any] = [
        bench.file(animation, "animation.gif"),
        bench.file(encode(frames[0], "PNG", save_all=True, append_images=frames[1:]), "named.jpg"),
        encode(frames[0].convert("CMYK"), "JPEG"),
        encode(frames[0].convert("RGBA"), "PNG"),
        np.asarray(frames[0], dtype=np.float32) / 255,
        np.asarray(frames[0])[::-1, ::-1],
        memoryview(encode(frames[0])),
    ]
    assert [prediction.label for prediction in bench.clf.classify(fine)] == ["red"] * len(fine)
    assert bench.contents() == bench.before
