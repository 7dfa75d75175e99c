"""Batches of columns: from lists, arrays and Hugging Face data sets, pickled, and in several copies."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import zsvec
from tests.cli.support import DEADLINE
from tests.support import COLOURS, coloured, encode, fast_folder, isolated  # noqa: F401
from zsvec.errors import InvalidInputError, StoreLockedError, ZSVecError
from zsvec.integrations import batches
from zsvec.integrations.batches import Classify
from zsvec.types import Prediction

ENCODERS = "zsvec.testing:HashEncoder"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A closed store of three colours."""
    with fast_folder() as folder:
        with zsvec.open(folder / "store", encoders=ENCODERS) as clf:
            for colour in COLOURS:
                clf.add_category(colour, images=[coloured(colour, seed) for seed in range(8)])
        yield folder / "store"


@pytest.fixture
def classify(place: Path) -> Iterator[Classify]:
    with Classify(place, encoders=ENCODERS) as opened:
        yield opened


def photo(i: int) -> Any:
    return coloured(COLOURS[i % 3], 100 + i)


def expected(place: Path, images: list[Any]) -> list[Prediction]:
    with zsvec.open(place, encoders=ENCODERS) as clf:
        return clf.classify(images, errors="report")


def test_an_image_of_any_kind_is_answered_and_other_columns_stay(classify: Classify, tmp_path: Path) -> None:
    path = tmp_path / "3.png"
    path.write_bytes(encode(photo(3)))
    images = [
        photo(0),
        encode(photo(1)),
        np.asarray(photo(2)),
        str(path),
        {"bytes": encode(photo(4)), "path": None},
        {"bytes": None, "path": str(path)},
        {"bytes": None, "path": None},
        b"no image",
        None,
    ]
    given = {"image": images, "id": list(range(9))}
    found = classify(given)
    assert list(given) == ["image", "id"]
    assert (found["image"], found["id"]) == (images, list(range(9)))
    blue, green, red = COLOURS
    assert found["label"] == [blue, green, red, blue, green, blue, "", "", ""]
    assert found["nearest"] == found["label"]
    assert [not error for error in found["error"]] == [True] * 6 + [False] * 3


def test_values_are_those_of_predictions_and_have_one_type_in_a_column(classify: Classify, place: Path) -> None:
    images = [photo(0), b"no image", coloured("white", 9)]
    found = classify({"image": images})
    classify.close()
    known, broken, white = expected(place, images)
    assert white.unknown
    names = ("label", "nearest", "probability", "unknown", "novelty", "novelty_basis", "distance", "calibration")
    for row, one in ((0, known), (2, white)):
        for name in (*names, "error", "revision"):
            value = getattr(one, name)
            assert found[name][row] == ("" if value is None else value)
    assert found["error"][1] == broken.error
    assert [found[name][1] for name in ("label", "nearest", "unknown", "novelty_basis", "calibration", "revision")] == [
        *("", "", False, "", "none", 0)
    ]
    assert all(math.isnan(found[name][1]) for name in ("probability", "novelty", "distance"))
    for name in {*found} - {"image"}:
        assert len({type(value) for value in found[name]}) == 1, name


def test_rows_of_different_states_have_different_revisions(tmp_path: Path) -> None:
    classify = Classify(tmp_path / "store", encoders=ENCODERS)
    revisions = []
    for number, colour in enumerate(COLOURS):
        with zsvec.open(tmp_path / "store", encoders=ENCODERS) as clf:
            newest = clf.add_category(colour, images=[coloured(colour, seed) for seed in range(3)]).rev
        with classify:
            found = classify({"image": [photo(0), photo(number)]})
        assert found["revision"] == [newest, newest]
        revisions.append(newest)
    assert sorted(set(revisions)) == revisions


@pytest.mark.usefixtures("patient")
def test_copies_share_the_store_of_their_process(classify: Classify, place: Path) -> None:
    batch = {"image": [photo(0), photo(1)]}
    found = classify(batch)
    copy = pickle.loads(pickle.dumps(classify))
    assert copy(batch) == found
    assert Classify(place, encoders=ENCODERS)(batch) == found
    another = Classify(place, encoders=ENCODERS, top_m=3)
    with pytest.raises(StoreLockedError):
        another(batch)
    copy.close()
    with another:
        another(batch)


def test_threads_share_an_opening(place: Path) -> None:
    functions = [Classify(place, encoders=ENCODERS) for _ in range(8)]
    with functions[0], ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda function: function({"image": [photo(0)]})["label"], functions))
    assert answers == [["blue"]] * 8


