"""Audits of reference images: by hand, of a store, and of photographs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

import zsvec
from tests.method.material import Vectors, clusters, references
from tests.support import given_images
from tests.support import isolated as isolated
from zsvec import CategoryInput
from zsvec.classifier import Classifier
from zsvec.curation.audit import Audit, Duplicates, Outlier, StoredImage, ThinCategory, audited, split_kept
from zsvec.encoders import EncoderSet
from zsvec.errors import InvalidInputError
from zsvec.inputs.folders import read_categories
from zsvec.method.quality.label_errors import Verdict
from zsvec.testing import HashEncoder

DATA = Path(os.environ.get("ZSVEC_DATA") or Path(__file__).parents[3] / "shared" / "data") / "caltech24"


def verdict(name: str, digest: str, wrong: float, instead: str, *, mistaken: bool = True) -> Verdict:
    return Verdict(key=(name, digest), wrong=wrong, instead=instead, mistaken=mistaken, copied=False, confidence=0.9)


def audit_of(vectors: Vectors, said: list[Verdict] | None = None) -> Audit:
    return audited({"clip:image": references(vectors)}, said)


def turned(*degrees: float) -> list[tuple[float, float]]:
    return [(float(np.cos(angle)), float(np.sin(angle))) for angle in np.radians(degrees)]


def circle(**categories: Sequence[float]) -> dict[str, dict[str, tuple[float, float]]]:
    """Images of categories by their angles; a hash is the category and the angle."""
    return {
        name: {f"{name}{angle:g}": vector for angle, vector in zip(degrees, turned(*degrees), strict=True)}
        for name, degrees in categories.items()
    }


# ---- by hand


def test_labels_and_confusions_follow_the_verdicts() -> None:
    said = [
        verdict("a", "a0", 0.2, "b"),
        verdict("a", "a40", 0.9, "c"),  # doubtful, so no evidence of a confusion
        verdict("b", "b100", 0.1, "c", mistaken=False),
        verdict("b", "b140", 0.3, "a"),
        verdict("c", "c200", 0.95, "a"),
        verdict("c", "c240", 0.4, "b"),
    ]
    found = audit_of(circle(a=[0, 40, 80], b=[100, 140, 180], c=[200, 240, 280]), said)
    assert (found.images, found.judged, found.calibrated) == (9, 6, True)
    assert (found.confidence, found.ece) == (pytest.approx(0.9), pytest.approx(0.9 - 1 / 6))
    assert found.ece_floor is not None
    assert 0 < found.ece_floor < 0.2
    assert [(one.hash, one.category, one.instead, one.probability) for one in found.labels] == [
        ("c200", "c", "a", 0.95),
        ("a40", "a", "c", 0.9),
    ]
    assert [(one.categories, [image.hash for image in one.images]) for one in found.confusions] == [
        (("a", "b"), ["b140", "a0"]),
        (("b", "c"), ["c240"]),
    ]


def test_duplicates_across_categories_are_first() -> None:
    # Distances within a category are .234 (40°) and .826 (80°): a quarter of the median, .234 / 4, is 20°.
    vectors = circle(a=[0, 40, 80, 81], b=[120, 160, 200], c=[39, 240, 280, 320])
    found = audit_of(vectors)
    assert [([image.hash for image in one.images], one.across) for one in found.duplicates] == [
        (["a40", "c39"], True),
        (["a80", "a81"], False),
    ]
    assert found.duplicates[0].likeness == pytest.approx(np.cos(np.radians(1)), abs=1e-6)
    assert found.duplicates[0].images[0].source == "a40"


def test_an_image_that_is_like_no_other() -> None:
    rng = np.random.default_rng(0)
    vectors = {name: dict(images) for name, images in clusters(rng, dict.fromkeys("abcd", 8), signal=3.0).items()}
    vectors["b"]["strange"] = [
        -value for value in np.mean([v for one in vectors.values() for v in one.values()], axis=0)
    ]
    length = float(np.linalg.norm(vectors["b"]["strange"]))
    vectors["b"]["strange"] = [value / length for value in vectors["b"]["strange"]]
    (found,) = audit_of(vectors).outliers
    assert (found.image.category, found.image.hash) == ("b", "strange")
    assert found.similarity < 0.3


def test_categories_with_few_images_and_few_pictures() -> None:
    wide = [0, 40, 80, 120]
    vectors = circle(a=wide, b=[150, 190], c=[200, 201, 202, 203, 290, 291], d=[300, 301, 302])
    stored = {"clip:image": references(vectors), "clip:text": references({"e": {"text": (1.0, 0.0)}})}
    found = audited(stored, None)
    assert [(one.category, one.images, one.pictures, one.uniform) for one in found.thin] == [
        ("e", 0, 0, False),
        ("d", 3, 1, True),
        ("c", 6, 2, True),
        ("b", 2, 2, False),
    ]
    assert found.thin[0].spread is None
    assert found.thin[3].spread == pytest.approx(1 - np.cos(np.radians(40)), abs=1e-6)


def test_a_category_of_uniform_images() -> None:
    rng = np.random.default_rng(1)
    vectors = {name: dict(images) for name, images in clusters(rng, dict.fromkeys("abcdef", 9), signal=1.0).items()}
    centre = np.array(next(iter(vectors["c"].values())))
    for digest in vectors["c"]:
        near = centre + 0.09 * rng.normal(size=centre.size)
        vectors["c"][digest] = list(near / np.linalg.norm(near))
    (found,) = audit_of(vectors).thin
    assert (found.category, found.images, found.uniform) == ("c", 9, True)
    assert isinstance(found, ThinCategory)
    assert found.spread is not None
    assert found.spread < 0.15


def test_the_encoder_that_tells_categories_apart_compares() -> None:
    good = circle(a=[0, 40, 80], b=[150, 190, 230])
    poor = {name: dict.fromkeys(images, (1.0, 0.0)) for name, images in good.items()}
    found = audited({"blind:image": references(poor), "clip:image": references(good)}, None)
    assert found.duplicates == []


def test_without_images_nothing_is_doubtful() -> None:
    texts = {"clip:text": references({"a": {"t": (1.0, 0.0)}, "b": {"t": (0.0, 1.0)}})}
    for verdicts in (None, []):
        found = audited(texts, verdicts)
        assert found == Audit(images=0, judged=0, calibrated=verdicts is not None)
        assert audited({}, verdicts) == found


def test_lines_are_json_with_a_summary_first() -> None:
    found = audit_of(
        circle(a=[0, 40, 41], b=[100, 140]), [verdict("a", "a0", 0.9, "b"), verdict("b", "b100", 0.1, "a")]
    )
    lines = [json.loads(json.dumps(line, allow_nan=False)) for line in found.lines()]
    assert lines[0] == {
        "finding": "summary",
        "images": 5,
        "judged": 2,
        "calibrated": True,
        "labels": 1,
        "duplicates": 1,
        "outliers": 1,
        "thin": 2,
        "confusions": 1,
        "kept": 0,
        "mistaken": 2,
    }
    assert [line["finding"] for line in lines[1:]] == ["label", "duplicates", "outlier", "thin", "thin", "confusion"]
    assert list(lines[1]) == ["finding", "category", "hash", "source", "probability", "instead", "copied"]
    assert lines[2]["images"][0] == {"category": "a", "hash": "a40", "source": "a40"}


@pytest.mark.parametrize("kind", ["label", "duplicates", "outlier", "confusion"])
def test_a_finding_is_left_out_once_all_of_its_images_are_kept(kind: str) -> None:
    found = audit_of(
        circle(a=[0, 40, 41], b=[100, 140]), [verdict("a", "a0", 0.9, "b"), verdict("b", "b100", 0.1, "a")]
    )
    field = {"label": "labels", "outlier": "outliers", "confusion": "confusions"}.get(kind, kind)
    (one,) = getattr(found, field)
    images = {(image.category, image.hash) for image in getattr(one, "images", [getattr(one, "image", one)])}
    waiting, kept = split_kept(found, lambda finding, *key: finding == kind and key in images)
    changed: dict[str, Any] = {field: [], "kept": 1}
    assert waiting == replace(found, **changed)
    assert [len(getattr(kept, name)) for name in ("labels", "duplicates", "outliers", "confusions", "thin")] == [
        int(name == field) for name in ("labels", "duplicates", "outliers", "confusions", "thin")
    ]
    assert split_kept(found, lambda finding, *key: finding == kind and key in images - {min(images)})[0] == found
    assert split_kept(found, lambda finding, *key: finding != kind)[0].kept == 3


def test_points_of_others_need_not_be_kept() -> None:
    own, point = (StoredImage(category="a", hash=digest, source="") for digest in ("0" * 64, "shop#1"))
    found = Audit(
        images=2, judged=0, calibrated=False, duplicates=[Duplicates(images=[own, point], across=False, likeness=1.0)]
    )
    assert split_kept(found, lambda _, name, digest: digest == own.hash)[0].duplicates == []
    only = replace(found, duplicates=[Duplicates(images=[point, point], across=False, likeness=1.0)])
    assert split_kept(only, lambda *_: True)[0] == only


# ---- of a store


NAMES = "abcdef"
ENCODER = HashEncoder(dim=16)


@pytest.fixture
def clf() -> Iterator[Classifier]:
    """A store of which two images a category are under the next one, known by vectors."""
    vectors = clusters(np.random.default_rng(1), dict.fromkeys(NAMES, 12), signal=3.0)
    with zsvec.open(":memory:", encoders=[ENCODER]) as classifier:
        rows = {name: list(vectors[name].values()) for name in NAMES}
        add(classifier, {name: rows[NAMES[i - 1]][:2] + rows[name][2:] for i, name in enumerate(NAMES)})
        yield classifier


def add(clf: Classifier, vectors: Mapping[str, Sequence[Sequence[float]]]) -> None:
    clf.add_categories(
        CategoryInput(name=name, texts=[], vectors={f"{ENCODER.name}:image": rows}) for name, rows in vectors.items()
    )


def test_a_store_is_audited_and_stays_as_it_is(clf: Classifier) -> None:
    before, calibration = clf.categories(), clf._store.calibration()
    found = clf.references.audit()
    assert (found.images, found.judged, found.calibrated) == (72, 72, True)
    assert found.labels == clf.references.suspects()
    assert len(found.labels) == 12
    assert (clf.categories(), clf._store.calibration()) == (before, calibration)


def test_a_kept_label_is_not_a_finding_until_the_keep_is_undone(clf: Classifier) -> None:
    before = clf.references.audit()
    first, *others = before.labels
    clf.references.keep(first.category, first.hash, finding="label")
    found = clf.references.audit()
    assert (found.labels, found.kept) == (others, 1)
    assert found.confusions == before.confusions
    assert clf.references.suspects() == others
    assert clf.references.audit(kept=True) == before
    assert clf.calibrate().suspects == others
    assert clf.history.undo().what == "keep"
    assert clf.references.audit() == before
    for name, finding in ((first.category, "thin"), ("nowhere", "label"), (first.instead, "label")):
        with pytest.raises(InvalidInputError):
            clf.references.keep(name, first.hash, finding=finding)  # type: ignore[arg-type]


def test_a_kept_finding_is_doubted_again(clf: Classifier) -> None:
    before = clf.references.audit()
    first = before.labels[0]
    clf.references.keep(first.category, first.hash, finding="label")
    clf.references.keep(first.category, first.hash, finding="outlier")
    waiting, kept = clf.references.split_kept(before)
    assert (waiting, kept.labels) == (clf.references.audit(), [first])
    clf.references.unkeep(first.category, first.hash, finding="label")
    assert clf.references.audit() == before
    assert len(clf.category(first.category).kept) == 1
    assert clf.history.undo().what == "unkeep"
    assert clf.references.audit().labels == before.labels[1:]
    for name, finding in ((first.category, "thin"), ("nowhere", "label"), (first.instead, "label")):
        with pytest.raises(InvalidInputError):
            clf.references.unkeep(name, first.hash, finding=finding)  # type: ignore[arg-type]


def test_many_images_of_a_category_are_kept() -> None:
    rows = np.random.default_rng(0).normal(size=(1500, 16))
    with zsvec.open(":memory:", encoders=[ENCODER], calibration="off") as clf:
        add(clf, {"a": list(rows / np.linalg.norm(rows, axis=1, keepdims=True))})
        hashes = [one.hash for one in clf.references.of("a")]
        clf.references.keep("a", hashes, finding="outlier")
        images = [StoredImage(category="a", hash=digest, source="") for digest in hashes]
        found = Audit(
            images=1500, judged=0, calibrated=False, outliers=[Outlier(image=one, similarity=0.0) for one in images]
        )
        assert clf.references.split_kept(found) == (
            replace(found, outliers=[], kept=1500, labels=[], duplicates=[], confusions=[]),
            replace(found, labels=[], duplicates=[], confusions=[], thin=[]),
        )


def test_a_calibration_stays_current_when_findings_are_kept(clf: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = clf._store.calibration()
    fits = Mock(side_effect=clf._calibrator._fit)
    monkeypatch.setattr(clf._calibrator, "_fit", fits)
    first = clf.references.audit().labels[0]
    before = clf.category(first.category)
    for decide in (clf.references.keep, clf.references.unkeep):
        decide(first.category, first.hash, finding="label")
        assert (clf.info()["calibration"], clf._store.calibration()) == ("current", calibration)
    clf.history.undo()
    assert clf.classify_vectors({ENCODER.name: np.eye(16, dtype=np.float32)[:1]})[0].calibration == "current"
    after = clf.category(first.category)
    assert (after.rev, after.version > before.version, len(after.kept)) == (before.rev, True, 1)
    assert not fits.called
    clf.references.move(first.hash, source=first.category, target=first.instead)
    assert fits.called
    assert clf.category(first.category).rev > before.rev


def test_vectors_are_read_once(clf: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Mock(side_effect=clf._searcher.references)
    monkeypatch.setattr(clf._searcher, "references", reads)
    clf.references.audit()
    assert reads.call_count == 1


def test_findings_without_a_calibration() -> None:
    with zsvec.open(":memory:", encoders=[ENCODER], calibration="off") as clf:
        assert clf.references.audit() == Audit(images=0, judged=0, calibrated=False)
        vectors = clusters(np.random.default_rng(1), dict.fromkeys("ab", 4), signal=3.0)
        add(clf, {name: list(rows.values()) for name, rows in vectors.items()})
        add(clf, {"c": list(vectors["a"].values())[:1]})
        found = clf.references.audit()
    assert (found.calibrated, found.judged, found.labels, found.confusions) == (False, 0, [], [])
    assert [{image.category for image in one.images} for one in found.duplicates if one.across] == [{"a", "c"}]
    assert "c" in {one.category for one in found.thin}


# ---- of photographs


@pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no {DATA}: set ZSVEC_DATA to the folder of the research data")
def test_wrong_labels_and_copies_among_photographs(
    load_once: Callable[..., EncoderSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsvec.encoders.load_encoders", load_once)
    images = {one.name: given_images(one) for one in read_categories(DATA / "references")[::2]}
    names = sorted(images)
    # Every fifth image is under the next category but two; and a file of each fourth category is in the next one, too.
    placed = {
        name: [path for i, path in enumerate(images[name]) if i % 5]
        + [path for i, path in enumerate(images[names[position - 3]]) if i % 5 == 0]
        for position, name in enumerate(names)
    }
    copied = {names[position]: images[names[position - 1]][1] for position in range(0, len(names), 4)}
    for name, path in copied.items():
        placed[name].append(path)
    with zsvec.open(":memory:", profile="offline") as clf:
        clf.add_categories(CategoryInput(name=name, images=paths) for name, paths in placed.items())
        found = clf.references.audit()
    accused = {(one.category, Path(one.source)) for one in found.labels}
    wrong = {(name, path) for name, paths in placed.items() for path in paths if path not in images[name]}
    assert len(accused & wrong) >= 0.9 * len(accused)
    assert len(accused & wrong) >= 0.8 * len(wrong)
    across = {Path(one.images[0].source) for one in found.duplicates if one.across and one.likeness > 0.999}
    assert across == set(copied.values())
