"""References of three categories under two encoders, drawn, mislabelled and replaced: the same images for both."""

from __future__ import annotations

import numpy as np
import pytest

from zsvec.evaluation.ablations import drawn, image_keys, laid_out, mislabelled, only, replaced
from zsvec.method.similarities import References, image_experts

NAMES = ("ant", "bee", "cat")
EACH = 5


def some(seed: int, dim: int, each: int = EACH) -> References:
    """The images of every encoder have the same hashes; their rows come in another order."""
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


@pytest.mark.parametrize("count", [1, 3, 9])
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