def test_a_store_that_another_store_has_replaced_is_closed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_KEPT", 1)
    another = shutil.copytree(place, tmp_path / "another")
    for store in (place, another, place, another):
        assert Classify(store, encoders=ENCODERS)({"image": [b"no image"]})["error"][0]
    zsvec.open(place, encoders=ENCODERS).close()
    with pytest.raises(StoreLockedError):
        zsvec.open(another, encoders=ENCODERS)
    Classify(another, encoders=ENCODERS).close()
    zsvec.open(another, encoders=ENCODERS).close()


def test_a_store_in_use_stays_open(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, another store replaces it while a batch is read."""
    monkeypatch.setattr(batches, "_KEPT", 1)
    another = Classify(shutil.copytree(place, tmp_path / "another"), encoders=ENCODERS)
    read = batches._image

    def replaced(image: Any) -> Any:
        monkeypatch.setattr(batches, "_image", read)
        another({"image": []})
        return image

    monkeypatch.setattr(batches, "_image", replaced)
    with another:
        assert Classify(place, encoders=ENCODERS)({"image": [photo(0)]})["label"] == ["blue"]
        zsvec.open(place, encoders=ENCODERS).close()


def test_a_relative_path_leads_to_another_store_in_another_folder(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.parent)
    with Classify("store", encoders=ENCODERS) as classify:
        assert classify({"image": [photo(0)]})["label"] == ["blue"]
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ZSVecError):  # there is no store
            Classify("store", encoders=ENCODERS)({"image": [photo(0)]})
        monkeypatch.chdir(place.parent)


def test_a_forked_process_opens_the_store_itself(place: Path) -> None:
    program = """if True:
        import os, signal, sys
        from zsvec.errors import StoreLockedError
        from zsvec.integrations.batches import Classify

        classify = Classify(sys.argv[1], encoders=sys.argv[2])
        assert classify({"image": [b""]})["error"][0]
        child = os.fork()
        if child == 0:
            signal.alarm(180)
            try:
                classify({"image": [b""]})
            except StoreLockedError:
                os._exit(7)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        classify.close()
    """
    assert output(program, place) == "7\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_that_is_forked_while_a_store_is_opened(place: Path) -> None:
    program = """if True:
        import os, signal, sys, threading
        import zsvec
        from zsvec.integrations.batches import Classify

        open, opening, forked = zsvec.open, threading.Event(), threading.Event()

        def slow(*args, **settings):
            opening.set()
            forked.wait()
            return open(*args, **settings)

        zsvec.open = slow
        classify = Classify(sys.argv[1], encoders=sys.argv[2])
        thread = threading.Thread(target=classify, args=({"image": [b""]},))
        thread.start()
        opening.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(180)
            zsvec.open = open
            with classify:
                os._exit(7 if classify({"image": [b""]})["error"][0] else 0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        forked.set()
        thread.join()
        classify.close()
    """
    assert output(program, place) == "7\n"


def output(program: str, place: Path) -> str:
    command = [sys.executable, "-c", program, str(place), ENCODERS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_key_is_pickled_only_if_it_was_given(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_API_KEY", "key-of-the-environment")
    with Classify(place, encoders=ENCODERS) as classify:
        classify({"image": [photo(0)]})
        assert b"key-of" not in pickle.dumps(classify)
    assert b"key-of" in pickle.dumps(Classify(place, api_key="key-of-the-caller"))


def test_a_misspelled_setting_is_refused_before_the_first_batch() -> None:
    with pytest.raises(InvalidInputError) as caught:
        Classify(":memory:", profil="offline")  # type: ignore[call-arg]
    assert "'profil'" in str(caught.value)
    assert "'profile'" in str(caught.value)


@pytest.mark.parametrize(
    "batch",
    [
        {"picture": []},
        {"image": [], "label": []},
        {"image": [], "revision": []},
        {"image": [], "labels": []},
        pd.DataFrame({"image": []}),
        pd.DataFrame({"picture": []}),
        {"image": "a.png"},  # a row
        ["image"],
        5,
    ],
    ids=repr,
)
def test_a_batch_that_is_refused(classify: Classify, batch: Any) -> None:
    with pytest.raises(InvalidInputError):
        classify(batch)


def test_an_empty_batch_has_all_columns(classify: Classify) -> None:
    full, empty = classify({"image": [photo(0)]}), classify({"image": []})
    assert empty == {name: [] for name in full}


def test_a_frame_gets_columns_whatever_its_index(classify: Classify) -> None:
    """As for `map_partitions` of Dask and `mapInPandas` of Spark."""
    frame = pd.DataFrame({"content": [encode(photo(i)) for i in range(3)], "label": ["a", "b", "c"]}, index=[7, 7, 3])
    truth = frame.rename(columns={"label": "truth"})
    classify.image = "content"
    found = truth.assign(**classify({"content": truth["content"]}))
    assert list(found["label"]) == list(COLOURS)
    assert (list(found["truth"]), list(found.index)) == (["a", "b", "c"], [7, 7, 3])
    assert [found[name].dtype.kind for name in ("probability", "unknown", "revision")] == ["f", "b", "i"]


def test_images_with_several_labels(tmp_path: Path) -> None:
    with zsvec.open(tmp_path / "store", encoders=ENCODERS, labels="many") as clf:
        for colour in COLOURS:
            clf.add_category(colour, images=[coloured(colour, seed) for seed in range(12)])
        answers = clf.classify([photo(0), photo(1)])
    with Classify(tmp_path / "store", encoders=ENCODERS) as classify:
        found = classify({"image": [photo(0), photo(1), b""]})
    assert found["labels"] == [*([name for name, _ in one.labels] for one in answers), []]
    assert found["labels"][0] == ["blue"]


# ---- Hugging Face data sets


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    datasets.disable_progress_bars()
    contents = [{"bytes": encode(photo(i)), "path": None} for i in range(6)]
    features = datasets.Features({"image": datasets.Image(), "truth": datasets.ClassLabel(names=list(COLOURS))})
    return datasets.Dataset.from_dict({"image": contents, "truth": [0, 1, 2] * 2}, features=features)


def test_a_data_set_is_mapped(classify: Classify, rows: Any) -> None:
    found = rows.map(classify, batched=True, batch_size=2)
    assert found["label"][:] == [*COLOURS] * 2
    assert found.features["image"] == rows.features["image"]
    assert found.features["truth"] == rows.features["truth"]
    types = {"label": "string", "probability": "float64", "unknown": "bool", "revision": "int64", "error": "string"}
    assert {name: found.features[name].dtype for name in types} == types
    stored = [found.data["image"].to_pylist(), rows.data["image"].to_pylist()]
    assert stored[0] == stored[1]  # images were not encoded again
    with pytest.raises(InvalidInputError):
        found.map(classify, batched=True)


def test_an_unreadable_image_in_a_later_batch_of_a_data_set(classify: Classify, rows: Any) -> None:
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    encoded = rows.cast_column("image", datasets.Image(decode=False))
    broken = encoded.map(
        lambda row, i: {"image": {"bytes": b"no image", "path": None}} if i == 3 else row, with_indices=True
    )
    found = broken.map(classify, batched=True, batch_size=2)
    assert found["label"][:] == [*COLOURS, "", *COLOURS[1:]]
    assert [not error for error in found["error"]] == [True, True, True, False, True, True]


def test_a_result_is_cached_for_copies_only(place: Path) -> None:
    """The store may have changed since an equal function ran."""
    fingerprint = pytest.importorskip("datasets.fingerprint", reason="pip install datasets")
    classify, equal = Classify(place), Classify(place)
    copy = pickle.loads(pickle.dumps(classify))
    one, same, other = (fingerprint.Hasher.hash(function) for function in (classify, copy, equal))
    assert one == same != other


def test_a_streamed_data_set_is_mapped(classify: Classify, rows: Any) -> None:
    found = list(rows.to_iterable_dataset().map(classify, batched=True, batch_size=4))
    assert [row["label"] for row in found] == [*COLOURS] * 2
    assert [row["truth"] for row in found] == [0, 1, 2] * 2


# ---- sources of streams


class Endless(IterableDataset[Any]):
    """Tensors of three colours by turns."""

    def __iter__(self) -> Iterator[Any]:
        i = 0
        while True:
            yield torch.from_numpy(np.array(photo(i))).permute(2, 0, 1) / 255
            i += 1


def test_data_loaders_are_sources_of_streams(place: Path) -> None:
    tensors = torch.stack([torch.from_numpy(np.array(photo(i))).permute(2, 0, 1) / 255 for i in range(6)])
    loader = DataLoader(TensorDataset(tensors, torch.arange(6)), batch_size=4)
    with zsvec.open(place, encoders=ENCODERS) as clf:
        with clf.classify_stream(image for images, _ in loader for image in images) as stream:
            assert [one.label for one in stream] == [*COLOURS] * 2
        for source in (Endless(), (image for images in DataLoader(Endless(), batch_size=4) for image in images)):
            with clf.classify_stream(source) as stream:
                assert [next(stream).label for _ in range(6)] == [*COLOURS] * 2


def test_data_sets_are_sources_of_streams(place: Path, rows: Any) -> None:
    with zsvec.open(place, encoders=ENCODERS) as clf:
        for source in (rows["image"], rows.to_iterable_dataset()["image"], (row["image"] for row in rows)):
            with clf.classify_stream(source) as stream:
                assert [one.label for one in stream] == [*COLOURS] * 2
