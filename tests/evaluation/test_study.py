"""Changed references, divisions of categories, and the cache of embeddings."""

from __future__ import annotations

import io
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zsvec
from tests.support import isolated, photos  # noqa: F401
from zsvec.classifier import Classifier
from zsvec.evaluation.study import (
    Embeddings,
    drawn,
    image_keys,
    known_categories,
    mislabelled,
    only,
    replaced,
)
from zsvec.method.similarities import References, image_experts, laid_out
from zsvec.testing import HashEncoder

NAMES = ("ant", "bee", "cat")
EACH = 5


def some(seed: int, dim: int, each: int = EACH) -> References:
    """Returns references with the same hashes for each seed, in another order of the rows."""
    random = np.random.default_rng(seed)
    rows = random.permutation([(name, f"{name}{i}") for name in NAMES for i in range(each)])
    vectors = random.normal(size=(len(rows), dim)).astype(np.float32)
    return laid_out(vectors, [name for name, _ in rows], [digest for _, digest in rows], [f"/{d}" for _, d in rows])


@pytest.fixture
def references() -> dict[str, References]:
    return {"clip:image": some(0, 4), "clip:text": some(1, 4, each=1), "dino:image": some(2, 3)}


def test_layout(references: dict[str, References]) -> None:
    images = references["clip:image"]
    assert images.names == NAMES
    assert images.starts.tolist() == [0, 5, 10, 15]
    assert images.labels == [name for name in NAMES for _ in range(EACH)]
    assert all(source == f"/{digest}" for digest, source in zip(images.hashes, images.sources, strict=True))
    means = [images.vectors[start : start + EACH].mean(axis=0) for start in (0, 5, 10)]
    np.testing.assert_allclose(images.norms, np.linalg.norm(means, axis=1), rtol=1e-6)
    assert only(references, ["clip:text", "nobody:image"]) == {"clip:text": references["clip:text"]}
    assert list(image_experts(references)) == ["clip:image", "dino:image"]
    assert image_keys(references) == sorted((name, f"{name}{i}") for name in NAMES for i in range(EACH))


@pytest.mark.parametrize("count", [1, 9])
def test_drawn(references: dict[str, References], count: int) -> None:
    found = drawn(references, count, seed=4)
    assert found["clip:text"] is references["clip:text"]
    clip, dino = (set(found[expert].keys) for expert in ("clip:image", "dino:image"))
    assert clip == dino
    assert np.diff(found["dino:image"].starts).tolist() == [min(count, EACH)] * 3
    rows = {digest: row for row, digest in enumerate(references["dino:image"].hashes)}
    kept = [rows[digest] for digest in found["dino:image"].hashes]
    np.testing.assert_array_equal(found["dino:image"].vectors, references["dino:image"].vectors[kept])
    if count < EACH:
        assert clip != set(drawn(references, count, seed=5)["clip:image"].keys)


def test_mislabelled(references: dict[str, References]) -> None:
    found = mislabelled(references, 0.4, seed=0)
    assert found["clip:text"] is references["clip:text"]
    clip, dino = (dict(zip(found[e].hashes, found[e].labels, strict=True)) for e in ("clip:image", "dino:image"))
    assert clip == dino
    assert sum(label != digest[:3] for digest, label in clip.items()) == 6
    before, after = references["dino:image"], found["dino:image"]
    row = {digest: i for i, digest in enumerate(before.hashes)}
    np.testing.assert_array_equal(after.vectors, before.vectors[[row[digest] for digest in after.hashes]])


def test_replaced(references: dict[str, References]) -> None:
    others = {"clip": np.full((2, 4), [[7], [8]], np.float32), "dino": np.full((2, 3), [[7], [8]], np.float32)}
    found = replaced(references, 0.2, others, seed=0)
    assert found["clip:text"] is references["clip:text"]
    values = []
    for expert in ("clip:image", "dino:image"):
        before, after = references[expert], found[expert]
        assert after.keys == before.keys
        foreign = (after.vectors != before.vectors).all(axis=1)
        values.append({after.hashes[row]: after.vectors[row, 0] for row in np.flatnonzero(foreign)})
    assert values[0] == values[1]
    assert len(values[0]) == 3
    assert set(values[0].values()) <= {7, 8}


# ---- divisions into known and unknown categories

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TWO_HUNDRED = [f"kind {number}" for number in range(200)]


def test_sizes() -> None:
    sizes = {CIFAR10: 6, ("a", "b"): 1, tuple("abc"): 2, tuple("abcd"): 2, tuple("abcde"): 3, tuple("abcdefgh"): 5}
    sizes |= {tuple(TWO_HUNDRED[:99]): 59, tuple(TWO_HUNDRED[:100]): 20, tuple(TWO_HUNDRED): 20}
    for names, known in sizes.items():  # 60 % rounded, and at least one on each side; of 100 or more, 20
        divisions = [known_categories(names, seed) for seed in range(20)]
        assert {len(division) for division in divisions} == {known}
        assert all(division <= set(names) for division in divisions)
        assert len(set(divisions)) > 1


