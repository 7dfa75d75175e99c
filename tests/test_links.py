"""No file that zsvec writes in a folder from elsewhere is written through a link that is there.

Each writer first writes into an empty folder. Then each name of a written file or folder is planted as a link, in one
new folder for each kind of target, and the writer writes there.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zsvec
from tests.evaluation.test_audit_page import FOUND
from tests.evaluation.test_report import RESULTS
from tests.generation.material import buy
from tests.support import isolated, photos  # noqa: F401
from zsvec.cli.pictures import Picture, write_sheet
from zsvec.encoders import hardware
from zsvec.encoders.hardware import keep_rates
from zsvec.encoders.spec import EncoderSpec
from zsvec.errors import ZSVecError
from zsvec.evaluation.report import write_audit
from zsvec.evaluation.study import Embeddings
from zsvec.generation.manifest import Manifest
from zsvec.inputs.small import small_copy
from zsvec.inputs.watch import Watch
from zsvec.method.similarities import References
from zsvec.search.cache import ReferenceCache
from zsvec.service.auth.keys import first_key
from zsvec.store.backends.edge.checksums import Checksums
from zsvec.testing import HashEncoder
from zsvec.types import SmallImage

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links take rights elsewhere")

VIT = EncoderSpec(family="vision", model="test_vit", modalities=("image",))
PRECIOUS = b"of the user"


@contextmanager
def as_cache(folder: Path) -> Iterator[None]:
    """Makes a folder the user's cache folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder))
        yield


def write_references(folder: Path) -> None:
    references = References(
        names=("cat",),
        vectors=np.eye(2, dtype=np.float32),
        starts=np.array([0, 2]),
        norms=np.array([0.7], np.float32),
        hashes=("a", "b"),
        sources=("a.png", "b.png"),
    )
    with as_cache(folder):
        kept = ReferenceCache()
        kept.save("store", {"hash:image": references}, {}, kept.dropped())


def drop_references(folder: Path) -> None:
    with as_cache(folder):
        ReferenceCache().drop("store")


def write_rates(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hardware, "cache_folder", lambda: folder / "encoders")
        keep_rates(VIT, {"float32": 1.0, "bfloat16": 2.0})


def write_checksums(folder: Path) -> None:
    Checksums(folder, folder).write()


def write_first_key(folder: Path) -> None:
    first_key(folder)


def write_generated(folder: Path) -> None:
    with Manifest(folder) as manifest:
        buy(manifest, "cat")


def watch(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"an image")
    with Watch(folder, settle=0, poll=0.001) as watched:
        watched.done(str(next(iter(watched))))


def watch_by_named_state(folder: Path) -> None:
    images = folder.with_name("images")
    images.mkdir(exist_ok=True)
    (images / "a.png").write_bytes(b"an image")
    with Watch(images, state=folder / "state.jsonl", settle=0, poll=0.001) as watched:
        watched.done(str(next(iter(watched))))


def export(folder: Path) -> None:
    pytest.importorskip("onnxscript", reason='pip install "zsvec[export]"')
    timm = pytest.importorskip("timm")
    torch = pytest.importorskip("torch")
    from zsvec.encoders.torch.export import export_encoders

    weights = folder.with_name("weights.pth")
    torch.save(timm.create_model(VIT.model, pretrained=False).state_dict(), weights)
    export_encoders({"vit": VIT.model_copy(update={"weights": str(weights)})}, folder)


def publish_results(folder: Path) -> None:
    pytest.importorskip("matplotlib", reason='pip install "zsvec[report]"')
    from zsvec.evaluation import figures, publish
    from zsvec.evaluation.report import Drawing

    def drawings(_: Any) -> Iterator[Drawing]:
        png = figures.reliability(np.array([0.5, 0.9]), np.array([True, False]))
        yield Drawing("reliability", "title", "caption", png)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(publish, "_suite_drawings", drawings)
        patched.setattr(publish, "_mistakes", lambda _: ())
        publish.publish(SimpleNamespace(results=RESULTS, predictions={}), folder)  # type: ignore[arg-type]


def embed(folder: Path) -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder("hash")]) as classifier:
        classifier.add_category("cat", texts=["a cat"])
        Embeddings(folder / "embeddings", classifier).of(photos(1, 2), on_error=lambda *_: None)


