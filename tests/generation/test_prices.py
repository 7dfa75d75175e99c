"""Costs of requests, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from zsvec.generation.prices import Usage, image_cost, text_cost
from zsvec.settings.settings import GenerationSettings, ModelPrice


def test_usages_add_up() -> None:
    assert Usage(1, 2) + Usage(30, 40) == Usage(31, 42)
    assert Usage() == Usage(0, 0)


def test_of_texts() -> None:
    prices = {"mine": ModelPrice(input=1, output=3), "free": ModelPrice()}
    for model, usage, dollars in (
        ("gpt-6-luna", Usage(1_000_000, 0), 0.10),
        ("gpt-6-luna", Usage(0, 1_000_000), 0.50),
        ("gpt-6-luna", Usage(12_345, 678), 0.0015735),
        ("gpt-6-sol", Usage(1_000, 2_000), 0.022),
        ("gpt-5.4-mini", Usage(400, 200), 0.0012),
        ("gpt-6-luna", Usage(), 0.0),
        ("mine", Usage(1_000, 2_000), 0.007),
        ("free", Usage(1_000, 2_000), 0.0),
    ):
        cost = text_cost(usage, GenerationSettings(language_model=model, prices=prices))
        assert cost == pytest.approx(dollars), model
    assert text_cost(Usage(1, 1), GenerationSettings(language_model="without-price")) is None


def test_of_the_settings_come_first() -> None:
    prices = {"gpt-6-luna": ModelPrice(input=7), "gpt-image-2.6-flare": ModelPrice(image=0.25)}
    settings = GenerationSettings(prices=prices)
    assert text_cost(Usage(1_000_000, 1_000_000), settings) == pytest.approx(7)
    assert image_cost(None, settings) == pytest.approx(0.25)


def test_of_an_image_by_its_usage() -> None:
    for model in ("gpt-image-2.6-flare", "gpt-image-2.6-sunburst", "gpt-image-2.5-flare", "gpt-image-2.5-sunburst"):
        settings = GenerationSettings(image_model=model, image_quality="high", image_size="4096x4096")
        assert image_cost(Usage(50, 196), settings) == pytest.approx(0.00613)
        assert image_cost(Usage(), settings) == 0


def test_of_an_image_estimated() -> None:
    prices = {
        "by-the-image": ModelPrice(input=1, output=1, image=0.04),
        "by-the-token": ModelPrice(input=1, output=1),
        "free": ModelPrice(),
    }
    cases: list[tuple[dict[str, Any], float]] = [
        ({}, 0.00688),  # 200 tokens of 5 $ and 196 of 30 $ a million
        ({"image_quality": "medium"}, 0.01417),
        ({"image_quality": "high"}, 0.05368),
        ({"image_quality": None}, 0.05368),
        ({"image_quality": "of another service"}, 0.05368),
        ({"image_size": "512x512"}, 0.00247),
        ({"image_size": "2048x1024"}, 0.01276),
        ({"image_size": "auto"}, 0.00688),
        ({"image_size": "widex1024"}, 0.00688),
        ({"image_model": "by-the-image"}, 0.04),
        ({"image_model": "by-the-token"}, 0.0002),
        ({"image_model": "free"}, 0.0),
    ]
    for settings, dollars in cases:
        cost = image_cost(None, GenerationSettings(prices=prices, **settings))
        assert cost == pytest.approx(dollars), settings
        twice = image_cost(None, GenerationSettings(prices=prices, **settings), responses=2)
        assert twice == pytest.approx(2 * dollars), settings
    assert image_cost(None, GenerationSettings(image_model="without-price")) is None


def test_a_price_per_image_ignores_tokens() -> None:
    settings = GenerationSettings(image_model="mine", prices={"mine": ModelPrice(input=1, output=1, image=0.04)})
    assert image_cost(Usage(1_000_000, 1_000_000), settings) == pytest.approx(0.04)
    for usage in (Usage(1_000_000, 1_000_000), None):
        assert image_cost(usage, settings, responses=3) == pytest.approx(0.12)
    assert image_cost(Usage(1_000_000, 1_000_000), GenerationSettings(image_model="without-price")) is None
