"""Bad input of every kind against a store with two categories: a zsvec error, and nothing is lost."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from PIL import Image

import zsvec
from tests.inputs.pictures import png
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
from zsvec.inputs.categories import CategoryInput
from zsvec.store.backends.base import Points, Where
from zsvec.store.names import record_id
from zsvec.testing import HashEncoder

KNOWN = coloured("red", 100)
LONGEST_MESSAGE = 6000  # names of files are not cut

as_root = pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read and write everything")


class Bench:
    """A store with the categories red and blue, and an empty folder for each row.

    Attributes:
        folder: Folder of the store.
        scratch: Working folder of the row.
        run: Runs a command line on the store; returns the exit code and stderr.
        before: Contents of the store before the first row, unchanged by all rows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "store"
        self.scratch = Path()
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
        """All points, committed or not, and a prediction."""
        store = self.clf._store
        points = {
            name: store._backend.count(store.collection(name), Where())  # uncommitted ones too
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
            bench.clf.add_category(colour, texts=[f"all {colour}"], images=images, metadata={"of": colour})
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

    shared.scratch, shared.run = Path.cwd(), run
    return shared


@dataclass(frozen=True)
class Row:
    """A kind of bad input.

    Attributes:
        name: Name of the row.
        do: The action of a user.
        error: The class of the raised error, or the exit code of a command line.
        says: A part of the message, with the value.
        marks: Conditions for the row.
    """

    name: str
    do: Callable[[Bench], Any]
    error: type[ZSVecError] | int
    says: str
    marks: tuple[pytest.MarkDecorator, ...] = ()


# ---- images


def image(name: str, make: Callable[[Bench], Any], says: str, marks: tuple[pytest.MarkDecorator, ...] = ()) -> Row:
    """An unreadable image: the same error from each entry point, as a report and as an exception."""

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


def cut(format_name: str) -> Callable[[Bench], Path]:
    """A file without the second half."""
    data = encode(coloured("red", 1).resize((64, 64)), format_name)
    return lambda bench: bench.file(data[: len(data) // 2])


def text(content: str, name: str = "photo.jpg") -> Callable[[Bench], Path]:
    return lambda bench: bench.file(content.encode(), name)


def array(*shape: int, dtype: Any = np.uint8, value: Any = 0) -> Callable[[Bench], Any]:
    return lambda bench: np.full(shape, value, dtype=dtype)


def made(make: Callable[[Path], object], name: str = "photo.jpg") -> Callable[[Bench], Path]:
    """A path of something else than a file."""

    def path(bench: Bench) -> Path:
        make(bench.scratch / name)
        return bench.scratch / name

    return path


def closed_file(bench: Bench) -> Any:
    file = bench.file(encode(photo(1))).open("rb")
    file.close()
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


def unreadable(path: Path) -> None:
    path.write_bytes(encode(photo(1)))
    path.chmod(0)


IMAGES = [
    image("empty file", text(""), "photo.jpg': it is empty (0 bytes)"),
    image("text named .jpg", text("hello world"), "photo.jpg': unknown format, it begins with b'hello wo'"),
    image("truncated JPEG", cut("JPEG"), "photo.jpg': "),
    image(
        "bomb", lambda bench: bench.file(png((10**5, 10**5), 8, 2, bytes(9))), "100000 × 100000 pixels are more than"
    ),
    image("folder", made(Path.mkdir), "photo.jpg': it is a folder"),
    image("missing", lambda bench: "no such file.jpg", "'no such file.jpg': No such file or directory"),
    image("URL", lambda bench: "https://example.com/a.jpg", "'https://example.com/a.jpg': URLs are not fetched"),
    image("no permission", made(unreadable), "photo.jpg': Permission denied", (as_root,)),
    image("pipe", made(os.mkfifo), "photo.jpg': it is a device, pipe or socket"),
    image("closed file", closed_file, "I/O operation on closed file"),
    image("file that fails", lambda bench: Failing(), "cannot read file: the camera went away"),
    image("closed PIL image", closed_image, "photo.png: Operation on closed image"),
    image("NaN", array(5, 4, 3, dtype=float, value=np.nan), "float64 values from nan to nan"),
    image("int64", array(5, 4, 3, dtype=np.int64), "dtype int64 is no image"),
    image("ambiguous array", array(3, 4, 3), "shape (3, 4, 3) may be (height, width, channels) or (channels, height"),
    image("ambiguous tensor", lambda bench: torch.zeros(1, 9, 4), "shape (1, 9, 4) may be (height, width, channels)"),
    image("normalised tensor", lambda bench: torch.full((3, 8, 8), -2.1), "scale them to [0, 1], or give uint8"),
    image("tensor of labels", lambda bench: torch.zeros(3, 8, 8, dtype=torch.int64), "dtype int64 is no image"),
    image("None", lambda bench: None, "None is no image"),
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
    return add("red", texts=["more"], metadata=value)


def classify(**options: Any) -> Callable[[Bench], Any]:
    return lambda bench: bench.clf.classify(KNOWN, **options)


def stream(images: Any, **options: Any) -> Callable[[Bench], Any]:
    return lambda bench: list(bench.clf.classify_stream(images, **options))


def query(**vectors: Any) -> Callable[[Bench], Any]:
    return lambda bench: bench.clf.classify_vectors(vectors)


def remove(name: Any) -> Callable[[Bench], Any]:
    return lambda bench: bench.clf.remove_category(name)


def closed(action: Callable[[Classifier], Any]) -> Callable[[Bench], Any]:
    """An action on a closed classifier."""

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


def generate(bench: Bench) -> None:
    bench.clf.generation.references(["new"])


COUNT = "must be a whole number from 1 up. Got"
NOT_SEVERAL = {
    "path": Path("photo.jpg"),
    "bytes": b"bytes",
    "file": io.BytesIO(b""),
    "image": KNOWN,
    "grey array": np.zeros((4, 5), np.uint8),
    "tensor": torch.zeros(3, 8, 9),
    "numbers": np.zeros(4),
    "column of numbers": pd.Series([1, 2]),
    "table": pd.DataFrame({"path": ["photo.jpg"]}),
    "mapping": {"photo.jpg": "red"},
    "number": 5,
}
ARGUMENTS = [
    argument("empty name", add(""), "must not be empty. Got ''"),
    argument("name of spaces", add(" \t\u3000"), "must not be empty. Got ' "),
    argument("name with an escape", add("\x1b[2J"), r"printable in one line. Got '\x1b[2J'"),
    argument("huge name", add("x" * 10_000_000), "at most 500 characters. Got 10000000, 'xxx"),
    argument("name of 501", add("x" * 501), "at most 500 characters. Got 501, 'xxx"),
    argument("name None", add(None), "must be a str. Got None"),
    argument("names twice", add_many(CategoryInput(name="red"), CategoryInput(name=" red")), "'red' is given twice"),
    argument("names for categories", add_many("new"), "must be CategoryInput objects. Got 'new'"),
    argument("no categories", lambda bench: list(bench.clf.add_categories(None)), "list of CategoryInput. Got None"),  # type: ignore[arg-type]
    argument("one str for texts", add("new", texts="a feline"), "texts must be a list of str. Got 'a feline'"),
    argument("empty text", add("new", texts=["a", ""]), "must be a str that is not empty. Got ''"),
    argument("text None", add("new", texts=[None]), "must be a str that is not empty. Got None"),
    argument("long text", add("new", texts=["x" * 20_001]), "at most 20,000 characters. Got 20,001, 'xxx"),
    argument("text that is no Unicode", add("new", texts=["\udcff"]), r"valid Unicode. Got '\udcff'"),
    argument("no texts and no images", add("new", texts=[]), "category 'new' has no reference"),
    argument("a path for images", add("new", images="photo.jpg"), "of images. Got 'photo.jpg'"),
    *(argument(f"images: one {kind}", add("new", images=one), "of images. Got ") for kind, one in NOT_SEVERAL.items()),
    argument("an empty list for images", add("new", images=[]), "images of category 'new' must not be empty"),
    argument("an array for images", add("new", images=np.zeros((4, 5, 3))), "Got an array of shape (4, 5, 3)"),
    argument(
        "an array for replace", add("new", texts=["a"], replace=np.array([1, 2])), "replace must be True or False"
    ),
    argument("a word for replace", add("red", texts=["a"], replace="no"), "replace must be True or False. Got 'no'"),
    argument("vectors of no expert", vectors(np.ones((1, 32)), "clip:audio"), "no expert 'clip:audio'"),
    argument("vectors of another shape", vectors(np.ones((2, 31))), "must have the shape (n, 32). Got (2, 31)"),
    argument("ragged vectors", vectors([[1.0] * 32, [1.0]]), "clip:image must be numbers of the shape (n, 32)"),
    argument("NaN vectors", vectors([[1.0] * 32, [np.nan] * 32]), "finite and not zero; rows that are not: [1]"),
    argument("zero vectors", vectors(np.zeros((1, 32))), "finite and not zero; rows that are not: [0]"),
    argument("vectors of nobody", add("new", vectors=np.ones((1, 32))), "a mapping of experts to arrays. Got array"),
    argument("metadata: object", metadata({"a": object()}), "Object of type object is not JSON serializable"),
    argument("metadata: NaN", metadata({"a": float("nan")}), "Out of range float values"),
    argument("metadata: tuple for a key", metadata({(1, 2): 3}), "keys must be str"),
    argument("metadata: list", metadata(["a"]), "must be a mapping of str to JSON. Got ['a']"),
    argument("metadata: huge", metadata({"a": "x" * 10**6}), "100,000 characters as JSON and 32 levels. Got 1,000,009"),
    argument("metadata: deep", metadata(deep(200)), "32 levels. Got 408 and 201"),
    argument("unknown category", remove("green"), "no category 'green'", CategoryNotFoundError),
    argument("removing None", remove(None), "must be a str. Got None"),
    argument("an array for names", lambda bench: bench.clf.inbox.groups(names=np.array([1, 2])), "names must be True"),  # type: ignore[arg-type]
    argument("generate: one str for names", plan("red"), "must be a list of names. Got 'red'"),
    argument("generate: long name of a folder", plan(["new"], folder="x" * 300), "too long"),
    argument("generate: no key", generate, "set OPENAI_API_KEY in the environment", GenerationError),
    argument("top_k 0", classify(top_k=0), f"top_k {COUNT} 0"),
    argument("top_k words", classify(top_k="five"), f"top_k {COUNT} 'five'"),
    argument("errors", classify(errors="ignore"), "errors must be 'raise' or 'report'. Got 'ignore'"),
    argument("zero batch", stream([KNOWN], batch_size=0), "batch_size must be a whole number from 1 to 4,096. Got 0"),
    argument("stream of a path", stream("photo.jpg"), "of images. Got 'photo.jpg'"),
    *(argument(f"stream of one {kind}", stream(one), "of images. Got ") for kind, one in NOT_SEVERAL.items()),
    argument("stream of None", stream(None), "of images. Got "),
    argument("query without vectors", query(), "of the encoders clip, dino. Got none"),
    argument("query of another encoder", query(vit=np.ones((1, 32))), "of the encoders clip, dino. Got vit"),
    argument(
        "query of more", query(clip=np.ones((1, 32)), dino=np.ones((1, 16)), x=[]), "clip, dino. Got clip, dino, x"
    ),
    argument("query of another shape", query(clip=np.ones((1, 9)), dino=np.ones((1, 16))), "(n, 32). Got (1, 9)"),
    argument("query of unequal counts", query(clip=np.ones((1, 32)), dino=np.ones((2, 16))), "{'clip': 1, 'dino': 2}"),
    argument("query of NaN", query(clip=np.full((1, 32), np.nan), dino=np.ones((1, 16))), "of clip must be finite"),
    argument("adding to what is closed", closed(lambda clf: clf.add_category("new")), "is closed: open", StoreError),
    argument("asking what is closed", closed(lambda clf: clf.classify(KNOWN)), "is closed: open it again", StoreError),
    argument("encoder", broken_encoder, "encoder 'clip' returned an array of shape (1, 5)", EncoderError),
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


CLIP = HashEncoder("clip", dim=32)
OTHER_CLIP = [HashEncoder("clip", dim=99), two_encoders()[1]]
AWAY = "http://127.0.0.1:9"
NOBODY = "~nobody-of-this-name/store"
OPENINGS = [
    opening("profile beside encoders", "profile and encoders exclude each other", profile="base"),
    opening("namespace", "(got 'a/b')", namespace="a/b"),
    opening("empty namespace", "(got '')", namespace=""),
    opening("dtype", "(got 'int8')", dtype="int8"),
    opening("fusion", "(got 'sum')", fusion="sum"),
    opening("negative temperature", "(got -1.0)", temperatures={"clip:text": -1.0}),
    opening("temperature", "temperatures: there is no expert 'dino:text'", temperatures={"dino:text": 1.0}),
    opening("weight of no expert", "weights: there is no expert 'clip:audio'", weights={"clip:audio": 1.0}),
    opening("zero batch", "batch_size: Input should be greater than 0 (got 0)", batch_size=0),
    opening("threshold", "unknown_above: Input should be less than or equal to 1 (got 7)", unknown_above=7),
    opening("unknown setting", "no setting 'temprature'; did you mean 'temperatures'?", temprature=1),
    opening("no encoders", "there are no encoders", encoders=[]),
    opening("encoders of one name", "two encoders are named 'clip'", encoders=[CLIP, CLIP]),
    opening("encoder named catalog", "cannot be named 'catalog'", encoders=[HashEncoder("catalog")]),
    opening("one encoder for several", "encoders", encoders=CLIP),
    opening("other encoders", "of the encoders clip, dino, and clip are in use", EncoderMismatchError, encoders=[CLIP]),
    opening("other dimensions", "'clip' in", EncoderMismatchError, encoders=OTHER_CLIP),
    opening("second handle", "is already open, here or in another", StoreLockedError, before=lambda bench: bench.clf),
    opening("store is a file", "the store 'photo.jpg' is a file", before=empty_file, store="photo.jpg"),
    opening(
        "store in a file", "photo.jpg/b cannot be used", StoreUnavailableError, (), empty_file, store="photo.jpg/b"
    ),
    opening("read-only", "locked/a cannot be used", StoreUnavailableError, (as_root,), locked_folder, store="locked/a"),
    opening("damaged", "of the embedded store damaged failed", StoreError, before=damaged, store="damaged"),
    Row("opening: schema", of_another_schema, StoreError, "has schema 99 and this version of zsvec knows 3"),
    opening("zero byte in the store", "embedded store a\0b failed: ", StoreError, store="a\0b"),
    opening("store with a name too long", "xxx", store="x" * 300),
    opening("store of an unknown user", NOBODY, store=NOBODY),
    opening("no scheme", "'host:6333' looks like a server: write http://host:6333", store="host:6333"),
    opening("ftp", "'ftp://host' is neither a folder nor an http:// or https:// URL", store="ftp://host"),
    opening("URL without a host", "'http://'", store="http://"),
    opening("URL with a space", "http://a b", store="http://a b"),
    opening("server away", f"{AWAY} did not answer within 0.2 s", StoreUnavailableError, store=AWAY, timeout=0.2),
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


def manifest(bench: Bench) -> None:
    bench.file(b"hello\n", "manifest.jsonl")


REPLACE = "import|t.csv|--replace"
JSON_FILE, CSV_FILE = "import|pets|--definitions|d.json", "import|pets|--definitions|d.csv"
COMMANDS = [
    command("unknown option", 2, "--colour", "list|--colour"),
    command("classify: missing file", 1, "1 of 1 image could not be read", "classify|--json|missing.jpg"),
    command("classify: top-k 0", 2, "--top-k", "classify|--top-k|0|x"),
    command("classify: no categories", 1, "has no category yet", "--namespace|other|classify|x"),
    command("add: empty name", 2, "must not be empty. Got ''", "add|"),
    command("add: missing image", 1, "cannot read 'missing.jpg'", "add|new|--image|missing.jpg"),
    command("remove: unknown", 2, "no category 'green'", "remove|green"),
    command("import: missing folder", 2, "missing does not exist", "import|missing"),
    command("import: empty folder", 2, "empty has no sub-folders", "import|empty", reds),
    command("import: missing definitions", 2, "d.json cannot be read", JSON_FILE, pets),
    command("import: no JSON", 2, "d.json are not JSON", JSON_FILE, definitions("d.json", b"{")),
    command("import: no CSV", 2, "d.csv are no CSV", CSV_FILE, definitions("d.csv", b'category,text\nred,"a')),
    command("import: no UTF-8", 2, "d.csv cannot be read", CSV_FILE, definitions("d.csv", b"category,text\nr\xe9d,a")),
    command("import: other columns", 2, "Got name, text", CSV_FILE, definitions("d.csv", b"name,text\ncat,a")),
    command("import: no text", 2, "not empty. Got ''", CSV_FILE, definitions("d.csv", b"category,text\ncat\n")),
    command("import: columns of a file", 2, "must name the columns path and label", "import|t.csv", table("a,b\n")),
    command("import: a file of nothing", 2, "no image with a label", "import|t.csv", table("path,label\n")),
    command("import: a row too long", 2, "2 columns where", REPLACE, table("path,label,x\npets/cat/tom.png,cat\n")),
    command("import: boxes of a CSV", 2, "--boxes needs COCO", "import|t.csv|--boxes", table("path,label\n")),
    command("import: no annotations", 2, "has no COCO annotations", "import|t.json", table("[]", "t.json")),
    command("evaluate: unknown labels", 2, "is no category of", "evaluate|pets", pets),
    command("evaluate: missing folder", 2, "missing does not exist", "evaluate|missing"),
    command("evaluate: empty folder", 2, "empty has no sub-folders", "evaluate|empty", reds),
    command("evaluate: nothing readable", 2, "no image with a label can be read", "evaluate|broken", reds),
    command("evaluate: no unknown", 2, "empty has no images", "evaluate|reds|--unknown|empty", reds),
    command("evaluate: unreadable", 2, "no image of no category can be", "evaluate|reds|--unknown|broken", reds),
    command("generate: other folder", 2, "manifest.jsonl has a line", "generate|cat|--folder|.|--dry-run", manifest),
    command("generate: no key", 1, "set OPENAI_API_KEY in the environment", "generate|cat"),
    command("profile", 2, "no profile is named 'bass'", "--profile|bass|classify|x"),
    command("store: file", 2, "'photo.jpg' is a file", "--store|photo.jpg|list", empty_file),
    command("other encoders", 1, "vectors of the encoders clip, dino", "--profile|offline|add|new"),
]


ROWS = [*IMAGES, *ARGUMENTS, *OPENINGS, *COMMANDS]


@pytest.mark.parametrize("row", [pytest.param(row, marks=row.marks, id=row.name) for row in ROWS])
def test_bad_input_is_an_error_and_does_no_harm(bench: Bench, row: Row) -> None:
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
        assert bench.contents() == bench.before


def test_the_rows_differ() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) >= 142


def test_unusual_images_are_not_refused(bench: Bench) -> None:
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
