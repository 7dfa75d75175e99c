from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.method.material import Vectors, calibrated, clusters, references, texts
from zsvec.method.calibrate.leave_one_out import LeftOut, each_left_out
from zsvec.method.calibration import Calibration, LogLinear
from zsvec.method.predict.gda import learn_backgrounds
from zsvec.method.quality.label_errors import Suspect, judge, suspects, verdicts, wrong_label


def found(experts: Mapping[str, Vectors]) -> list[Suspect]:
    stored = {name: references(vectors) for name, vectors in experts.items()}
    return suspects(stored, verdicts(stored, *calibrated(experts)))


def in_blocks(experts: Mapping[str, Vectors], size: int) -> list[Suspect]:
    stored = {name: references(vectors) for name, vectors in experts.items()}
    calibration, _ = calibrated(experts)
    backgrounds = learn_backgrounds(stored) if calibration.classwise else {}
    blocks = list(each_left_out(stored, ("top_mean", "prototype"), 5, size, backgrounds))
    assert all(len(block.labels) <= size for block in blocks)
    return suspects(stored, [said for block in blocks for said in verdicts(stored, calibration, block)])


def mislabelled(rng: np.random.Generator, sizes: Mapping[str, int], wrong: int) -> tuple[Vectors, dict[str, str]]:
    """Clusters with the first images of each moved to the next category; and the true category of moved images."""
    clean = clusters(rng, sizes, signal=3.0)
    names = sorted(clean)
    out: dict[str, dict[str, Sequence[float]]] = {name: {} for name in names}
    moved = {}
    for position, name in enumerate(names):
        for i, (digest, vector) in enumerate(clean[name].items()):
            into = names[(position + 1) % len(names)] if i < wrong else name
            out[into][digest] = vector
            if i < wrong:
                moved[digest] = name
    return out, moved


# ---- by hand


def test_the_posterior_of_a_wrong_label() -> None:
    for probability, noise, n_categories, expected in [
        (0.5, 0.2, 4, 0.05 / (0.8 * 0.5 + 0.05)),
        (0.0, 0.2, 4, 1.0),  # no other reference supports the label
        (1.0, 0.2, 4, 0.05 / 0.85),
        (0.0, 0.0, 4, 0.0),  # where no label is wrong, none is
        (0.25, 1.0, 4, 1.0),
    ]:
        assert wrong_label(np.array([probability]), noise, n_categories)[0] == pytest.approx(expected)


def test_verdicts_by_hand() -> None:
    pool = LogLinear({"clip:image": {"top_mean": 1.0}}, noise=0.3)
    rows = np.log(np.array([[0.9, 0.05, 0.05], [0.02, 0.18, 0.8], [0.2, 0.5, 0.3]], np.float32))
    sample = LeftOut(
        ("a", "b", "c"),
        np.array([0, 0, 1]),
        np.ones((1, 3), bool),
        {"clip:image": {"top_mean": rows}},
        hashes=("1", "2", "3"),
    )
    stored = references({"a": {"1": (1, 0), "2": (0, 1)}, "b": {"3": (1, 0)}, "c": {"4": (0, 1)}})
    calibration = Calibration(1, "top_mean", 5, 0.05, 3, {}, pool, pool)
    # 0.1 / (0.7 · 0.02 + 0.1); the others are at 0.1 / (0.7 · 0.9 + 0.1) and 0.1 / (0.7 · 0.5 + 0.1)
    said = verdicts({"clip:image": stored}, calibration, sample)
    assert [(verdict.key, verdict.mistaken) for verdict in said] == [
        (("a", "1"), False),
        (("a", "2"), True),
        (("b", "3"), False),
    ]
    assert [verdict.confidence for verdict in said] == pytest.approx([0.9, 0.8, 0.5])
    (told,) = suspects({"clip:image": stored}, said)
    assert (told.category, told.hash, told.source, told.instead, told.copied) == ("a", "2", "2", "c", False)
    assert told.probability == pytest.approx(0.1 / 0.114)


# ---- stores


@pytest.mark.parametrize("size", [10**9, 7])
def test_wrong_labels_are_found_and_no_others(size: int) -> None:
    vectors, moved = mislabelled(np.random.default_rng(1), dict.fromkeys("abcdef", 12), wrong=2)
    experts = {"clip:image": vectors, "clip:text": texts(np.random.default_rng(2), "abcdef")}
    told = found(experts) if size > 100 else in_blocks(experts, size)
    assert {suspect.hash: suspect.instead for suspect in told} == moved
    assert all(0.5 < suspect.probability <= 1 for suspect in told)
    assert [s.probability for s in told] == sorted((s.probability for s in told), reverse=True)


def test_right_labels_are_not_suspected() -> None:
    vectors = clusters(np.random.default_rng(3), dict.fromkeys("abcdef", 12), signal=3.0)
    assert found({"clip:image": vectors}) == in_blocks({"clip:image": vectors}, 10) == []


