"""Costs of answers and images in US dollars: estimated before a request, and computed from the usage afterwards.

Prices change, and differ between services. Prices in the settings (``[generation.prices.MODEL]``) override `PRICES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zsvec.settings.settings import GenerationSettings, ModelPrice

# List prices as published in November 2026.
PRICES: Mapping[str, ModelPrice] = {
    "gpt-6-luna": ModelPrice(input=0.10, output=0.50),
    "gpt-6-sol": ModelPrice(input=2.00, output=10.00),
    "gpt-5.4-mini": ModelPrice(input=0.75, output=4.50),
    **dict.fromkeys(
        (
            "gpt-image-2.6-flare",
            "gpt-image-2.6-sunburst",
            "gpt-image-2.5-flare",
            "gpt-image-2.5-sunburst",
        ),
        ModelPrice(input=5.00, output=30.00, image_tokens={"low": 196, "medium": 439, "high": 1756}),
    ),
}

_PIXELS = 1024 * 1024  # size to which `ModelPrice.image_tokens` applies
_PROMPT_TOKENS = 200  # rough length of an image prompt


@dataclass(frozen=True, slots=True)
class Usage:
    """Number of input and output tokens of one or more requests."""

    input: int = 0
    output: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.input + other.input, self.output + other.output)


def price_of(model: str, settings: GenerationSettings) -> ModelPrice | None:
    """Returns the price of a model; ``None`` if neither the settings nor `PRICES` have one."""
    return settings.prices.get(model) or PRICES.get(model)


def text_cost(usage: Usage, settings: GenerationSettings) -> float | None:
    """Returns the cost of tokens of the language model in dollars; ``None`` if the price is unknown."""
    price = price_of(settings.language_model, settings)
    return None if price is None else _cost_of_tokens(price, usage)


def image_cost(usage: Usage | None, settings: GenerationSettings, responses: int = 1) -> float | None:
    """Returns the cost of a request for an image in dollars; ``None`` if the price of the image model is unknown.

    Args:
        usage: Tokens of all responses; if ``None``, the cost is estimated. Not used if the model is billed per image.
        settings: Model, size and quality.
        responses: Number of responses to the request, each of which is billed: unusable ones, and at most one image.
    """
    price = price_of(settings.image_model, settings)
    if price is None:
        return None
    if price.image is not None:
        return responses * price.image
    if usage is not None:
        return _cost_of_tokens(price, usage)
    return responses * _cost_of_tokens(price, Usage(_PROMPT_TOKENS, _image_tokens(price, settings)))


def _cost_of_tokens(price: ModelPrice, usage: Usage) -> float:
    return (usage.input * price.input + usage.output * price.output) / 1e6


def _image_tokens(price: ModelPrice, settings: GenerationSettings) -> int:
    """Estimates the tokens of an image. An unknown quality counts as the most expensive one, to stay in budget."""
    tokens = price.image_tokens.get(settings.image_quality or "", max(price.image_tokens.values(), default=0))
    width, _, height = settings.image_size.partition("x")
    in_pixels = width.isdecimal() and height.isdecimal()
    return round(tokens * (int(width) * int(height) / _PIXELS if in_pixels else 1))
