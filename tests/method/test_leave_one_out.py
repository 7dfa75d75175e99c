from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.method.material import METHODS, Vectors, clusters, references, stores, unit
from zsvec.method.calibrate import leave_one_out as module
from zsvec.method.calibrate.leave_one_out import LeftOut, leave_one_out
from zsvec.method.calibration import LOG_COUNT
from zsvec.method.predict.gda import Removal, learn_background
from zsvec.method.predict.gda import left_out as classwise_left_out
from zsvec.method.quality.scenes import TWIN, image_rows, scenes
from zsvec.method.similarities import References

NAN = np.nan
EVERYTHING = 10**9

prop = settings(deadline=None, max_examples=40)


def left_out(
    experts: Mapping[str, Vectors], methods: Sequence[str] = METHODS, m: int = 5, most: int = EVERYTHING
) -> LeftOut:
    found = leave_one_out(laid_out(experts), methods, m, most, {})
    assert found is not None
    return found


def images_of(experts: Mapping[str, Vectors]) -> list[tuple[str, str]]:
    """The reference images that are left out, in the order of `LeftOut`: by category, then by hash."""
    found = leave_one_out(laid_out(experts), ["max"], 1, EVERYTHING, {})
    return sorted(all_images(experts) - set(found.copies if found else ()) or all_images(experts))


def all_images(experts: Mapping[str, Vectors]) -> set[tuple[str, str]]:
    kept = [categories for expert, categories in experts.items() if expert.endswith(":image")]
    return {(name, digest) for categories in kept for name, found in categories.items() for digest in found}


def laid_out(experts: Mapping[str, Vectors]) -> dict[str, References]:
    return {name: references(vectors) for name, vectors in experts.items()}


def similarity(query: np.ndarray, kept: Sequence[np.ndarray], method: str, m: int) -> float:
    if not kept:
        return NAN
    if method == "prototype":
        average = np.mean(kept, axis=0)
        return float(query @ average / np.linalg.norm(average))
    every = sorted((float(query @ vector) for vector in kept), reverse=True)
    return {"max": every[0], "mean": float(np.mean(every)), "top_mean": float(np.mean(every[:m]))}[method]


def naive(experts: Mapping[str, Vectors], expert: str, method: str, m: int) -> np.ndarray:
    """One image at a time: aggregates the references outside the scene of the image, in double precision."""
    stored = laid_out(experts)
    together = scenes(stored, image_rows(stored), all_images(experts))
    encoder, _, modality = expert.rpartition(":")
    categories = sorted({name for vectors in experts.values() for name in vectors})
    rows = []
    for category, digest in images_of(experts):
        query = experts.get(f"{encoder}:image", {}).get(category, {}).get(digest)
        row = [NAN] * len(categories)
        if query is None:
            rows.append(row)
            continue
        for c, name in enumerate(categories):
            kept = {other: np.array(vector, dtype=float) for other, vector in experts[expert].get(name, {}).items()}
            if modality == "image" and name == category:
                same = {digest, *together.get((category, digest), ())}
                kept = {other: vector for other, vector in kept.items() if other not in same}
            row[c] = similarity(np.array(query, dtype=float), list(kept.values()), method, m)
        rows.append(row)
    return np.array(rows)


# ---- groups

LINE: Vectors = {
    "a": {"1": (1.0, 0.0), "2": (0.6, 0.8), "3": (0.8, 0.6), "4": (0.0, 1.0)},
    "b": {"5": (0.0, -1.0), "6": (-1.0, 0.0), "7": (-0.6, -0.8)},
}


def test_images_of_a_group_are_left_out_together() -> None:
    stored = {"clip:image": references(LINE, {"1": "x", "2": "x", "5": "x"})}
    found = leave_one_out(stored, ["mean"], 5, EVERYTHING, {})
    assert found is not None
    assert found.hashes == ("1", "2", "3", "4", "5", "6", "7")
    own = found.aggregations["clip:image"]["mean"][np.arange(7), found.labels]
    # 1 and 2 have 3 and 4 left; 3 and 4 have all others; 5 is of the same group in another category, and that is none
    assert own == pytest.approx([0.4, 0.88, (0.8 + 0.96 + 0.6) / 3, (0.0 + 0.8 + 0.6) / 3, 0.4, 0.3, 0.7])
    others = found.aggregations["clip:image"]["mean"][np.arange(7), 1 - found.labels]
    assert others[0] == pytest.approx((0 - 1 - 0.6) / 3)  # 5 is there
    assert found.aggregations["clip:image"][LOG_COUNT][0, 0] == pytest.approx(np.log(2))


