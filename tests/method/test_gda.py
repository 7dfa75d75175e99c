from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from tests.method.material import Vectors, clusters, references
from zsvec.method.calibration import CENTRED, GDA
from zsvec.method.predict import background as background_module
from zsvec.method.predict import gda as module
from zsvec.method.predict.background import Background
from zsvec.method.predict.gda import Removal, class_similarities, learn_background, left_out
from zsvec.method.similarities import References


def rows(vectors: Vectors) -> tuple[np.ndarray, np.ndarray]:
    names = sorted(vectors)
    every = [np.array(list(vectors[name].values()), dtype=np.float64) for name in names]
    return np.concatenate(every), np.repeat(np.arange(len(names)), [len(v) for v in every])


def scatter(every: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Category means and scatter around the means, in double precision."""
    means = np.stack([every[owner == c].mean(axis=0) for c in range(owner.max() + 1)])
    residuals = every - means[owner]
    return means, residuals.T @ residuals


def naive(
    queries: np.ndarray,
    means: np.ndarray,
    covariance: np.ndarray,
    centre: np.ndarray,
    trusts: Sequence[float] | np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihood ratios of means that are drawn to the centre against one there, and cosines from there."""
    inverse = np.linalg.inv(covariance)

    def distance(x: np.ndarray, mean: np.ndarray) -> float:
        return float((x - mean) @ inverse @ (x - mean))

    drawn = [centre + trust * (mean - centre) for trust, mean in zip(trusts, means, strict=True)]
    ratios = [[0.5 * distance(x, centre) - 0.5 * distance(x, mean) for mean in drawn] for x in queries]
    y, offsets = queries - centre, means - centre
    cosines = y @ offsets.T / np.outer(np.linalg.norm(y, axis=1), np.linalg.norm(offsets, axis=1))
    return np.array(ratios), cosines


def shrunk(total: np.ndarray, n: int, n_categories: int, held: tuple[float, float] | None = None) -> np.ndarray:
    """The covariance of Wang et al., optionally with a given shrinkage and mean variance."""
    dim = len(total)
    ratio = dim / (n - 1)
    shrinkage, spread = held or (ratio / (1 + ratio), np.trace(total) / (dim * (n - n_categories)))
    covariance: np.ndarray = (1 - shrinkage) * total / (n - n_categories) + shrinkage * spread * np.eye(dim)
    return covariance


def judged(queries: np.ndarray, stored: References, background: Background) -> tuple[np.ndarray, np.ndarray]:
    images, means = queries.astype(np.float32), stored.sum_up(background)
    found = class_similarities(images, means, background)
    for one, other in zip(found, class_similarities(images, means, background, once=True), strict=True):
        np.testing.assert_array_equal(one, other)
    return found


by_sign = pytest.mark.parametrize("of_roots", [False, True], ids=["of vectors", "of roots"])


def positive(images: Vectors) -> Vectors:
    """The same without negative components, as after a ReLU."""
    return {name: {key: np.abs(v).tolist() for key, v in vectors.items()} for name, vectors in images.items()}


def rooted(every: np.ndarray) -> np.ndarray:
    """The definition, for vectors without negative components."""
    assert every.min() >= 0
    return np.sqrt(every) / np.sqrt(every.sum(axis=1, keepdims=True))


@by_sign
@pytest.mark.parametrize(
    ("sizes", "dim"), [({"a": 4, "b": 3, "c": 6}, 16), ({"a": 30, "b": 9, "c": 21}, 6), ({"a": 5, "b": 1, "c": 2}, 8)]
)
def test_discriminants_are_those_of_the_definition(sizes: Mapping[str, int], dim: int, of_roots: bool) -> None:
    images, others = (clusters(np.random.default_rng(s), n, 1.0, dim) for s, n in ((1, sizes), (2, {"x": 5})))
    if of_roots:
        images, others = positive(images), positive(others)
    stored, (every, owner), asked = references(images), rows(images), rows(others)[0]
    queries = asked
    if of_roots:
        every, queries = rooted(every), rooted(asked)
    background = learn_background(stored)
    assert background is not None
    assert background.of_roots is of_roots
    means, total = scatter(every, owner)
    covariance, counts = shrunk(total, len(every), 3), np.bincount(owner)
    within = float(np.trace(total @ np.linalg.inv(covariance))) / (len(every) - 3)
    trusts = np.ones(3)
    for _ in range(2):  # the first mean has equal weights
        centre = trusts @ means / trusts.sum()
        apart = np.einsum("cd,de,ce->c", means - centre, np.linalg.inv(covariance), means - centre)
        between = max(float((apart - within / counts).mean()), 0.05 * float(apart.mean()))
        trusts = between / (between + within / counts)
    assert (background.within, background.between) == pytest.approx((within, between), rel=1e-4)
    np.testing.assert_allclose(background.mean, centre, atol=1e-6)
    ratios, cosines = naive(queries, means, covariance, centre, trusts)
    centred, gda = judged(asked, stored, background)
    np.testing.assert_allclose(gda, ratios, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(centred, cosines, atol=1e-5)
    assert {centred.dtype, gda.dtype} == {np.dtype(np.float32)}


@by_sign
@pytest.mark.parametrize(
    ("sizes", "dim"), [({"a": 4, "b": 3, "c": 6}, 16), ({"a": 30, "b": 9, "c": 21}, 6), ({"a": 5, "b": 1, "c": 2}, 8)]
)
def test_leaving_out_is_refitting_with_mean_and_shrinkage_held(
    sizes: Mapping[str, int], dim: int, of_roots: bool
) -> None:
    for scene in [1, 2, 3]:
        images = clusters(np.random.default_rng(3), sizes, 1.0, dim)
        if of_roots:
            images = positive(images)
        stored, (every, owner) = references(images), rows(images)
        if of_roots:
            every = rooted(every)
        background = learn_background(stored)
        assert background is not None
        means, total = scatter(every, owner)
        n, centre = len(every), background.mean.astype(np.float64)
        ratio = dim / (n - 1)
        held = (ratio / (1 + ratio), float(np.trace(total)) / (dim * (n - 3)))
        scenes = [np.flatnonzero(owner == owner[i])[:scene] for i in range(n)]
        removed = [s if i in s else np.append(s[: scene - 1], i) for i, s in enumerate(scenes)]
        got = left_out(stored, background, range(n), [Removal(int(owner[i]), removed[i]) for i in range(n)])
        for i in range(n):
            rest = np.setdiff1d(np.arange(n), removed[i])
            others = every[rest]
            kept = [c for c in range(3) if (owner[rest] == c).any()]
            left = np.stack([others[owner[rest] == c].mean(axis=0) if c in kept else means[c] for c in range(3)])
            residuals = others - left[owner[rest]]
            trusts = [float(background.trust(max((owner[rest] == c).sum(), 1))) for c in range(3)]
            ratios, cosines = naive(every[[i]], left, shrunk(residuals.T @ residuals, n, 3, held), centre, trusts)
            expected = np.where(np.isin(np.arange(3), kept), [ratios[0], cosines[0]], np.nan)
            np.testing.assert_allclose(got[GDA][i], expected[0], rtol=2e-4, atol=2e-3)
            np.testing.assert_allclose(got[CENTRED][i], expected[1], atol=2e-5)


def test_an_image_that_is_left_out_is_no_evidence_for_itself() -> None:
    # Random labels: the image itself reveals the label, other images do not.
    images = clusters(np.random.default_rng(4), dict.fromkeys("abcd", 10), 0.0, 64)
    stored, (every, owner) = references(images), rows(images)
    background = learn_background(stored)
    assert background is not None
    _, itself = judged(every, stored, background)
    got = left_out(stored, background, range(40), [Removal(int(c), np.array([i])) for i, c in enumerate(owner)])
    assert np.mean(itself.argmax(axis=1) == owner) > 0.9
    assert np.mean(got[GDA].argmax(axis=1) == owner) < 0.4


def test_a_category_that_is_one_scene_has_no_evidence_for_its_images() -> None:
    images = clusters(np.random.default_rng(5), {"a": 3, "b": 5}, 1.0, 8)
    stored = references(images)
    background = learn_background(stored)
    assert background is not None
    got = left_out(stored, background, [0], [Removal(0, np.arange(3))])
    for similarity in got.values():
        assert np.isnan(similarity[0, 0])
        assert np.isfinite(similarity[0, 1])


def test_too_few_references_have_no_background() -> None:
    for sizes in [{"a": 8}, {"a": 2, "b": 2}, {"a": 1, "b": 1, "c": 1}]:
        assert learn_background(references(clusters(np.random.default_rng(6), sizes, 1.0))) is None


def test_a_category_of_one_reference_leaves_the_covariance_to_the_others() -> None:
    sizes = {"a": 4, "b": 5, "c": 3}
    images = clusters(np.random.default_rng(12), sizes, 1.0, 16)
    one = clusters(np.random.default_rng(13), {"d": 1}, 1.0, 16)
    before, after = (learn_background(references(some)) for some in (images, {**images, **one}))
    assert before is not None
    assert after is not None
    # N and C grow by one, so N - C and the scatter stay. The shrinkage r / (1 + r) = d / (d + N - 1) falls a little.
    assert before.weight == pytest.approx((1 - 16 / 27) / 9)
    assert after.weight == pytest.approx((1 - 16 / 28) / 9)
    np.testing.assert_allclose(np.abs(after.basis @ before.basis.T), np.eye(9), atol=1e-3)
    was, now = ((1 / found.along - 1 / found.elsewhere) / found.weight for found in (before, after))
    np.testing.assert_allclose(now, was, rtol=1e-4)


def test_references_that_are_alike_have_no_background() -> None:
    images: Vectors = {"a": {str(i): (1.0, 0.0) for i in range(5)}, "b": {str(i): (0.0, 1.0) for i in range(5)}}
    assert learn_background(references(images)) is None


@pytest.mark.parametrize("dim", [12, 300])
def test_blocks_and_rank_hardly_change_it(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = clusters(np.random.default_rng(7), dict.fromkeys("abcdef", 40), 1.0, dim)
    stored: References = references(images)
    queries = rows(clusters(np.random.default_rng(8), {"x": 50}, 0.0, dim))[0].astype(np.float32)
    whole = learn_background(stored)
    monkeypatch.setattr(module, "_BLOCK", 7)
    blocks = learn_background(stored)
    assert whole is not None
    assert blocks is not None
    before, after = (judged(queries, stored, b)[1] for b in (whole, blocks))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-2)
    monkeypatch.setattr(background_module, "_LARGEST_RANK", 8)
    few = whole.kept()
    assert few.basis.shape == (8, dim)
    assert np.sort(few.along) == pytest.approx(np.sort(whole.along)[:8])  # the widest have the least precision
    # Dropped directions get the mean precision, so that evidence has the scale that calibration learned.
    rough = judged(queries, stored, few)[1]
    assert np.mean(rough.argmax(axis=1) == before.argmax(axis=1)) > 0.6
    assert rough.std() == pytest.approx(before.std(), rel=0.25)


@by_sign
def test_a_background_is_kept_but_for_rounding(of_roots: bool) -> None:
    images = clusters(np.random.default_rng(9), dict.fromkeys("abc", 5), 1.0)
    stored = references(positive(images) if of_roots else images)
    background = learn_background(stored)
    assert background is not None
    assert background.references == 15
    read = Background.from_dict(background.to_dict())
    np.testing.assert_allclose(read.basis, background.basis, atol=5e-4)
    for name in ("mean", "along", "elsewhere", "weight", "within", "between", "references", "of_roots"):
        np.testing.assert_array_equal(getattr(read, name), getattr(background, name))
    queries = stored.vectors
    for before, after in zip(*(judged(queries, stored, b) for b in (background, read)), strict=True):
        np.testing.assert_allclose(after, before, rtol=5e-3, atol=5e-3)
    # A second round trip is exact to the last bit, and gives the same object in one process.
    assert read.to_dict() == background.to_dict()
    assert Background.from_dict(json.loads(json.dumps(read.to_dict()))) is read


def test_one_negative_component_prevents_roots() -> None:
    images = positive(clusters(np.random.default_rng(11), dict.fromkeys("abc", 4), 1.0, 8))
    mixed = {**images, "a": {**images["a"], "a000": (-np.array(images["a"]["a000"])).tolist()}}
    for stored, expected in ((images, True), (mixed, False)):
        background = learn_background(references(stored))
        assert background is not None
        assert background.of_roots is expected


def test_roots_keep_signs_and_have_unit_length() -> None:
    found = background_module.roots(np.array([[0.36, -0.64, 0.0], [0, 0, 0]], np.float32))
    assert found == pytest.approx(np.array([[0.6, -0.8, 0], [0, 0, 0]]))
    assert found.dtype == np.float32


def test_a_background_is_outdated_when_references_are_a_tenth_more_or_fewer() -> None:
    background = learn_background(references(clusters(np.random.default_rng(9), dict.fromkeys("abcd", 5), 1.0)))
    assert background is not None
    assert [background.outdated(n) for n in (17, 18, 20, 22, 23)] == [True, False, False, False, True]


def test_a_mean_is_seen_anew_from_another_background() -> None:
    rng = np.random.default_rng(10)
    stored = references(clusters(rng, dict.fromkeys("abc", 5), 1.0))
    one = learn_background(stored)
    other = learn_background(references(clusters(rng, dict.fromkeys("abc", 5), 1.0)))
    assert one is not None
    assert other is not None
    means = stored.class_means
    seen: Sequence[np.ndarray] = [means.seen_from(b).halves for b in (one, other, one)]
    np.testing.assert_array_equal(seen[0], seen[2])
    assert not np.allclose(seen[0], seen[1])
    assert means.seen_from(one) is means.seen_from(one)
