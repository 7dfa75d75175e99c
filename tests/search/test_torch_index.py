"""The torch index equals the numpy index, and a change sends only new rows to a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.encoders.support import needs_gpu
from tests.search.support import ROUNDING, of_sizes, references_of, rows_in, unit
from zsvec.encoders.torch.device import choose_device
from zsvec.method.predict.reference_aggregation import AGGREGATIONS
from zsvec.method.similarities import Compared, References
from zsvec.search import torch_index as module
from zsvec.search.base import Expert, Index, IndexSpec
from zsvec.search.in_process import NumpyIndex
from zsvec.search.torch_index import TorchIndex, TorchSimilarities, product

Floats = NDArray[np.float32]

DEVICES = ["cpu", pytest.param("auto", marks=needs_gpu, id="gpu")]
HALF = 1e-3  # of a cosine in float16

prop = settings(deadline=None, max_examples=40)


def on(device: Any, dtype: str) -> Callable[[References], TorchIndex]:
    """Indexes references on a device, on a CPU too."""
    where = choose_device(device, "float32").device
    return lambda references: TorchIndex.of(references, device=where, dtype=getattr(torch, dtype))


def compared(index: Index, queries: Floats, nearest: int) -> tuple[Compared, NDArray[np.intp], Floats]:
    """Similarities of images, rows of the nearest references, and similarities of these."""
    references = index.references
    expert = Expert.of("clip:image", references.names, {name: i for i, name in enumerate(references.names)})
    found = index.search(queries, nearest, expert)
    assert (found.name, found.coverage is expert.coverage) == ("clip:image", True)
    assert len(found.nearest) == len(queries)
    row = {source: i for i, source in enumerate(references.sources)}
    shape = len(queries), min(nearest, len(row))
    rows = np.array([[row[neighbor.source] for neighbor in image] for image in found.nearest], dtype=np.intp)
    cosines = np.array([[neighbor.similarity for neighbor in image] for image in found.nearest])
    assert all(neighbor.category == neighbor.source.split(" ")[0] for image in found.nearest for neighbor in image)
    np.testing.assert_array_equal(cosines.astype(np.float32), cosines)  # nothing computes in other formats
    return found.similarities, rows.reshape(shape), cosines.astype(np.float32).reshape(shape)


def assert_alike(
    index: Index, queries: Floats, m: int = 3, nearest: int = 5, *, atol: float = ROUNDING, exact: bool = True
) -> None:
    """As numpy says."""
    expected, _, cosines = compared(NumpyIndex(index.references), queries, nearest)
    got, rows, found = compared(index, queries, nearest)
    assert len(got) == len(expected) == len(queries)
    np.testing.assert_array_equal(got.counts, expected.counts)
    assert got.exact
    assert expected.exact
    np.testing.assert_allclose(found, cosines, atol=ROUNDING)
    np.testing.assert_allclose(np.take_along_axis(queries @ index.references.vectors.T, rows, 1), found, atol=ROUNDING)
    assert all(len(set(image)) == len(image) for image in rows.tolist())
    for method in AGGREGATIONS:
        numbers = got.aggregate(method, m)
        assert numbers.dtype == np.float32
        scale = np.float32(1) if method != "prototype" else np.maximum(index.references.norms, 1e-6)
        np.testing.assert_allclose(
            numbers * scale, expected.aggregate(method, m) * scale, atol=atol, err_msg=f"{method} {m}"
        )


# ---- the same answers

SIZES = st.lists(st.one_of(st.integers(1, 6), st.integers(1, 6), st.integers(7, 300)), min_size=1, max_size=12)


@prop
@given(SIZES, st.integers(1, 320), st.integers(0, 400), st.integers(0, 4), st.sampled_from([0, 128, 10**6]))
def test_answers_are_those_of_numpy(sizes: list[int], m: int, nearest: int, n_images: int, steps: int) -> None:
    index = on("cpu", "float32")(of_sizes(sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_STEPS", steps if m < 40 else 128)
        patch.setattr(module, "_BLOCK", 256)
        assert_alike(index, unit(np.random.default_rng(1), n_images), m, nearest)


@pytest.mark.parametrize("device", DEVICES)
def test_answers_are_those_of_numpy_on_every_device(device: Any) -> None:
    for m in [1, 2, 5, 16, 17, 200, 400]:
        for sizes in [(1,), (1, 1, 1), (350, 1, 2, 1, 64, 65, 3), (16,) * 9, (4, 5, 7, 8, 9)]:
            queries = unit(np.random.default_rng(1), 7)
            assert_alike(on(device, "float32")(of_sizes(sizes)), queries, m)
            assert_alike(on(device, "float16")(of_sizes(sizes)), queries, m, atol=HALF)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_references_that_are_equally_near(device: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    same = unit(rng, 1)
    index = on(device, dtype)(
        references_of({"a": same.repeat(70, axis=0), "b": same, "c": unit(rng, 3), "d": -same.repeat(3, axis=0)})
    )
    assert_alike(index, np.concatenate([same, -same, unit(rng, 2)]), 2, 72, atol=HALF)


@pytest.mark.parametrize("device", DEVICES)
def test_unequal_categories_are_not_filled_up_to_the_longest(device: Any) -> None:
    sizes = [20_000, *[1] * 5_000, *[3] * 500]
    index = on(device, "float32")(of_sizes(sizes))
    assert sum(group.columns.numel() for group in index.groups) <= 2 * sum(sizes)
    assert_alike(index, unit(np.random.default_rng(1), 2))


@pytest.mark.parametrize("device", DEVICES)
def test_leaders_are_compared_in_float32(device: Any) -> None:
    """Forty references that float16 cannot put in order, one of each category, before a thousand others."""
    rng = np.random.default_rng(0)
    query = unit(rng, 1, 128)
    near = query + 1e-5 * np.arange(40)[:, None].astype(np.float32) * unit(rng, 40, 128) + 0.02 * unit(rng, 1, 128)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    parts = {f"near-{i:02}": near[[i]] for i in rng.permutation(40)}
    index = on(device, "float16")(references_of({**parts, "others": unit(rng, 1000, 128)}))
    similarities, rows, cosines = compared(index, query, 40)
    true = query @ index.references.vectors.T

    assert len(np.unique((query.astype(np.float16) @ near.T.astype(np.float16)).astype(np.float16))) < 10
    np.testing.assert_allclose(cosines, -np.sort(-true)[:, :40], atol=3e-7)
    assert set(rows[0]) == set(np.argsort(-true[0])[:40])
    for method in AGGREGATIONS:
        np.testing.assert_allclose(similarities.aggregate(method, 5)[0, :40], true[0, :40], atol=3e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_all_that_is_computed_is_on_the_device(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device ``meta``, which computes shapes only and takes no tensor of the CPU."""
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))
    index = TorchIndex.of(of_sizes([300, 1, 5, 5, 64, 17]), device=torch.device("meta"), dtype=dtype)
    index = index.updated(of_sizes([300, 1, 5, 6, 64, 17]), {"0003"})
    similarities, rows, _ = compared(index, unit(np.random.default_rng(0), 4), 3)
    assert rows.shape == (4, 3)
    assert isinstance(similarities, TorchSimilarities)
    for tensor in (index.vectors, similarities.values, *(t for g in index.groups for t in (g.counts, g.columns))):
        assert tensor.device.type == "meta"
    for method in AGGREGATIONS:
        for m in (1, 5, 70):
            assert similarities.aggregate(method, m).shape == (4, 6)


