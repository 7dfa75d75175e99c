from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings

from tests.method.material import Vectors, clusters, references, stores
from zsvec.method.calibrate.leave_one_out import leave_one_out
from zsvec.method.quality import scenes as module
from zsvec.method.quality.scenes import TWIN, image_rows, most_discriminating, scenes

Keys = Sequence[tuple[str, str]]


def keys_of(experts: Mapping[str, Vectors]) -> Keys:
    images = [categories for expert, categories in experts.items() if expert.endswith(":image")]
    return sorted({(name, digest) for categories in images for name, found in categories.items() for digest in found})


def found(experts: Mapping[str, Vectors], images: Keys | None = None) -> dict[tuple[str, str], set[str]]:
    stored = {expert: references(vectors) for expert, vectors in experts.items()}
    together = scenes(stored, image_rows(stored), keys_of(experts) if images is None else images)
    return {key: same - {key[1]} for key, same in together.items()}


def doubtful(experts: Mapping[str, Vectors]) -> set[tuple[str, str]]:
    stored = {expert: references(vectors) for expert, vectors in experts.items()}
    found = leave_one_out(stored, ["max"], 1, len(keys_of(experts)), {})
    return set() if found is None else set(found.copies)


def test_groups_join_the_scenes_that_are_found() -> None:
    images = bursts(np.random.default_rng(1), "abcd", 6, 3)
    stored = {"clip:image": references(images, {"00": "x", "11": "x", "50": "y"})}
    together = scenes(stored, image_rows(stored), keys_of({"clip:image": images}))
    scene = {f"{i}{j}" for i in range(2) for j in range(3)}
    for name in "abcd":
        assert together[name, "00"] == together[name, "12"] == scene
        assert together[name, "50"] == {"50", "51", "52"}
    assert together["a", "00"] is together["a", "12"]  # one set per scene


def unit(vector: np.ndarray) -> list[float]:
    return list(vector / np.linalg.norm(vector))


def bursts(rng: np.random.Generator, names: str, originals: int, each: int, dim: int = 32) -> Vectors:
    """Categories of bursts: images around a centre for each scene, which are around a centre for each category."""
    out: dict[str, dict[str, list[float]]] = {}
    for name in names:
        centre = 1.2 * rng.normal(size=dim)
        scene = [centre + rng.normal(size=dim) for _ in range(originals)]
        out[name] = {
            f"{i}{j}": unit(at + 0.25 * rng.normal(size=dim)) for i, at in enumerate(scene) for j in range(each)
        }
    return out


def test_bursts_are_found() -> None:
    for originals in [4, 10]:
        images = bursts(np.random.default_rng(1), "abcd", originals, 5)
        vectors = [np.array(list(of_category.values())) for of_category in images.values()]
        cosines = np.array([(v @ v.T)[np.triu_indices(len(v), 1)] for v in vectors])
        assert np.mean(cosines >= TWIN) < 0.01
        got = found({"clip:image": images})
        for name in "abcd":
            for i in range(originals):
                for j in range(5):
                    assert got[name, f"{i}{j}"] == {f"{i}{k}" for k in range(5) if k != j}


def test_images_that_come_one_by_one_are_alone() -> None:
    images = bursts(np.random.default_rng(2), "abcd", 20, 1)
    assert len(found({"clip:image": images})) <= 0.05 * 80


def test_the_right_half_of_a_category_that_is_mislabelled_is_no_scene() -> None:
    rng = np.random.default_rng(3)
    truth = clusters(rng, dict.fromkeys("abcdef", 12), 2.0, dim=64)
    mixed: dict[str, dict[str, Sequence[float]]] = {name: {} for name in truth}
    for name, vectors in truth.items():
        for digest, vector in vectors.items():
            mixed[name if rng.random() > 0.5 else str(rng.choice(list(truth)))][digest] = vector
    got = found({"clip:image": mixed})
    assert len(got) <= 0.25 * 72


def test_the_encoder_that_tells_categories_apart_best_decides() -> None:
    rng = np.random.default_rng(4)
    sharp = bursts(rng, "abcd", 6, 3)
    blurred = {
        name: {digest: unit(0.1 * np.array(vector) + rng.normal(size=32)) for digest, vector in vectors.items()}
        for name, vectors in sharp.items()
    }
    alone = found({"sharp:image": sharp})
    assert alone
    for order in ({"sharp:image": sharp, "a:image": blurred}, {"a:image": blurred, "sharp:image": sharp}):
        assert found(order) == alone