def test_a_category_that_is_one_group_is_a_category_of_one() -> None:
    stored = {"clip:image": references(LINE, dict.fromkeys("567", "x"))}
    found = leave_one_out(stored, METHODS, 5, EVERYTHING, {})
    assert found is not None
    for name in METHODS:
        own = found.aggregations["clip:image"][name][np.arange(7), found.labels]
        assert np.isnan(own).tolist() == [False] * 4 + [True] * 3


def test_the_classwise_similarities_leave_a_group_out() -> None:
    rng = np.random.default_rng(0)
    vectors = clusters(rng, dict.fromkeys("abc", 8), signal=2.0)
    groups = {digest: digest[:2] for name in "abc" for digest in list(vectors[name])[:5]}
    stored = {"clip:image": references(vectors, groups)}
    background = learn_background(stored["clip:image"])
    assert background is not None
    found = leave_one_out(stored, [], 5, EVERYTHING, {"clip:image": background})
    assert found is not None
    grouped = found.aggregations["clip:image"]
    for name in "abc":
        for digest in vectors[name]:
            gone = {digest} | {other for other in groups if digest in groups and groups[other] == groups[digest]}
            rows = np.flatnonzero([other in gone for other in stored["clip:image"].hashes])
            row = stored["clip:image"].hashes.index(digest)
            removal = Removal("abc".index(name), rows)
            alone = classwise_left_out(stored["clip:image"], background, [row], [removal])
            for aggregation, similarity in alone.items():
                np.testing.assert_allclose(grouped[aggregation][row], similarity[0], rtol=1e-4, atol=1e-5)


# ---- tables worked by hand

PLANE: dict[str, Vectors] = {
    "clip:text": {"a": {"t": (0.8, 0.6)}, "b": {"t": (0.6, -0.8)}},
    "clip:image": {"a": {"1": (1.0, 0.0), "2": (0.6, 0.8)}, "b": {"3": (0.0, 1.0)}},
}


def test_by_hand() -> None:
    for method, third in [
        ("max", 0.8),
        ("mean", 0.4),
        ("top_mean", 0.4),
        ("prototype", 0.4 / np.sqrt(0.8)),  # the mean of (1, 0) and (0.6, 0.8) is (0.8, 0.4)
    ]:
        got = left_out(PLANE, [method])
        assert got.categories == ("a", "b")
        np.testing.assert_array_equal(got.labels, [0, 0, 1])
        assert list(got.aggregations) == ["clip:text", "clip:image"]
        np.testing.assert_allclose(
            got.aggregations["clip:image"][method], [[0.6, 0.0], [0.6, 0.8], [third, NAN]], atol=1e-6
        )
        np.testing.assert_allclose(
            got.aggregations["clip:text"][method], [[0.8, 0.6], [0.96, -0.28], [0.6, -0.8]], atol=1e-6
        )
        assert {similarity.dtype for by_name in got.aggregations.values() for similarity in by_name.values()} == {
            np.dtype(np.float32)
        }


def test_three_references_by_hand() -> None:
    for method, m, own in [
        ("max", 1, [0.6, 0.8, 0.8]),
        ("mean", 1, [0.3, 0.4, 0.7]),
        ("top_mean", 1, [0.6, 0.8, 0.8]),
        ("top_mean", 2, [0.3, 0.4, 0.7]),
        # Means of the others: (0.3, 0.9), (0.8, 0.4) and (0.5, 0.5).
        ("prototype", 1, [0.3 / np.sqrt(0.9), 0.4 / np.sqrt(0.8), 1.4 / np.sqrt(2)]),
    ]:
        images: Vectors = {"a": {"1": (1, 0), "2": (0, 1), "3": (0.6, 0.8)}, "b": {"4": (0.8, -0.6)}}
        got = left_out({"clip:image": images}, [method], m).aggregations["clip:image"][method]
        np.testing.assert_allclose(got[:3, 0], own, atol=1e-6)
        np.testing.assert_allclose(got[:3, 1], [0.8, -0.6, 0.0], atol=1e-6)


def test_coverage() -> None:
    got = left_out({**PLANE, "dino:image": {"b": {"3": (1.0,)}}, "dino:text": {"c": {"t": (1.0,)}}})
    assert got.categories == ("a", "b", "c")
    np.testing.assert_array_equal(got.coverage, [[1, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]])