def test_on_a_cpu_torch_makes_the_products_only() -> None:
    index = module.build(of_sizes([3]), IndexSpec("torch", "cpu"))
    assert isinstance(index, NumpyIndex)
    assert index.product is product
    expert = Expert.of("clip:image", index.references.names, dict.fromkeys(index.references.names, 0))
    found = index.search(index.references.vectors[:1], 1, expert)
    assert found.product is product  # class means are multiplied by the same threads


# ---- changes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_only_categories_that_changed_are_sent(sent: list[Floats], device: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    parts = {name: unit(rng, size) for name, size in {"b": 3, "d": 40, "f": 1, "h": 5}.items()}
    index = on(device, dtype)(references_of(parts))
    assert rows_in(sent) == [49]

    def change(changed: set[str], **now: Floats | None) -> None:
        nonlocal index
        for name, vectors in now.items():
            parts.pop(name, None)
            if vectors is not None:
                parts[name] = vectors
        index = index.updated(references_of(parts), changed)
        fresh = on(device, dtype)(references_of(parts))
        sent.pop()  # of the fresh one
        assert torch.equal(index.vectors, fresh.vectors)
        assert_alike(index, unit(rng, 3), atol=HALF)

    change({"e"}, e=unit(rng, 2))  # new, in the middle
    assert rows_in(sent) == [2]
    change({"a", "i"}, a=unit(rng, 4), i=unit(rng, 1))  # new, at both ends
    assert rows_in(sent) == [4, 1]
    change({"d"}, d=np.concatenate([parts["d"], unit(rng, 1)]))  # grown
    assert rows_in(sent) == [41]
    change({"a", "b"}, a=None, b=unit(rng, 3))  # removed and replaced
    assert rows_in(sent) == [3]
    change({"h", "i"}, h=unit(rng, 7), i=unit(rng, 2))  # side by side
    assert rows_in(sent) == [9]
    change({"b"}, b=None)
    change({"x"})  # an unknown category
    change(set())
    assert rows_in(sent) == []


