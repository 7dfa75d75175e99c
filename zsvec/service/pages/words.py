"""What predictions say, in words for people who know nothing of experts and entropies."""

from __future__ import annotations

from zsvec.types import ExpertOutput, Prediction, encoder_and_modality

_SURE = ((0.95, "Almost certainly"), (0.8, "Very probably"), (0.6, "Probably"), (0.0, "Perhaps"))


def how_sure(probability: float) -> str:
    """A probability in words, to be followed by the name of a category."""
    return next(words for least, words in _SURE if probability >= least)


def how_much(weight: float) -> str:
    """The weight of one of several experts in words."""
    if weight >= 0.5:
        return "decides most of it"
    return "counts for some of it" if weight >= 0.2 else "counts for little"


def experts(prediction: Prediction) -> list[tuple[str, str, ExpertOutput]]:
    """The experts of a prediction, with what each looks at: its title, its modality and itself, heaviest first."""
    found: list[tuple[str, str, ExpertOutput]] = []
    for name, expert in sorted(prediction.experts.items(), key=lambda item: -item[1].weight):
        encoder, modality = encoder_and_modality(name)
        title = "Compared with your pictures" if modality == "image" else "Compared with your texts"
        found.append((f"{title} ({encoder})", modality, expert))
    return found


def headline(prediction: Prediction, percent: str) -> str:
    """The answer in a few words, to be compared with a later one.

    Args:
        prediction: Of an image that could be read.
        percent: Its probability, as it is shown.
    """
    return "none of your categories" if prediction.unknown else f"{prediction.nearest}, {percent}"