def test_an_image_that_one_encoder_lacks() -> None:
    for method in METHODS:
        dino = {"a": {"2": (0.0, 1.0), "5": (1.0, 0.0)}, "b": {"3": (0.8, 0.6)}}
        got = left_out({**PLANE, "dino:image": dino, "dino:text": {"b": {"t": (0.6, 0.8)}}}, [method])
        np.testing.assert_array_equal(got.labels, [0, 0, 0, 1])  # 1, 2, 5 and 3
        by = {expert: by_name[method] for expert, by_name in got.aggregations.items()}
        assert np.isnan(by["dino:image"][0]).all()
        assert np.isnan(by["dino:text"][0]).all()
        assert np.isnan(by["clip:image"][2]).all()
        assert np.isnan(by["clip:text"][2]).all()
        np.testing.assert_allclose(by["dino:image"][1:3], [[0.0, 0.6], [0.0, 0.8]], atol=1e-6)
        np.testing.assert_allclose(by["dino:text"][1:], [[NAN, 0.8], [NAN, 0.6], [NAN, 0.96]], atol=1e-6)


def test_texts_of_an_encoder_without_images_say_nothing() -> None:
    for method in METHODS:
        got = left_out({**PLANE, "siglip:text": {"a": {"t": (1.0, 0.0)}}}, [method])
        assert np.isnan(got.aggregations["siglip:text"][method]).all()
        np.testing.assert_array_equal(got.coverage[2], [True, False])


# ---- twins


def test_twins_are_no_evidence_for_each_other() -> None:
    for method in METHODS:
        images: Vectors = {"a": {"1": (1, 0), "2": (1, 0), "3": (0.6, 0.8)}, "b": {"4": (0.8, -0.6), "5": (0, 1)}}
        got = left_out({"clip:image": images}, [method], 1).aggregations["clip:image"][method]
        np.testing.assert_allclose(got[:2, 0], [0.6, 0.6], atol=1e-6)
        assert got[2, 0] == pytest.approx(0.6, abs=1e-6)  # 1 and 2 are evidence for 3


def test_an_image_of_two_categories_is_evidence_but_not_left_out() -> None:
    for method in METHODS:
        images: Vectors = {"a": {"1": (1, 0), "2": (0.6, 0.8)}, "b": {"1": (1, 0), "3": (0, 1)}}
        got = left_out({"clip:image": images}, [method], 1)
        np.testing.assert_array_equal(got.labels, [0, 1])
        b = {"max": 0.8, "mean": 0.7, "top_mean": 0.8, "prototype": 1.4 / np.sqrt(2)}[method]
        a = {"max": 0.8, "mean": 0.4, "top_mean": 0.8, "prototype": 0.4 / np.sqrt(0.8)}[method]
        np.testing.assert_allclose(got.aggregations["clip:image"][method], [[0.6, b], [a, 0.0]], atol=1e-6)


def test_if_all_images_are_of_two_categories_all_are_left_out() -> None:
    for method in METHODS:
        images: Vectors = {"a": {"1": (1, 0), "2": (0, 1)}, "b": {"1": (1, 0), "2": (0, 1)}}
        np.testing.assert_array_equal(left_out({"clip:image": images}, [method]).labels, [0, 0, 1, 1])


def test_a_category_of_twins_alone_is_a_category_of_one() -> None:
    for method in METHODS:
        images: Vectors = {"a": {"1": (1, 0), "2": (1, 0)}, "b": {"3": (0, 1), "4": (0.6, 0.8)}}
        texts: Vectors = {"a": {"t": (0.6, 0.8)}, "b": {"t": (0, 1)}}
        got = left_out({"clip:image": images, "clip:text": texts}, [method], 1)
        np.testing.assert_array_equal(
            np.isnan(got.aggregations["clip:image"][method]), [[1, 0], [1, 0], [0, 0], [0, 0]]
        )
        np.testing.assert_allclose(got.aggregations["clip:text"][method][:2], [[0.6, 0.0]] * 2, atol=1e-6)