def test_a_category_that_is_said_to_have_changed_is_sent_though_it_looks_the_same(sent: list[Floats]) -> None:
    """The same images, embedded in another number format."""
    index = on("cpu", "float32")(of_sizes([3, 3], seed=0))
    renewed = of_sizes([3, 3], seed=1)
    assert renewed.hashes == index.references.hashes
    index = index.updated(renewed, {"0000", "0001"})
    assert rows_in(sent) == [6, 6]
    np.testing.assert_array_equal(index.vectors[:6], renewed.vectors)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcdefgh"), st.one_of(st.none(), st.integers(1, 40)), min_size=1), max_size=12
    ),
    st.sampled_from(["float32", "float16"]),
)
def test_after_any_changes_it_is_as_if_made_anew(steps: list[dict[str, int | None]], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    parts = {"always": unit(rng, 4)}
    index = on("cpu", dtype)(references_of(parts))
    for step in steps:
        for name, size in step.items():
            parts.pop(name, None)
            if size:
                parts[name] = unit(rng, size)
        index = index.updated(references_of(parts), step.keys())
        assert torch.equal(index.vectors, on("cpu", dtype)(references_of(parts)).vectors)
    assert_alike(index, unit(rng, 3), atol=HALF)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_index_in_use_does_not_change(device: Any, dtype: Any) -> None:
    queries = unit(np.random.default_rng(1), 4)
    index = on(device, dtype)(of_sizes([3, 90, 1, 8]))
    vectors = index.vectors.clone()
    expected = {method: compared(index, queries, 3)[0].aggregate(method, 2) for method in AGGREGATIONS}
    begun, *_ = compared(index, queries, 3)

    later = index
    for seed in range(1, 5):
        later = later.updated(of_sizes([5, 90, 7], seed), {"0000", "0001", "0002", "0003"})
        compared(later, queries, 3)

    assert torch.equal(index.vectors, vectors)
    for method, numbers in expected.items():
        np.testing.assert_array_equal(begun.aggregate(method, 2), numbers)
        np.testing.assert_array_equal(compared(index, queries, 3)[0].aggregate(method, 2), numbers)
