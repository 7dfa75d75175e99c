"""A correction or an erasure that is killed at any instant is whole after the next write."""

from __future__ import annotations

import itertools

import pytest

from tests.store.support import Crash, Hooked
from tests.support import classifier_over, coloured
from tests.support import isolated as isolated
from zsvec.classifier import Classifier
from zsvec.inputs.images import content_hash
from zsvec.store import Store
from zsvec.store.backends.memory import MemoryBackend

PHOTO = coloured("red", 0)
HASH = content_hash(PHOTO)


def opened(backend: Hooked | MemoryBackend) -> Classifier:
    """Another process, as it were: the backend stays open."""
    return classifier_over(Store(backend, "zsvec", history=86_400.0), calibration="off")  # type: ignore[arg-type]


def filled(labels: str) -> MemoryBackend:
    """A store in which two categories have the photo."""
    backend = MemoryBackend()
    clf = opened(backend)
    for seed, name in enumerate(("cat", "dog", "cow", "fox"), 1):
        clf.add_category(name, images=[coloured("blue", seed), *([PHOTO] if name in ("cat", "dog") else [])])
    clf._store.bind(clf._store.encoders(), labels=labels)  # type: ignore[arg-type]
    return backend


def holders(clf: Classifier) -> set[str]:
    return set(clf.references.holders([HASH]).get(HASH, ()))


@pytest.mark.parametrize(
    ("labels", "right"),
    [
        ("one", ["cow"]),
        ("one", ["dog"]),
        ("many", ["cow", "fox"]),
        ("many", ["new", "dog", "cow"]),
        ("many", ["new", "fox", "dog", "cat"]),  # no category loses the photo
    ],
)
def test_a_killed_correction_of_an_image_in_two_categories(labels: str, right: list[str]) -> None:
    finished = 0
    for survived in itertools.count():
        backend = filled(labels)
        dying = Hooked(backend)
        clf, died = opened(dying), True
        dying.dies_at = survived
        try:
            clf.correct(PHOTO, right if labels == "many" else right[0])
            died = False
        except Crash:
            pass
        clf = opened(backend)
        clf.add_category("other", images=[coloured("green", 9)])
        assert holders(clf) in ([{"cat", "dog"}, set(right)] if died else [set(right)]), survived
        assert clf._store.incomplete() == []
        finished += died and holders(clf) == set(right)
        if not died:
            break
    assert survived > 10
    assert finished > 1