def test_divisions_are_pinned() -> None:
    """Published results stay reproducible."""
    assert known_categories(CIFAR10, 0) == {"automobile", "deer", "frog", "horse", "ship", "truck"}


def test_every_category_is_known_as_often() -> None:
    divisions = [known_categories(CIFAR10, seed) for seed in range(2000)]
    often = Counter(name for division in divisions for name in division)
    # 1200 of 2000 each, with a standard deviation of 22
    assert all(1100 < often[name] < 1300 for name in CIFAR10)
    pairs = Counter(name for division in divisions if "cat" in division for name in division)
    # of the about 1200, 5 of 9
    assert all(560 < pairs[name] < 780 for name in CIFAR10 if name != "cat")


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 120), st.integers(-5, 2**40), st.randoms(use_true_random=False))
def test_neither_order_nor_repetition_counts(n: int, seed: int, shuffle: random.Random) -> None:
    names = [*TWO_HUNDRED[:n], *TWO_HUNDRED[: n // 2]]
    shuffle.shuffle(names)
    assert known_categories(names, seed) == known_categories(TWO_HUNDRED[:n], seed)


# ---- the cache of embeddings


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    with zsvec.open(":memory:", encoders=[HashEncoder("hash")]) as classifier:
        classifier.add_category("cat", texts=["a cat"])
        yield classifier


def npz(row: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, row)
    return file.getvalue()


def npy(row: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, row)
    return file.getvalue()


def test_a_damaged_file_is_embedded_again(classifier: Classifier, tmp_path: Path) -> None:
    images = photos(1, 2)
    _, expected = Embeddings(tmp_path / "kept", classifier).of(images, on_error=lambda *_: None)
    kept = sorted((tmp_path / "kept").rglob("*.f32"))
    whole = [path.read_bytes() for path in kept]
    damaged = {
        "nothing": b"",
        "no array": b"text",
        "half an array": whole[0][:-9],
        "half a header": whole[0][:40],
        "several rows": npy(np.zeros((2, 8), np.float32)),
        "another dimension": npy(np.zeros(3, np.float32)),
        "another dtype": npy(np.zeros(8, np.float64)),
        "objects": npy(np.array([None] * 8)),
        "one number": npy(np.float32(1)),
        "a ZIP archive": npz(np.zeros(8, np.float32)),
        "half a ZIP archive": npz(np.zeros(8, np.float32))[:40],
        "a huge array": npy(np.zeros(8, np.float32)).replace(b"(8,)", b"(9999999999999,)"),
        "zeros": bytes(len(whole[0])),
    }
    for kind, content in damaged.items():
        kept[0].write_bytes(content)
        _, found = Embeddings(tmp_path / "kept", classifier).of(images, on_error=lambda *_: None)
        np.testing.assert_array_equal(found["hash"], expected["hash"], kind)
        assert [path.read_bytes() for path in kept] == whole, kind


def test_an_interrupted_embedding_is_continued(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(images: Iterable[Any]) -> Iterator[Any]:
        for i, image in enumerate(images):
            if i == 12:
                raise KeyboardInterrupt
            yield image

    monkeypatch.setattr("zsvec.evaluation.study._CHUNK", 5)
    unreadable = tmp_path / "broken.png"
    unreadable.write_bytes(b"no image")
    images: list[Any] = [*photos(*range(20)), unreadable]
    encoder = cast("HashEncoder", classifier.encoders["hash"])
    cache = Embeddings(tmp_path / "kept", classifier)
    with pytest.raises(KeyboardInterrupt):
        cache.of(images, on_error=lambda *_: None, track=interrupted)
    assert encoder.images_encoded == 10
    left_out: list[str] = []
    for _ in range(2):
        positions, vectors = cache.of(images, on_error=lambda source, reason: left_out.append(source))
        assert positions == list(range(20))
        assert vectors["hash"].shape == (20, encoder.fingerprint.dim)
        assert encoder.images_encoded == 20
    assert left_out == [str(unreadable)] * 2


def test_the_order_of_the_encoders_changes_no_vectors(tmp_path: Path) -> None:
    found = []
    dims = {"a": 4, "b": 6}
    for names in (("a", "b"), ("b", "a")):
        with zsvec.open(":memory:", encoders=[HashEncoder(name, dim=dims[name]) for name in names]) as classifier:
            found.append(Embeddings(tmp_path / "kept", classifier).of(photos(1), on_error=lambda *_: None)[1])
    for name in dims:
        np.testing.assert_array_equal(found[0][name], found[1][name])


@pytest.mark.skipif(os.name != "posix", reason="named pipes of POSIX")
def test_a_pipe_in_the_cache_is_not_waited_for(classifier: Classifier, tmp_path: Path) -> None:
    Embeddings(tmp_path / "kept", classifier).of(photos(1), on_error=lambda *_: None)
    (kept,) = (tmp_path / "kept").rglob("*.f32")
    kept.unlink()
    os.mkfifo(kept)
    positions, _ = Embeddings(tmp_path / "kept", classifier).of(photos(1), on_error=lambda *_: None)
    assert positions == [0]