def test_the_largest_spread_decides_among_encoders_of_equal_accuracy() -> None:
    def pair(sign: int, degrees: float, first: str) -> dict[str, list[float]]:
        angles = np.radians([-degrees / 2, degrees / 2])
        return {f"{first}{i}": [sign * np.cos(angle), np.sin(angle)] for i, angle in enumerate(angles)}

    wide, narrow = ({"a": pair(1, degrees, "a"), "b": pair(-1, degrees, "b")} for degrees in (60, 10))
    mixed: Vectors = {"a": {"a0": [1, 0], "a1": [0, 1]}, "b": {"b0": [0.96, 0.28], "b1": [0.28, 0.96]}}
    for names in permutations(["x:image", "y:image", "z:image"]):
        stored = {name: references(one) for name, one in zip(names, (wide, narrow, mixed), strict=True)}
        assert most_discriminating(stored, image_rows(stored), stored["x:image"].keys) == names[0]


def test_only_scenes_of_wanted_categories_are_found() -> None:
    images = bursts(np.random.default_rng(1), "abcd", 10, 5)
    assert {name for name, _ in found({"clip:image": images})} == {"a", "b", "c", "d"}
    assert {name for name, _ in found({"clip:image": images}, [("b", "00"), ("c", "10")])} == {"b", "c"}
    assert found({"clip:image": images}, []) == {}


def test_a_scene_is_all_that_hangs_together() -> None:
    # 1 and 2 are twins, and so are 2 and 3; 1 and 3 are not.
    angle = np.arccos(TWIN) * 0.9
    images: Vectors = {"a": {str(i): (np.cos(i * angle), np.sin(i * angle)) for i in (1, 2, 3)}, "b": {"4": (-1, 0)}}
    got = found({"clip:image": images})
    assert got == {("a", "1"): {"2", "3"}, ("a", "2"): {"1", "3"}, ("a", "3"): {"1", "2"}}


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = bursts(np.random.default_rng(6), "abc", 5, 4)
    images = {**images, "d": {"other": next(iter(images["a"].values())), "x": list(np.eye(32)[0])}}
    before, shared = found({"clip:image": images}), doubtful({"clip:image": images})
    monkeypatch.setattr(module, "_BLOCK", 1)
    assert (found({"clip:image": images}), doubtful({"clip:image": images})) == (before, shared)
    assert shared == {("a", "00"), ("d", "other")}


def test_a_large_category_is_judged_by_some_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    images = bursts(np.random.default_rng(7), "ab", 12, 4)
    monkeypatch.setattr(module, "_SAMPLE", 16)
    assert len(found({"clip:image": images})) >= 0.9 * 96


# ---- the same picture in two categories


def test_a_picture_of_two_categories() -> None:
    images: Vectors = {"a": {"1": (1, 0), "2": (0.6, 0.8)}, "b": {"1": (1, 0), "3": (0, 1)}, "c": {"4": (-1, 0)}}
    assert doubtful({"clip:image": images}) == {("a", "1"), ("b", "1")}


def test_all_encoders_that_have_both_must_agree_that_it_is_the_same() -> None:
    clip: Vectors = {"a": {"1": (1, 0)}, "b": {"2": (1, 0)}}
    other: Vectors = {"a": {"1": (1, 0)}, "b": {"2": (0, 1)}}
    assert doubtful({"clip:image": clip, "dino:image": other}) == set()
    assert doubtful({"dino:image": other, "clip:image": clip}) == set()
    assert doubtful({"clip:image": clip, "dino:image": {"a": {"1": (1, 0)}}}) == {("a", "1"), ("b", "2")}


@settings(deadline=None, max_examples=40)
@given(stores())
def test_scenes_are_sets_of_images_of_one_category(experts: dict[str, Vectors]) -> None:
    got, every = found(experts), set(keys_of(experts))
    for (name, digest), others in got.items():
        assert others
        assert digest not in others
        assert {(name, other) for other in others} <= every
        for other in others:
            assert got[name, other] == (others | {digest}) - {other}


def test_memory_does_not_grow_with_images_times_categories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 2**18)
    images = clusters(np.random.default_rng(4), {f"{i:04d}": 2 for i in range(2000)}, 1.0, dim=8)
    stored = {name: references(images) for name in ("clip:image", "dino:image")}
    keys = keys_of({"clip:image": images})
    tracemalloc.start()
    scenes(stored, image_rows(stored), keys)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6  # 4,000 times 2,000 cosines take 32e6 bytes