def test_the_same_picture_to_one_encoder_and_another_to_the_other_is_no_twin() -> None:
    for method in METHODS:
        clip: Vectors = {"a": {"1": (1, 0), "2": (1, 0)}, "b": {"3": (0, 1)}}
        dino: Vectors = {"a": {"1": (1, 0), "2": (0.6, 0.8)}, "b": {"3": (0, 1)}}
        for experts in ({"clip:image": clip, "dino:image": dino}, {"dino:image": dino, "clip:image": clip}):
            got = left_out(experts, [method]).aggregations
            np.testing.assert_allclose(got["clip:image"][method][:2, 0], [1.0, 1.0], atol=1e-6)
            np.testing.assert_allclose(got["dino:image"][method][:2, 0], [0.6, 0.6], atol=1e-6)


def test_an_encoder_that_has_only_one_of_two_twins_says_nothing_of_them() -> None:
    for method in METHODS:
        clip: Vectors = {"a": {"1": (1, 0), "2": (1, 0)}, "b": {"3": (0, 1)}}
        # The same hash in another category, and there with another one, is of no account either.
        dino: Vectors = {"a": {"1": (1, 0)}, "b": {"1": (0.6, 0.8), "2": (0, 1)}}
        got = left_out({"clip:image": clip, "dino:image": dino}, [method])
        (first, second, *_) = got.aggregations["clip:image"][method]
        np.testing.assert_allclose([first, second], [[NAN, 0], [NAN, 0]], atol=1e-6)


def test_a_picture_saved_twice_is_left_out_by_all_encoders() -> None:
    for method in METHODS:
        clip: Vectors = {"a": {"1": (1, 0), "2": (1, 0), "4": (0.6, 0.8)}, "b": {"3": (0, 1)}}
        dino: Vectors = {"a": {"1": (0, 1), "2": (0, 1), "4": (0.8, 0.6)}, "b": {"3": (1, 0)}}
        got = left_out({"clip:image": clip, "dino:image": dino}, [method], 1).aggregations
        np.testing.assert_allclose(got["clip:image"][method][:2, 0], [0.6, 0.6], atol=1e-6)
        np.testing.assert_allclose(got["dino:image"][method][:2, 0], [0.6, 0.6], atol=1e-6)


def test_how_alike_twins_are() -> None:
    for cosine, own in [(TWIN - 1e-4, TWIN - 1e-4), (TWIN + 1e-4, NAN)]:
        images: Vectors = {"a": {"1": (1, 0), "2": (cosine, np.sqrt(1 - cosine**2))}, "b": {"3": (0, 1)}}
        got = left_out({"clip:image": images}, ["max"]).aggregations["clip:image"]["max"]
        np.testing.assert_allclose(got[:2, 0], [own, own], atol=1e-6)


# ---- the number of references


def test_an_image_does_not_count_for_its_own_category() -> None:
    images: Vectors = {
        "a": {"1": (1, 0), "2": (1, 0), "3": (0.6, 0.8)},  # 1 and 2 are the same picture
        "b": {"4": (0, 1), "5": (0.8, -0.6)},
        "c": {"6": (0.6, -0.8)},
    }
    got = left_out({"clip:image": images, "clip:text": {"d": {"t": (1, 0)}}}, ["max"]).aggregations
    counts = [[1, 2, 1, NAN], [1, 2, 1, NAN], [2, 2, 1, NAN], [3, 1, 1, NAN], [3, 1, 1, NAN], [3, 2, NAN, NAN]]
    np.testing.assert_allclose(got["clip:image"][LOG_COUNT], np.log(counts), atol=1e-6)
    assert got["clip:text"].keys() == {"max"}


def test_numbers_are_uneven_where_other_categories_have_others() -> None:
    images: Vectors = {"a": {"1": (1, 0), "2": (0.8, 0.6)}, "b": {"3": (0, 1), "4": (0.6, 0.8)}}
    texts: Vectors = {"a": {"t": (1, 0), "u": (0, 1)}, "b": {"t": (0, 1)}}
    even = left_out({"clip:image": images, "clip:text": texts}, ["max"])
    assert [even.uneven(expert) for expert in even.aggregations] == [False, False]
    uneven = left_out({"clip:image": {**images, "c": {"5": (-1, 0)}}}, ["max"])
    assert uneven.uneven("clip:image")


