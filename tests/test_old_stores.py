"""Stores that earlier versions wrote (`tests/fixtures`): every version opens them, says the same, and writes on."""

from __future__ import annotations

import json
import lzma
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_client import models

import zsvec
from tests.encoders.conftest import needs_offline_weights
from tests.store.material import commits
from tests.store.support import LocalDeployment
from tests.support import fast_folder, isolated, photo, sources, two_encoders  # noqa: F401
from zsvec.classifier import Classifier
from zsvec.encoders import EncoderSet
from zsvec.errors import CategoryNotFoundError, EncoderMismatchError
from zsvec.testing import HashEncoder
from zsvec.types import Prediction

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

FIXTURES = Path(__file__).parent / "fixtures"
NAMES_NOW = {"max": "max_confidence"}
"""Strategies that had other names."""
OTHERWISE_NOW = {"transductive"}
"""Strategies that say something else since: how the images of a batch help each other was changed."""

# What is kept is compared with what is read through these alone: names of zsvec may change, what is kept does not.


def categories_of(clf: Classifier) -> dict[str, dict[str, Any]]:
    """Each category as `holds.categories` of a table has it."""
    return {
        category.name: {
            "version": category.version,
            "rev": category.rev,
            "gens": list(category.write_ids),
            "texts": list(category.texts),
            "references": dict(category.references),
            "metadata": dict(category.metadata),
            "sources": sources(clf.store, category.name),
            "hashes": hashes_of(clf, category.name),
        }
        for category in clf.categories()
    }


def hashes_of(clf: Classifier, name: str) -> dict[str, list[str]]:
    """Content hashes of the references of a category, by expert, sorted."""
    found: dict[str, list[str]] = {}
    for encoder, modality, digest in sorted(clf.store.keys(name)):
        found.setdefault(f"{encoder}:{modality}", []).append(digest)
    return found


def removed_of(clf: Classifier) -> dict[str, dict[str, int]]:
    """Version and commit of the categories that were removed."""
    removed = [category for category in commits(clf.store) if not category.write_ids]
    return {category.name: {"version": category.version, "rev": category.rev} for category in removed}


def calibration_of(clf: Classifier) -> Mapping[str, Any]:
    """The calibration that is kept with the store, as JSON; empty if it was taken back."""
    return clf.store.calibration() or {}


def said_of(prediction: Prediction) -> dict[str, Any]:
    """A prediction as a table has it: what depends on the fusion, and what does not."""
    experts = prediction.experts.items()
    return {
        "calibration": prediction.calibration,
        "ranking": dict(prediction.ranking),
        "unknown": prediction.unknown,
        "novelty": prediction.novelty,
        "distance": prediction.distance,
        "weights": {name: expert.weight for name, expert in experts},
        "entropy": {name: expert.entropy for name, expert in experts},
        "best": {name: dict(expert.ranking[:3]) for name, expert in experts},
        "neighbors": {
            name: [[near.category, near.similarity, near.source] for near in expert.neighbors]
            for name, expert in experts
        },
    }


