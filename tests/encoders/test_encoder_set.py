"""Encodes with some encoders of a set, and chooses the first encoder of a cascade by measured times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zsvec.encoders import EncoderSet
from zsvec.encoders.base import BatchEncoder
from zsvec.types import Fingerprint


class Timed:
    """A backbone that takes some seconds of a simulated clock for each image."""

    side = None

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock = clock
        self.seconds = seconds
        self.seen = 0

    def preprocess(self, image: Image.Image) -> Image.Image:
        return image

    def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
        self.clock[0] += self.seconds * len(inputs)
        self.seen += len(inputs)
        return inputs


class Constant(BatchEncoder):
    def embed(self, batch: Any, modality: str) -> Any:
        return np.ones((len(batch), 2))


class Whole(Constant):
    """An encoder without an image model, whose `embed` takes some seconds of a simulated clock for each image."""

    def __init__(self, name: str, clock: list[float], seconds: float) -> None:
        super().__init__(name, Fingerprint(model=name, revision="1", dim=2, preprocessing=""))
        self.clock = clock
        self.seconds = seconds

    def embed(self, batch: Any, modality: str) -> Any:
        self.clock[0] += self.seconds * len(batch)
        return super().embed(batch, modality)


def encoder(name: str, backbone: Timed) -> Constant:
    return Constant(name, Fingerprint(model=name, revision="1", dim=2, preprocessing=""), backbone=backbone)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("zsvec.encoders.encoder_set.time.perf_counter", lambda: now[0])
    return now


@pytest.fixture
def three(clock: list[float]) -> tuple[EncoderSet, Timed, Timed]:
    """Encoders `a` and `b` share a backbone; the backbone of `c` takes four times as long."""
    fast, slow = Timed(clock, 1.0), Timed(clock, 4.0)
    return EncoderSet([encoder("a", fast), encoder("b", fast), encoder("c", slow)]), fast, slow


def prepared(encoders: EncoderSet, count: int) -> list[Any]:
    return [encoders.preprocess(Image.new("RGB", (2, 2))) for _ in range(count)]


def test_only_the_named_encoders_and_their_backbones_run(three: tuple[EncoderSet, Timed, Timed]) -> None:
    encoders, fast, slow = three
    assert {name: len(rows) for name, rows in encoders.encode_images(prepared(encoders, 40), ["b"]).items()} == {
        "b": 40
    }
    assert (fast.seen, slow.seen) == (40, 0)
    assert encoders.encode_images([], ["c"])["c"].shape == (0, 2)
    assert encoders.encode_images(prepared(encoders, 1)).keys() == {"a", "b", "c"}


def test_the_fastest_batch_counts(three: tuple[EncoderSet, Timed, Timed]) -> None:
    encoders, fast, _ = three
    assert set(encoders.seconds.values()) == {np.inf}
    fast.seconds = 5.0  # a first pass is slow
    encoders.encode_images(prepared(encoders, 2))
    fast.seconds = 1.0
    encoders.encode_images(prepared(encoders, 2))
    assert encoders.seconds == {"a": 1.0, "b": 1.0, "c": 4.0}


@pytest.mark.parametrize(
    ("settled", "first"),
    [
        ({"a": 0.5, "c": 0.9}, "a"),  # 1 + 0.5 · (1 + 4) = 3.5 of 5, against 4 + 0.1 · 1 = 4.1
        ({"a": 0.1, "b": 0.5, "c": 0.0}, "b"),
        ({"a": 0.1, "c": 0.9}, "c"),  # 5.5 against 4.1
        ({"a": 0.1, "c": 0.4}, None),  # 4.6 saves less than a tenth of 5
        ({"a": 0.4}, "a"),
        ({"a": 0.2}, None),  # the backbone runs twice for the rest
        ({"unknown": 1.0}, None),
        ({}, None),
    ],
)
def test_the_first_encoder_has_the_shortest_expected_time(
    three: tuple[EncoderSet, Timed, Timed], settled: dict[str, float], first: str | None
) -> None:
    encoders, _, _ = three
    encoders.encode_images(prepared(encoders, 2))
    encoders.encode_images(prepared(encoders, 2), ["a", "b"])
    assert encoders.first(settled) is None
    assert encoders.no_first(settled)
    encoders.encode_images(prepared(encoders, 2), ["c"])
    assert encoders.first(settled) == first
    assert bool(encoders.no_first(settled)) == (first is None)
    assert not encoders.one_model


def test_encoders_of_one_backbone_save_nothing(clock: list[float]) -> None:
    backbone = Timed(clock, 1.0)
    encoders = EncoderSet([encoder("a", backbone), encoder("b", backbone)])
    for _ in range(2):
        encoders.encode_images(prepared(encoders, 2))
    assert encoders.first({"a": 1.0, "b": 1.0}) is None
    assert encoders.one_model


@pytest.mark.parametrize("names", [("fast", "slow"), ("slow", "fast")])
def test_the_time_of_an_encoder_without_an_image_model_counts(clock: list[float], names: tuple[str, str]) -> None:
    made = {"fast": Whole("fast", clock, 1.0), "slow": Whole("slow", clock, 4.0)}
    encoders = EncoderSet([made[name] for name in names])
    for _ in range(2):
        encoders.encode_images(prepared(encoders, 3))
    assert encoders.seconds == {"fast": 1.0, "slow": 4.0}
    assert encoders.first({"fast": 0.5, "slow": 0.5}) == "fast"


def test_a_slow_first_pass_does_not_decide(three: tuple[EncoderSet, Timed, Timed]) -> None:
    encoders, fast, _ = three
    fast.seconds = 100.0
    encoders.encode_images(prepared(encoders, 2))
    fast.seconds = 1.0
    encoders.encode_images(prepared(encoders, 2))
    assert encoders.first({"a": 0.5, "c": 0.5}) == "a"


def test_a_wrong_order_is_corrected_by_the_next_doubtful_image(three: tuple[EncoderSet, Timed, Timed]) -> None:
    encoders, fast, _ = three
    fast.seconds = 100.0  # such as in a process that gets no processor
    for _ in range(2):
        encoders.encode_images(prepared(encoders, 2))
    fast.seconds = 1.0
    assert encoders.first({"a": 0.5, "c": 0.5}) == "c"
    encoders.encode_images(prepared(encoders, 8), ["c"])
    assert encoders.first({"a": 0.5, "c": 0.5}) == "c"
    encoders.encode_images(prepared(encoders, 1), ["a", "b"])
    assert encoders.first({"a": 0.5, "c": 0.5}) == "a"