def write_table(folder: Path) -> None:
    from zsvec.cli.evaluate import _write

    _write(folder / "results.csv", "category\n")


def write_audit_page(folder: Path) -> None:
    write_audit(folder / "audit.html", FOUND, "./store")


def write_contact_sheet(folder: Path) -> None:
    small = small_copy(Image.new("RGB", (8, 6)))
    image = SmallImage(hash="1", content=small, width=8, height=6, source="a.png", added=None)  # type: ignore[arg-type]
    write_sheet(folder / "sheet.html", "cat", [Picture("1", ["a.png"])], lambda _: image)


WRITERS: dict[str, Callable[[Path], None]] = {
    "cached references": write_references,
    "dropped references": drop_references,
    "measured rates": write_rates,
    "checksums of a store": write_checksums,
    "first key of the service": write_first_key,
    "generated images": write_generated,
    "watch state": watch,
    "watch state that is named": watch_by_named_state,
    "exported encoders": export,
    "report": publish_results,
    "embeddings": embed,
    "table": write_table,
    "audit page": write_audit_page,
    "contact sheet": write_contact_sheet,
}
"""Each writes what it writes into a folder, which may be empty or come from elsewhere."""

OF_THE_USER = ("cached references", "dropped references", "measured rates")
"""Writers into the user's own cache folder, which the user may have put on another disk by a link."""

LEADING: dict[str, Callable[[Path, Path], Path]] = {
    "to a file elsewhere": lambda _, elsewhere: elsewhere / "precious",
    "to nothing elsewhere": lambda _, elsewhere: elsewhere / "nothing",
    "to a file in the folder": lambda folder, _: folder / "precious",
    "to nothing in the folder": lambda folder, _: folder / "nothing",
}
"""Where a link leads, by the folder that it is in and a folder elsewhere."""


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_written_through_a_link(writer: str, tmp_path: Path) -> None:
    write, first = WRITERS[writer], tmp_path / "first" / "folder"
    files = written(write, first)
    assert files
    for number, (name, way) in enumerate((name, way) for name in sorted(files) for way in LEADING):
        folder, elsewhere = tmp_path / str(number) / "folder", tmp_path / str(number) / "elsewhere"
        elsewhere.mkdir(parents=True)
        (folder / name).parent.mkdir(mode=0o700, parents=True)
        victims = [place / "precious" for place in (folder, elsewhere)]
        for victim in victims:
            victim.write_bytes(PRECIOUS)
        (folder / name).symlink_to(LEADING[way](folder, elsewhere))
        with suppress(ZSVecError, OSError):  # a link may be refused, or replaced
            write(folder)
        assert [victim.read_bytes() for victim in victims] == [PRECIOUS] * 2, f"{name} leads {way}"
        for place in (folder, elsewhere):
            assert not (place / "nothing").exists(), f"{name} leads {way}"
    if writer in OF_THE_USER:
        return
    for number, made in enumerate(path for path in sorted(first.rglob("*")) if path.is_dir()):
        folder, elsewhere = tmp_path / f"link-{number}" / "folder", tmp_path / f"link-{number}" / "elsewhere"
        elsewhere.mkdir(parents=True)
        link = folder / made.relative_to(first)
        link.parent.mkdir(parents=True)
        link.symlink_to(elsewhere, target_is_directory=True)
        with suppress(ZSVecError, OSError):
            write(folder)
        assert list(elsewhere.iterdir()) == [], link


def written(write: Callable[[Path], None], folder: Path) -> set[str]:
    """Names of the files of a writer in a new folder, renamed and removed ones included."""
    folder.mkdir(parents=True)
    opened = watched_files()
    opened.clear()
    write(folder)
    made = {path for path in opened if folder in path.parents}
    made |= {path for path in folder.rglob("*") if not path.is_dir()}
    predictable = (path.relative_to(folder) for path in made if not re.fullmatch(r"\.zsvec-\w{32}\.new", path.name))
    return {str(path) for path in predictable} - {"a.png"}  # which the test has put there


@cache
def watched_files() -> set[Path]:
    """Paths that the process has opened for writing, or renamed, since the last clear."""
    opened: set[Path] = set()

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR):
            opened.add(Path(args[0]))
        elif event == "os.rename" and os.path.isfile(args[0]):  # noqa: PTH113
            opened.update(map(Path, args[:2]))

    sys.addaudithook(note)
    return opened