def test_texts_and_single_images_are_not_judged() -> None:
    vectors, moved = mislabelled(np.random.default_rng(4), dict.fromkeys("abcdef", 30), wrong=4)
    alone = next(iter(vectors["a"].values()))
    experts = {
        "clip:image": {**vectors, "single": {"only": [-x for x in alone]}},
        "clip:text": texts(np.random.default_rng(5), ["a", "b", "words alone"]),
    }
    told = {suspect.hash for suspect in found(experts)}
    assert told
    assert told <= set(moved)


def copied(rng: np.random.Generator) -> tuple[dict[str, dict[str, Sequence[float]]], set[tuple[str, str]]]:
    """Clusters of which two images each are in the next category, too; the second under another hash."""
    out = {name: dict(vectors) for name, vectors in clusters(rng, dict.fromkeys("abcdef", 12), signal=3.0).items()}
    names, wrong = sorted(out), set()
    for position, name in enumerate(names):
        into = names[(position + 1) % len(names)]
        for digest in (f"{name}000", f"{name}001"):
            copy = digest if digest.endswith("0") else f"copy of {digest}"
            out[into][copy] = out[name][digest]
            wrong.add((into, copy))
    return out, wrong


@pytest.mark.parametrize("size", [10**9, 7])
def test_of_a_picture_in_two_categories_the_right_label_is_kept(size: int) -> None:
    vectors, wrong = copied(np.random.default_rng(6))
    told = found({"clip:image": vectors}) if size > 100 else in_blocks({"clip:image": vectors}, size)
    assert {(suspect.category, suspect.hash) for suspect in told} == wrong
    assert all(suspect.copied for suspect in told)
    assert all(suspect.instead == suspect.hash.removeprefix("copy of ")[0] for suspect in told)


def test_a_burst_of_a_copied_picture_does_not_make_its_label_right() -> None:
    """A burst of "a" is in "b", and its first image is in "a", too."""
    rng = np.random.default_rng(11)
    vectors = {name: dict(found) for name, found in clusters(rng, dict.fromkeys("abcd", 12), signal=3.0).items()}
    first = np.array(vectors["a"]["a000"])
    vectors["b"]["burst0"] = first.tolist()
    for i in range(1, 6):
        near = first + rng.normal(scale=0.06, size=len(first))
        vectors["b"][f"burst{i}"] = (near / np.linalg.norm(near)).tolist()
    stored = {"clip:image": references(vectors, {f"burst{i}": "burst" for i in range(6)})}
    calibration, _ = calibrated({"clip:image": vectors})
    sample = next(each_left_out(stored, ("top_mean", "prototype"), 5, 10**9, {}))
    told = suspects(stored, verdicts(stored, replace(calibration, classwise=None), sample))
    assert {(s.hash, s.category, s.instead) for s in told} == {(f"burst{i}", "b", "a") for i in range(6)}


def test_references_that_were_removed_since_the_calibration_leave_verdicts_on_the_rest() -> None:
    rng = np.random.default_rng(5)
    images, others = (clusters(rng, dict.fromkeys("abcd", 5), 3.0) for _ in range(2))
    calibration, _ = calibrated({"clip:image": images, "dino:image": others})
    assert calibration.backgrounds.keys() == {"clip:image", "dino:image"}
    for left in ("abcd", "ab"):
        stored = {"clip:image": references(images), "dino:image": references({name: others[name] for name in left})}
        judged = judge(stored, calibration)
        assert {verdict.key[0] for verdict in judged} == set(left)
        assert suspects(stored, judged) == []


def test_of_a_picture_in_three_categories_one_label_is_kept() -> None:
    out = {
        name: dict(vectors)
        for name, vectors in clusters(np.random.default_rng(7), dict.fromkeys("abcd", 12), signal=3.0).items()
    }
    out["b"]["x"] = out["c"]["x"] = out["a"]["a000"]
    assert {(s.category, s.hash, s.instead) for s in found({"clip:image": out})} == {("b", "x", "a"), ("c", "x", "a")}


def test_a_copy_in_a_category_without_another_image_is_not_judged() -> None:
    vectors = clusters(np.random.default_rng(8), dict.fromkeys("abcd", 12), signal=3.0)
    alone = {"x": vectors["a"]["a000"]}
    assert found({"clip:image": {**vectors, "e": alone}, "clip:text": texts(np.random.default_rng(9), "abcde")}) == []


def test_no_verdict_if_all_images_are_copies() -> None:
    picture = {"x": [1.0] + [0.0] * 15}
    experts = {"clip:image": {"a": picture, "b": picture}, "clip:text": texts(np.random.default_rng(10), "ab")}
    assert found(experts) == []