def test_categories_of_which_no_image_can_be_left_out_are_not_judged() -> None:
    images: Vectors = {
        "a": {"1": (1, 0), "2": (0.8, 0.6)},
        "b": {"3": (-1, 0)},
        "c": {"4": (0, 1), "5": (0.6, 0.8)},
        "d": {"6": (0, -1), "7": (0, -1)},  # one scene
    }
    found = left_out({"clip:image": images, "clip:text": {name: {"t": (0.6, 0.8)} for name in "abcde"}}, ["max"])
    judged = found.judged()
    assert judged.categories == ("a", "c", "e")
    assert judged.hashes == ("1", "2", "4", "5")
    np.testing.assert_array_equal(judged.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(judged.coverage, [[True, True, False], [True, True, True]])
    similarities = [[0.8, 0.6, NAN], [0.8, 0.96, NAN], [0.6, 0.8, NAN], [0.96, 0.8, NAN]]
    np.testing.assert_allclose(judged.aggregations["clip:image"]["max"], similarities, atol=1e-6)
    np.testing.assert_allclose(judged.aggregations["clip:text"]["max"], np.repeat([[0.6], [0.96], [0.8], [1]], 3, 1))
    assert [found.uneven("clip:image"), judged.uneven("clip:image")] == [True, False]


def test_a_category_whose_only_image_is_a_copy_is_not_judged() -> None:
    images: Vectors = {
        "a": {"1": (1, 0), "2": (0.8, 0.6)},
        "b": {"3": (0, 1), "4": (0.6, 0.8)},
        "copy": {"1": (1, 0)},  # has no row in the sample
    }
    judged = left_out({"clip:image": images}, ["max"]).judged()
    assert (judged.categories, judged.hashes) == (("a", "b"), ("2", "3", "4"))


def test_all_categories_are_judged_if_images_of_all_or_of_none_can_be_left_out() -> None:
    pairs: Vectors = {"a": {"1": (1, 0), "2": (0.8, 0.6)}, "b": {"3": (0, 1), "4": (0.6, 0.8)}}
    singles: Vectors = {"a": {"1": (1, 0)}, "b": {"3": (0, 1)}}
    for images in (pairs, singles):
        found = left_out({"clip:image": images}, ["max"])
        assert found.judged() is found


# ---- against the definition


@pytest.mark.parametrize(("m", "block"), [(1, 1), (2, 400), (5, 10**9), (100, 400)])
def test_equals_deleting_one_image_after_another(m: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    rng = np.random.default_rng(m)
    clip = {"one": unit(rng, 1), "few": unit(rng, 3), "many": unit(rng, 80), "twins": unit(rng, 4)}
    first = next(iter(clip["twins"].values()))
    clip["twins"] |= {"twin": first}
    clip["few"] |= {"elsewhere": first}
    dino = {
        name: dict(zip(clip[name], unit(rng, n, 3).values(), strict=False))
        for name, n in [("few", 2), ("many", 9), ("twins", 1)]
    }
    experts: dict[str, Vectors] = {
        "dino:image": dino,
        "clip:text": {"many": unit(rng, 3), "one": unit(rng, 1), "words": unit(rng, 2)},
        "clip:image": clip,
    }
    got = left_out(experts, METHODS, m)
    assert [got.categories[label] for label in got.labels] == [name for name, _ in images_of(experts)]
    for expert in experts:
        for method in METHODS:
            np.testing.assert_allclose(got.aggregations[expert][method], naive(experts, expert, method, m), atol=2e-6)


@prop
@given(stores(), st.sampled_from(METHODS), st.integers(1, 4))
def test_equals_deleting_one_image_after_another_for_any_store(
    experts: dict[str, Vectors], method: str, m: int
) -> None:
    got = left_out(experts, [method], m)
    for expert in experts:
        np.testing.assert_allclose(got.aggregations[expert][method], naive(experts, expert, method, m), atol=2e-6)


@prop
@given(stores(), st.randoms(use_true_random=False))
def test_order_of_references_and_of_experts_does_not_matter(experts: dict[str, Vectors], random: object) -> None:
    def shuffled(values: Mapping[str, object]) -> dict[str, object]:
        items = list(values.items())
        random.shuffle(items)  # type: ignore[attr-defined]
        return dict(items)

    other: dict[str, Vectors] = {
        expert: {name: shuffled(vectors) for name, vectors in shuffled(categories).items()}  # type: ignore[arg-type, misc]
        for expert, categories in shuffled(experts).items()
    }
    before, after = left_out(experts), left_out(other)
    assert before.categories == after.categories
    np.testing.assert_array_equal(before.labels, after.labels)
    covered = dict(zip(after.aggregations, after.coverage, strict=True))
    for expert, was in zip(experts, before.coverage, strict=True):
        np.testing.assert_array_equal(covered[expert], was)
        for method in METHODS:
            np.testing.assert_allclose(
                after.aggregations[expert][method], before.aggregations[expert][method], atol=2e-6
            )


# ---- how many


def fan(sizes: Mapping[str, int]) -> dict[str, Vectors]:
    """Images 0, 1, 2 … of each category, identified by the similarity to the text: 0, 0.01, 0.02 …."""
    towards = np.eye(len(sizes))  # no image of one category is one of another
    images = {
        name: {f"{name}{i:03d}": [i / 100, *(np.sqrt(1 - (i / 100) ** 2) * other)] for i in reversed(range(n))}
        for (name, n), other in zip(sizes.items(), towards, strict=True)
    }
    return {"clip:image": images, "clip:text": {name: {"t": [1.0, *np.zeros(len(sizes))]} for name in sizes}}


def taken(sizes: Mapping[str, int], most: int) -> dict[str, list[int]]:
    got = left_out(fan(sizes), ["max"], 1, most)
    which = np.rint(100 * got.aggregations["clip:text"]["max"][:, 0]).astype(int)
    return {name: which[got.labels == position].tolist() for position, name in enumerate(got.categories)}


def test_a_sample_is_even_and_by_hash() -> None:
    for most, counts in [
        (1000, (60, 2, 1)),
        (63, (60, 2, 1)),
        (7, (4, 2, 1)),
        (6, (3, 2, 1)),
        (5, (2, 2, 1)),
        (3, (1, 1, 1)),
    ]:
        expected = {name: list(range(n)) for name, n in zip("abc", counts, strict=True)}
        assert taken({"a": 60, "b": 2, "c": 1}, most) == expected


def test_which_categories_give_the_last_images_is_not_told_by_the_alphabet() -> None:
    names = [f"{letter}{i}" for letter in "abcdefghij" for i in range(20)]
    chosen = [name for name, which in taken(dict.fromkeys(names, 1), 100).items() if which]
    begin = {letter: sum(name.startswith(letter) for name in chosen) for letter in "abcdefghij"}
    assert sum(begin.values()) == 100
    assert 4 <= min(begin.values()) <= max(begin.values()) <= 16
    assert chosen == [name for name, which in taken(dict.fromkeys(reversed(names), 1), 100).items() if which]


def test_another_category_brings_no_other_images_of_the_old_ones() -> None:
    for added in ["0", "bb", "z"]:
        for most in [4, 10, 11, 23]:
            sizes = {"a": 9, "b": 3, "c": 30}
            before, after = taken(sizes, most), taken({**sizes, added: 8}, most)
            assert sum(map(len, before.values())) == sum(map(len, after.values())) == most
            assert after[added]
            for name in sizes:
                assert after[name] == before[name][: len(after[name])]


def test_images_that_are_not_taken_are_still_references() -> None:
    images: Vectors = {"a": {"1": (1, 0), "2": (0.8, 0.6)}, "b": {"3": (0, 1), "4": (0.6, 0.8)}}
    got = left_out({"clip:image": images}, ["max"], 1, 2).aggregations["clip:image"]["max"]
    np.testing.assert_allclose(got, [[0.8, 0.6], [0.6, 0.8]], atol=1e-6)


# ---- nothing to leave out


def test_no_images_or_no_second_category() -> None:
    cases: list[dict[str, Vectors]] = [
        {},
        {"clip:text": {"a": {"t": (1.0,)}, "b": {"t": (1.0,)}}},
        {"clip:image": {"a": {"1": (1, 0), "2": (0, 1)}}},
        {"clip:image": {"a": {"1": (1, 0)}}, "clip:text": {"a": {"t": (0, 1)}}},
    ]
    for experts in cases:
        assert leave_one_out(laid_out(experts), METHODS, 5, EVERYTHING, {}) is None


def test_a_second_category_may_be_covered_by_its_text_alone() -> None:
    got = left_out({"clip:image": {"a": {"1": (1.0, 0.0)}}, "clip:text": {"b": {"t": (0.6, 0.8)}}}, ["mean"])
    np.testing.assert_array_equal(got.aggregations["clip:image"]["mean"], [[NAN, NAN]])
    np.testing.assert_allclose(got.aggregations["clip:text"]["mean"], [[NAN, 0.6]], atol=1e-6)
