"""`zsvec.reembed`: originals and small copies, encoders that both have, a killed run, and the switch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import zsvec
from tests.store.support import ServerDeployment
from tests.support import COLOURS, coloured, encode, fast_folder, photo, state, two_encoders
from tests.support import isolated as isolated
from zsvec import CategoryInput
from zsvec.curation.reembedding import judged_by_leave_one_out, reembed_store
from zsvec.errors import EncoderMismatchError, InvalidInputError, StoreError
from zsvec.evaluation.against import compare
from zsvec.settings.settings import load_settings
from zsvec.store import Store, open_store
from zsvec.store.backends.edge.backend import EdgeBackend
from zsvec.store.catalog.successor import Successor
from zsvec.testing import HashEncoder
from zsvec.types import Category, Modality

IMAGES = 4  # of each colour


def new_encoders() -> list[HashEncoder]:
    """``clip`` as before, and ``other`` in place of ``dino``."""
    return [HashEncoder("clip", dim=32), HashEncoder("other", dim=24)]


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as folder:
        yield folder


@pytest.fixture
def store(folder: Path) -> Path:
    """A store of pictures in ``photos``, of which one waits in the inbox."""
    for colour in COLOURS:
        (folder / "photos" / colour).mkdir(parents=True)
        for seed in range(IMAGES):
            path = folder / "photos" / colour / f"{seed}.png"
            path.write_bytes(encode(coloured(colour, seed).resize((640, 480))))
    with open_at(folder / "store") as clf:
        clf.add_categories(
            CategoryInput(name=colour, images=sorted((folder / "photos" / colour).iterdir()), metadata={"is": colour})
            for colour in COLOURS
        )
        clf.keep(photo(1))
    return folder / "store"


def open_at(location: str | Path, *encoders: HashEncoder, **settings: Any) -> zsvec.Classifier:
    return zsvec.open(location, encoders=encoders or two_encoders(), **settings)


def copy_of(location: Path) -> dict[str, Any]:
    with Store(EdgeBackend(location), "zsvec") as opened:
        return {
            name: (category.texts, category.metadata, category.references, {k: np.array(v) for k, v in held.items()})
            for name, (category, held) in state(opened.beside(1)).items()
        }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, (*described, vectors) in one.items():
        assert described == list(other[name][:3])
        assert vectors.keys() == other[name][3].keys()
        for key, vector in vectors.items():
            np.testing.assert_allclose(vector, other[name][3][key], atol=1e-6)


def test_originals_where_they_are_unchanged_else_small_copies(store: Path, folder: Path) -> None:
    (folder / "photos" / "red" / "0.png").unlink()
    (folder / "photos" / "red" / "1.png").write_bytes(encode(coloured("blue", 9)))
    (folder / "photos" / "red" / "2.png").write_bytes(b"no image")
    encoders, surveys, progress = new_encoders(), list[Any](), list[int]()
    found = zsvec.reembed(store, encoders=encoders, on_survey=surveys.append, on_image=progress.append)
    total = IMAGES * len(COLOURS)
    assert (found.originals, found.small, found.left_out, found.change) == (total - 3, 3, {}, None)
    assert [(one.originals, one.small, one.neither, one.present) for one in surveys] == [(total - 1, 1, 0, 0)]
    assert sum(progress) == total
    assert [encoder.images_encoded for encoder in encoders] == [0, total + 1]  # one had other content
    vectors = copy_of(store)["red"][3]
    [original] = [vector for key, vector in vectors.items() if key[0] == "other" and key[2] == sha("red", 3, folder)]
    expected = HashEncoder("other", dim=24).encode_images([coloured("red", 3).resize((640, 480))])[0]
    np.testing.assert_allclose(original, expected, atol=1e-6)


def sha(colour: str, seed: int, folder: Path) -> str:
    return zsvec.content_hash(folder / "photos" / colour / f"{seed}.png")


def test_images_with_neither_are_left_out_and_named(folder: Path) -> None:
    paths = [folder / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        path.write_bytes(encode(coloured("red", seed)))
    with open_at(folder / "store", keep_images="none") as clf:
        clf.add_category("red", images=paths)
        clf.add_category("gone", texts=[], images=[coloured("blue", 1)], replace=True)
    paths[0].unlink()
    encoders = [HashEncoder("other", dim=24, modalities=("image",))]
    found = zsvec.reembed(folder / "store", encoders=encoders)
    assert (found.originals, found.small) == (2, 0)
    assert [one.source for one in found.left_out["red"]] == [str(paths[0])]
    assert found.damaged.keys() == {"gone"}
    with pytest.raises(StoreError):
        zsvec.reembed(folder / "store", encoders=encoders, switch=True)
    with open_at(folder / "store") as clf:  # not switched
        assert clf.classify(coloured("red", 50)).nearest == "red"


def test_a_source_that_is_no_image_file_is_not_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    sources = [str(folder / "pipe"), "/dev/zero", "https://example.org/a.png", str(folder), "\0", "x" * 5000]
    with open_at(folder / "store") as clf:
        rows = np.eye(32, dtype=np.float32)[: len(sources)]
        clf.add_category("forged", texts=["text"], vectors={"clip:image": rows}, sources=sources)
    found = zsvec.reembed(folder / "store", encoders=[HashEncoder("other", dim=24)])
    assert (found.originals, found.small) == (0, 0)
    assert len(found.left_out["forged"]) == len(sources)


def test_the_switch_takes_the_inbox_and_a_calibration(store: Path) -> None:
    found = zsvec.reembed(store, encoders=new_encoders(), switch=True)
    assert found.change is not None
    assert (found.namespace, found.inbox) == ("zsvec.1", 1)
    with pytest.raises(EncoderMismatchError):
        open_at(store)
    with open_at(store, *new_encoders()) as clf:
        prediction = clf.classify(coloured("red", 100))
        assert (prediction.label, prediction.calibration) == ("red", "current")
        assert len(clf.inbox.hashes()) == 1
        assert clf.category("red").metadata == {"is": "red"}
        assert [change.id for change in clf.history] == [found.change.id]
        assert clf.history.undo(change=found.change.id).id == found.change.id
    with open_at(store) as clf:
        assert clf.classify(coloured("red", 100)).label == "red"


@pytest.mark.parametrize(
    ("first", "then", "field"),
    [
        ({}, {"aggregation": "mean"}, "aggregation"),
        ({}, {"top_m": 2}, "top_m"),
        ({"false_unknown_rate": 0.1}, {"false_unknown_rate": 0.2}, "false_unknown_rate"),
    ],
)
def test_a_repeated_run_calibrates_by_its_settings(
    store: Path, first: dict[str, Any], then: dict[str, Any], field: str
) -> None:
    def learned() -> dict[str, Any]:
        with Store(EdgeBackend(store), "zsvec") as opened:
            return dict(opened.beside(1).calibration() or {})

    zsvec.reembed(store, encoders=new_encoders(), **first)
    before = learned()
    zsvec.reembed(store, encoders=new_encoders(), **first)
    assert learned() == before
    zsvec.reembed(store, encoders=new_encoders(), **then)
    assert learned()[field] == then[field] != before[field]


def test_a_calibration_of_several_labels_an_image_is_learned_at_the_switch(store: Path) -> None:
    zsvec.reembed(store, encoders=new_encoders())
    with open_at(store, labels="many") as clf:
        clf.create()
    zsvec.reembed(store, encoders=new_encoders(), switch=True)
    with Store(EdgeBackend(store), "zsvec") as opened:
        assert opened.current().labels() == "many"
        assert (opened.current().calibration() or {})["multilabel"]


def test_a_killed_run_is_repeated(store: Path, folder: Path) -> None:
    shutil.copytree(store, folder / "straight")
    zsvec.reembed(folder / "straight", encoders=[HashEncoder("new", dim=24)])
    command = [sys.executable, "-m", "tests.curation.slow_reembedding", str(store)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "blue\n"
        process.kill()
    encoder = HashEncoder("new", dim=24)
    found = zsvec.reembed(store, encoders=[encoder])
    assert found.unchanged == ("blue",)
    assert encoder.images_encoded == 2 * IMAGES
    assert_same(copy_of(store), copy_of(folder / "straight"))


def test_a_run_ends_although_the_store_changes_all_the_time(store: Path) -> None:
    changes = 0
    with load_settings(store=str(store)).open_store() as opened:

        def change(_: Category) -> None:
            nonlocal changes
            changes += 1
            assert changes < 1000
            opened.keep("red", [opened.stored("red")[0].hash], "outliers", kept=changes % 2 > 0)

        reembed_store(opened, load_settings(store=str(store)), encoders=new_encoders(), on_commit=change)
    assert zsvec.reembed(store, encoders=new_encoders(), switch=True).change is not None


def test_an_embedded_store_that_a_killed_process_has_closed_opens_at_once(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsvec.store.catalog.catalog.LONGEST_CLOSED_S", 1e9)
    with Store(EdgeBackend(store), "zsvec") as opened:
        opened._catalog.set_in_store(successor=Successor(id="killed", to=1).to_dict())
    with open_at(store) as clf:
        clf.add_category("grey", images=[coloured("grey", 1)])


def test_a_store_on_a_server(store: Path, server: ServerDeployment) -> None:
    assert zsvec.copy(store, server.url, target_namespace=server.namespace).complete
    found = zsvec.reembed(server.url, namespace=server.namespace, encoders=new_encoders())
    assert found.originals == IMAGES * len(COLOURS)
    with open_at(server.url, namespace=server.namespace) as old:
        old.add_category("grey", images=[coloured("grey", 1), coloured("grey", 2)])
        switched = zsvec.reembed(server.url, namespace=server.namespace, encoders=new_encoders(), switch=True)
        assert (switched.small, len(switched.categories)) == (2, 1)
        with pytest.raises(StoreError):
            old.add_category("late", texts=["late"])
        assert old.classify(coloured("grey", 1)).nearest == "grey"
    with open_at(server.url, *new_encoders(), namespace=server.namespace) as new:
        assert [category.name for category in new.categories()] == ["blue", "green", "grey", "red"]
        new.history.undo(change=next(iter(new.history)).id)
    with open_at(server.url, namespace=server.namespace) as old:
        assert old.classify(coloured("grey", 1)).nearest == "grey"


class Noise(HashEncoder):
    """Vectors that say nothing about the colour."""

    def embed(self, batch: Sequence[Any], modality: Modality) -> NDArray[np.float64]:
        seeds = [zlib.crc32(item.encode() if isinstance(item, str) else item.tobytes()) for item in batch]
        return np.stack([np.random.default_rng(seed).standard_normal(self.fingerprint.dim) for seed in seeds])


def test_a_comparison_by_leave_one_out(store: Path) -> None:
    zsvec.reembed(store, encoders=[Noise("noise", dim=24)])
    settings = load_settings(store=str(store))
    with open_store(str(store), namespace="zsvec") as opened:
        before = opened.calibration()
        found = compare(opened, "zsvec.1", settings)
        ours = judged_by_leave_one_out(opened, settings)
        theirs = judged_by_leave_one_out(opened.named("zsvec.1"), settings)
        assert opened.calibration() == before
        with pytest.raises(InvalidInputError):
            compare(opened, "zsvec.2", settings)
    assert ours.keys() == theirs.keys()
    assert found.images == len(ours) == IMAGES * len(COLOURS)
    assert found.accuracy == sum(ours.values()) / len(ours) == 1
    assert found.accuracy_against == sum(theirs.values()) / len(theirs) < 1
    assert (found.gained, found.lost) == (0, len(ours) - sum(theirs.values()))
    low, high = found.interval
    assert found.difference == pytest.approx(found.accuracy_against - found.accuracy)
    assert low <= found.difference <= high < 0
