"""Reads the labelling configuration of a project: which choices an image has, and which field has the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import ParseError  # nosec B405 # an error class alone

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from zsvec import Prediction
from zsvec.service.problems import Problem

_MAX_CONFIG = 1_000_000  # characters


@dataclass(frozen=True, slots=True)
class Control:
    """The choices of an image in a labelling configuration.

    Attributes:
        name: Name of the tag ``Choices``.
        image: Name of the tag ``Image``.
        field: Field of a task with the image.
        choices: The choices, as they stand in results. Each is the name of a category.
        multiple: Whether an image may have several choices.
    """

    name: str
    image: str
    field: str
    choices: frozenset[str]
    multiple: bool

    def result(self, prediction: Prediction, *, many: bool) -> dict[str, Any]:
        """Returns a prediction in the format of Label Studio, without its version.

        The result is empty for an unknown or unreadable image, and for a category that is no choice.

        Args:
            prediction: The prediction for the image of a task.
            many: Whether an image may belong to several categories of the store.
        """
        label, probability = prediction.label, prediction.probability
        found = prediction.labels if many else () if label is None or probability is None else ((label, probability),)
        chosen = [one for one in found if one[0] in self.choices][: None if self.multiple else 1]
        if not chosen:
            return {"result": [], "score": 0.0}
        score = min(probability for _, probability in chosen)
        return {
            "result": [
                {
                    "from_name": self.name,
                    "to_name": self.image,
                    "type": "choices",
                    "value": {"choices": [name for name, _ in chosen]},
                    "score": score,
                }
            ],
            "score": score,
        }

    def labels(self, result: list[dict[str, Any]]) -> list[str]:
        """Returns the choices in the result of an annotation, sorted.

        Raises:
            Problem: The choices are no list, or a choice is not in the configuration.
        """
        given = [
            value.get("choices") or []
            for one in result
            if one.get("from_name") == self.name and isinstance(value := one.get("value"), Mapping)
        ]
        if not all(isinstance(choices, list) for choices in given):
            raise Problem(422, "the choices of an annotation must be a list")
        found = {str(choice) for choices in given for choice in choices}
        if unknown := found - self.choices:
            raise Problem(422, f"a choice must be in the labelling configuration, got {min(unknown)[:100]!r}")
        return sorted(found)


def control_of(config: str) -> Control:
    """Returns the first choices of an image in a labelling configuration.

    Raises:
        Problem: The configuration is not XML, or no ``Choices`` of a whole ``Image`` have ``Choice`` tags.
    """
    if len(config) > _MAX_CONFIG:
        raise Problem(413, f"a labelling configuration must have at most {_MAX_CONFIG:,} characters")
    try:
        root = fromstring(config, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as exc:
        raise Problem(422, "the labelling configuration must be XML without a document type") from exc
    images = {tag.get("name"): tag.get("value", "") for tag in root.iter("Image")}
    for tag in root.iter("Choices"):
        name, image = tag.get("name"), tag.get("toName")
        field = images.get(image, "")
        choices = frozenset(one.get("alias") or one.get("value", "") for one in tag.iter("Choice"))
        if name and image and field.startswith("$") and choices and tag.get("perRegion") != "true":
            return Control(name, image, field[1:], choices, tag.get("choice") == "multiple")
    raise Problem(422, "the labelling configuration must have <Image> and <Choices> with a <Choice> for each category")