def migrated(held: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The categories of a store after the first write: a version more each."""
    return {name: {**category, "version": category["version"] + 1} for name, category in held["categories"].items()}


def collect_garbage(clf: Classifier) -> int:
    """Delete the references that no manifest names, whatever the clock of this machine says of their age."""
    return clf.store.gc(grace=float("-inf"))


# The stores


@dataclass(frozen=True)
class Old:
    """A store that was kept.

    Attributes:
        table: What it holds and says.
        queries: Vectors to classify, by encoder.
        open: Opens it, with settings; one at a time.
        namespace: Of its collections.
        real: Whether its encoders are those of the profile `offline`.
    """

    table: Mapping[str, Any]
    queries: Mapping[str, NDArray[np.float32]]
    open: Callable[..., Classifier]
    namespace: str
    real: bool

    @property
    def held(self) -> Mapping[str, Any]:
        return self.table["holds"]

    def said(self, **settings: Any) -> list[dict[str, Any]]:
        """What it says of the queries."""
        with self.open(**settings) as clf:
            return [said_of(prediction) for prediction in clf.classify_vectors(self.queries, top_k=1000)]


# Schema, file, and namespace if it is not the default one.
STORES = {
    "edge-hash": ("schema1", "edge-hash.tar.xz", "zsvec"),
    "edge-hash-emptied": ("schema1", "edge-hash.tar.xz", "emptied"),
    "server-hash": ("schema1", "server-hash.json.xz", "zsvec"),
    "server-hash-emptied": ("schema1", "server-hash.json.xz", "emptied"),
    "edge-offline": ("schema1", "edge-offline.tar.xz", "zsvec"),
}
RECOGNISED = ("edge-hash", "server-hash")


@pytest.fixture(params=STORES)
def old(
    request: pytest.FixtureRequest, load_once: Callable[..., EncoderSet], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Old]:
    """A copy of a store, which a test may write to."""
    schema, file, namespace = STORES[request.param]
    encoders = "offline" if "offline" in file else "hash"
    table = json.loads((FIXTURES / schema / "expected" / f"{request.param}.json").read_text())
    monkeypatch.setattr("zsvec.encoders.load_encoders", load_once)
    with fast_folder() as folder:
        deployment = LocalDeployment()
        if file.endswith(".tar.xz"):
            location = str(folder / "store")
            with tarfile.open(FIXTURES / schema / file) as archive:
                if hasattr(tarfile, "data_filter"):  # from Python 3.11.4 on, and asked for from 3.12 on
                    archive.extraction_filter = tarfile.data_filter
                archive.extractall(folder)
        else:
            location = "http://old.invalid:6333"
            load(deployment, FIXTURES / schema / file)
            monkeypatch.setattr("zsvec.store.backends.server.connect", lambda *_, **__: deployment.connect())

        def open_store(**settings: Any) -> Classifier:
            chosen: dict[str, Any] = {"namespace": namespace, **settings}
            if encoders == "offline":
                chosen = {"profile": "offline", "device": "cpu", "dtype": "float32", **chosen}
            else:
                chosen = {"encoders": two_encoders(), **chosen}
            return zsvec.open(location, **chosen)

        yield Old(table, queries(schema, encoders), open_store, namespace, real=encoders == "offline")
        deployment.close()


@cache
def queries(schema: str, encoders: str) -> dict[str, NDArray[np.float32]]:
    with np.load(FIXTURES / schema / "queries.npz") as kept:
        return {name.removeprefix(f"{encoders}."): kept[name] for name in kept.files if name.startswith(f"{encoders}.")}


def load(deployment: LocalDeployment, dump: Path) -> None:
    """Put the points of a dump where they came from, past zsvec."""
    for name, collection in json.loads(lzma.decompress(dump.read_bytes())).items():
        deployment.client.create_collection(
            name,
            vectors_config=models.VectorParams(
                size=collection["size"], distance=models.Distance(collection["distance"])
            ),
            hnsw_config=models.HnswConfigDiff(**collection["hnsw_config"]),
        )
        for field, kind in collection["indexes"].items():
            deployment.client.create_payload_index(name, field, field_schema=models.PayloadSchemaType(kind))
        deployment.client.upsert(name, [models.PointStruct(**point) for point in collection["points"]], wait=True)


# How near is the same. A cosine of float32 is good for some 2e-7: products are added up in another order by another
# BLAS, the engine normalises what it is given, and the client's local mode normalises it again at each load. Divided by
# temperatures of 0.01, that is a part in 50,000 of a probability; of what is likely, less than a millionth was
# measured between a folder and a server. Small probabilities are held to their own size, so the tail counts as well.


def tolerance(kept: float) -> float:
    return min(1e-6 + 1e-5 * abs(kept), 1e-30 + 1e-4 * abs(kept))


def assert_near(got: Mapping[str, float], kept: Mapping[str, float], what: str) -> None:
    assert got.keys() == kept.keys(), what
    for name, value in kept.items():
        assert abs(got[name] - value) <= tolerance(value), f"{what}, {name}: {got[name]!r} was {value!r}"


def assert_ranked(got: Mapping[str, float], kept: Mapping[str, float], what: str) -> None:
    """The same probabilities in the same order, but for those that are as good as equal."""
    assert_near(got, kept, what)
    for better, worse in pairwise(got):
        assert kept[better] >= kept[worse] - 2 * tolerance(kept[worse]), f"{what}: {better} was behind {worse}"


def assert_said(old: Old, calibration: str, variant: str, said: list[dict[str, Any]]) -> None:
    kept = old.table["predictions"][calibration]
    answers = kept["variants"][variant]
    assert len(said) == len(answers) == len(kept["experts"])
    for i, (got, answer) in enumerate(zip(said, answers, strict=True)):
        what = f"query {i}, calibration {calibration}, {variant}"
        assert got["calibration"] == kept["calibration"], what
        assert_ranked(got["ranking"], answer["ranking"], what)
        assert got["unknown"] == answer["unknown"], what
        # Without a calibration, what is a distance now was in the place of the novelty.
        far = "distance" if kept["calibration"] == "none" else "novelty"
        assert_near({far: got[far]}, {far: answer["novelty"]}, what)
        assert (got["novelty"] is None) == (far == "distance"), what
        assert_near(got["weights"], answer["weights"], f"{what}, weights")
        for name, expert in kept["experts"][i].items():
            assert_near({name: got["entropy"][name]}, {name: expert["entropy"]}, f"{what}, entropy")
            # The three best are few: that nothing else has come between them is told by their probabilities.
            assert_ranked(got["best"][name], expert["best"], f"{what}, {name}")
        assert_same_neighbors(got["neighbors"], old.table["neighbors"][i], what)


def assert_same_neighbors(got: Mapping[str, Any], kept: Mapping[str, Any], what: str) -> None:
    assert got.keys() == kept.keys(), what
    for name, neighbors in kept.items():
        assert [(c, source) for c, _, source in got[name]] == [(c, source) for c, _, source in neighbors], what
        np.testing.assert_allclose([s for _, s, _ in got[name]], [s for _, s, _ in neighbors], atol=1e-6, err_msg=what)


# What they hold


def test_it_holds_what_it_held(old: Old) -> None:
    with old.open() as clf:
        held, found = old.held, categories_of(clf)
        assert found.keys() == held["categories"].keys()
        for name, category in held["categories"].items():
            assert found[name] == category, name
        assert removed_of(clf) == held["removed"]
        assert calibration_of(clf) == held["calibration"]["calibration"]
        assert {name: asdict(fingerprint) for name, fingerprint in clf.store.encoders().items()} == held["encoders"]
        info = clf.store.info()
        for field in ("namespace", "categories", "references", "encoders", "calibration"):
            assert info[field] == held["info"][field], field


def test_nothing_is_lost_and_what_a_dead_writer_left_goes(old: Old) -> None:
    with old.open() as clf:
        assert clf.store.incomplete() == old.held["lost references"] == []
        assert collect_garbage(clf) == old.held["references that no manifest names"]
        assert collect_garbage(clf) == 0
        assert categories_of(clf) == migrated(old.held)


# What they say


@pytest.mark.parametrize("calibration", ["auto", "off"])
def test_it_says_what_it_said(old: Old, calibration: str) -> None:
    for variant in old.table["predictions"][calibration]["variants"]:
        fusion, _, unknown_per_category = variant.partition(", ")
        if fusion in OTHERWISE_NOW:
            continue
        fusion = NAMES_NOW.get(fusion, fusion)
        said = old.said(calibration=calibration, fusion=fusion, unknown_per_category=bool(unknown_per_category))
        assert_said(old, calibration, variant, said)


def test_it_says_so_when_nothing_is_chosen(old: Old) -> None:
    assert_said(old, "auto", "log_linear_views", old.said())


def test_it_says_the_same_when_the_database_searches(old: Old) -> None:
    for calibration in ("auto", "off"):
        assert_said(old, calibration, "log_linear_views", old.said(index="qdrant", calibration=calibration))


# That they are written


@pytest.mark.parametrize("old", RECOGNISED, indirect=True)
def test_what_it_holds_is_recognised(old: Old) -> None:
    images = sorted((FIXTURES / "schema1" / "images").iterdir())
    encoders = two_encoders()
    with old.open(encoders=encoders) as clf:
        clf.add_category("teal", images=images)
        clf.add_category("red", texts=["something red"])
        clf.add_category("Cafe\u0301/naïve_Crème", texts=["du café, très noir"])
        assert [encoder.images_encoded + encoder.texts_encoded for encoder in encoders] == [0, 0]
        now = categories_of(clf)
        for name, category in migrated(old.held).items():
            assert now[name] == {**category, "version": now[name]["version"]}  # it was published anew


def test_it_is_written_on(old: Old) -> None:
    if old.real:
        needs_offline_weights()  # that the profile still has the encoders which wrote it, too: others are refused
    before = migrated(old.held)
    first, last = next(iter(before)), list(before)[-1]  # the same where there is but one, which stays
    changed = {first, "newcomer"}
    with old.open() as clf:
        grown = clf.add_category(first, images=[photo(1)], metadata={"later": True})
        assert grown.version == before_version(old, first) + 2  # one of them by the migration
        clf.add_category("newcomer", texts=["something new"], images=[photo(2), photo(3)])
        if last != first:
            changed.add(last)
            clf.remove_category(last)
        report = clf.calibrate()
        kept = old.held["calibration"]["calibration"]
        assert report.calibration.false_unknown_rate == kept.get("false_alarms", 0.05)

    with old.open() as clf:
        now = categories_of(clf)
        assert now.keys() == (before.keys() | {"newcomer"}) - ({last} - {first})
        assert {name: category for name, category in now.items() if name not in changed} == {
            name: category for name, category in before.items() if name not in changed
        }
        texts, images = references_by_modality(now[first])
        texts_before, images_before = references_by_modality(before[first])
        assert texts == texts_before
        of_images = {name for name in old.held["info"]["references"] if name.endswith(":image")}
        assert images == {name: images_before.get(name, 0) + 1 for name in of_images}
        assert now[first]["texts"] == before[first]["texts"]
        assert now[first]["metadata"] == {"later": True}
        for expert, origins in before[first]["sources"].items():
            assert sorted([*origins, *(["image"] if expert in of_images else [])]) == now[first]["sources"][expert]
        if last != first:
            assert removed_of(clf)[last]["version"] == before_version(old, last) + 2
            with pytest.raises(CategoryNotFoundError):
                clf.remove_category(last)
        assert clf.store.info()["calibration"] == "current"
        assert clf.store.incomplete() == []
        for name, seed in ((first, 1), ("newcomer", 2)):
            said = said_of(clf.classify(photo(seed)))
            assert said["calibration"] == "current"
            for expert in of_images:
                assert said["neighbors"][expert][0] == [name, pytest.approx(1, abs=1e-6), "image"]


def before_version(old: Old, name: str) -> int:
    return int(old.held["categories"][name]["version"])


def references_by_modality(category: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    texts = {name: n for name, n in category["references"].items() if name.endswith(":text")}
    return texts, {name: n for name, n in category["references"].items() if name not in texts}


@pytest.mark.parametrize("old", ["edge-hash", "server-hash"], indirect=True)
def test_what_was_removed_can_come_back(old: Old) -> None:
    with old.open() as clf:
        again = clf.add_category("removed", texts=["back"], images=[photo(5)])
        assert again.version == old.held["removed"]["removed"]["version"] + 2
        assert categories_of(clf)["removed"]["texts"] == ["back"]
        assert removed_of(clf).keys() <= {"interrupted"}  # a collector told its dead writer that it has lost
        clf.add_category("interrupted", images=[photo(6)])  # in the place of what a dead writer left
        assert sources(clf.store, "interrupted")["clip:text"] == ["interrupted"]


@pytest.mark.parametrize("old", ["edge-hash", "server-hash"], indirect=True)
def test_many_generations_are_added_to(old: Old) -> None:
    """Copying them keeps every vector: what the store says of other references does not change."""
    name = "added to 7 times"
    with old.open(calibration="off") as clf:
        for seed in range(27):
            clf.add_category(name, images=[photo(seed)])
        category = categories_of(clf)[name]
        assert category["references"] == {"clip:image": 34, "dino:image": 34, "clip:text": 1}
        assert len(category["gens"]) < 32
        assert set(old.held["categories"][name]["hashes"]["clip:image"]) < set(category["hashes"]["clip:image"])
        neighbors = [said_of(prediction)["neighbors"]["clip:image"] for prediction in clf.classify_vectors(old.queries)]
    kept = [nearest["clip:image"] for nearest in old.table["neighbors"]]
    alike = [i for i, nearest in enumerate(kept) if all(near[0] == name and near[1] > 0.9 for near in nearest)]
    assert alike
    for i in alike:  # what has been added is like nothing
        assert_same_neighbors({"clip:image": neighbors[i]}, {"clip:image": kept[i]}, f"query {i}")


# That encoders are told apart


def test_other_encoders_are_refused(old: Old) -> None:
    names = list(old.held["encoders"])
    others: dict[str, tuple[list[HashEncoder], str]] = {
        "other names": ([HashEncoder("clip"), HashEncoder("vit")], "vectors of the encoders"),
        "one is missing": ([HashEncoder(names[0])], "vectors of the encoders"),
        "another dimension": ([HashEncoder(name, dim=48) for name in names], "were made by another encoder"),
    }
    for encoders, message in others.values():
        with pytest.raises(EncoderMismatchError, match=message), old.open(encoders=encoders) as clf:
            clf.classify(photo(1))
        with pytest.raises(EncoderMismatchError, match=message), old.open(encoders=encoders) as clf:
            clf.add_category("other", images=[photo(1)])
    with old.open() as clf:
        assert categories_of(clf) == old.held["categories"]
