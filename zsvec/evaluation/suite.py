"""The tables and figures of the paper (section 4), for the references of a store and images of one's own."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from zsvec.classifier import Classifier
from zsvec.errors import InvalidInputError
from zsvec.evaluation import tables, timing
from zsvec.evaluation.ablations import only
from zsvec.evaluation.embeddings import Embeddings
from zsvec.evaluation.evaluate import check_labels
from zsvec.evaluation.splits import paper_splits
from zsvec.evaluation.study import Answers, Sample, Study
from zsvec.evaluation.tables import DRAWS
from zsvec.inputs.images import ImageInput, source_of
from zsvec.method import DEFAULT_STRATEGY
from zsvec.method.calibrate.fit import FALSE_UNKNOWN_RATE
from zsvec.method.calibration import Calibration
from zsvec.method.similarities import References, category_names
from zsvec.search.searcher import Searcher

FORMAT = 1
_MANY = 100  # categories from which 20 are known, as in TinyImageNet of the paper


@dataclass(slots=True)
class Suite:
    """Everything that the suite found.

    Attributes:
        results: What is written to `results.json`; see `zsvec docs evaluation` for its schema.
        predictions: The answers for each image by table and row: enough to compute every number again.
        answers: Of the default strategy.
        sample: The test images, embedded.
        images: The test images themselves.
        references: Of the store.
    """

    results: dict[str, Any]
    predictions: dict[str, Any]
    answers: Answers
    sample: Sample
    images: Sequence[ImageInput]
    references: Mapping[str, References]


def run(
    classifier: Classifier,
    images: Sequence[tuple[Any, str]],
    unknown: Sequence[Any] = (),
    *,
    folder: Path,
    name: str,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    on_error: Callable[[str, str], None] = lambda source, reason: None,
    say: Callable[[str], None] = lambda what: None,
) -> Suite:
    """Make the tables of the paper.

    Args:
        classifier: Its store has the references; its settings say how similarities are aggregated.
        images: Test images with their categories.
        unknown: Images of no category.
        folder: Where embeddings are kept, so that nothing is embedded twice.
        name: Of the set.
        track: Wraps the images that are embedded, to show progress.
        on_error: Called with source and reason for each image that cannot be read.
        say: Called with what is being done.

    Raises:
        InvalidInputError: No image can be read, a label is no category of the store, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InvalidInputError(
            f"the report cannot be kept in {folder}: {exc}; give a folder that can be made"
        ) from exc
    stored, _ = Searcher(classifier.store, kind="memory", budget=0, neighbors=1, norms=True).references()
    references = only(dict(sorted(stored.items())), classifier.scoring.temperatures.keys())
    names = category_names(references)
    check_labels(names, [label for _, label in images], images=name, location=classifier.store.location)

    say("embedding the images")
    inputs = [image for image, _ in images] + list(unknown)
    truth = [label for _, label in images] + [None] * len(unknown)
    start = time.perf_counter()
    embeddings = Embeddings(folder / "embeddings", classifier)
    positions, vectors = embeddings.of(inputs, on_error=on_error, track=track)
    embedding = time.perf_counter() - start
    readable = [inputs[i] for i in positions]
    sources = [_named(inputs[i], f"{name}/{i}") for i in positions]
    sample = Sample(sources, [truth[i] for i in positions], vectors)
    if not sample.known.any():
        raise InvalidInputError("no image with a category can be read")

    start = time.perf_counter()
    labels = sorted({label for label in sample.truth if label is not None})
    kind = "20/180" if len(labels) >= _MANY else "6/4"
    study = Study(
        references,
        sample,
        replace(classifier.scoring, calibrated=True, unknown_above=None),
        _false_unknown_rate(classifier),
        paper_splits(labels, kind, range(DRAWS)) if len(labels) > 1 else (),
    )
    made = list(_tables(study, classifier, embeddings, say))
    say("number of the references")
    curves = tables.curves(study)
    say("time per stage")
    made.append(timing.stages(study, classifier, readable))
    spent = time.perf_counter() - start
    answers = study.answers(references, fusion=DEFAULT_STRATEGY)
    return Suite(
        results={
            "format": FORMAT,
            "set": name,
            "profile": classifier.settings.profile,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "images": int(sample.known.sum()),
            "unknown_images": int((~sample.known).sum()),
            "categories": len(names),
            "references": {expert: len(stored.hashes) for expert, stored in references.items()},
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in ("zsvec", "torch", "timm", "sentence-transformers")},
            },
            "seconds": {"embedding": embedding, "everything else": spent},
            "splits": {"kind": kind, "known": [sorted(split.known) for split in study.splits]},
            "summary": _summary(made, len(references), sample, answers),
            "tables": made,
            "curves": curves,
            "figures": [],
        },
        predictions={
            "images": [
                {"source": source, "category": label}
                for source, label in zip(sample.sources, sample.truth, strict=True)
            ],
            "rows": study.predictions,
        },
        answers=answers,
        sample=sample,
        images=readable,
        references=references,
    )


def _tables(
    study: Study, classifier: Classifier, embeddings: Embeddings, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """The tables of accuracy; those that change reference images only where there are any."""
    say("experts and their fusion")
    yield tables.single(study)
    say("components")
    yield tables.components(study)
    say("strategies")
    yield tables.strategies(study)
    if study.image_experts:
        say("one reference and many")
        yield tables.one_and_many(study)
        say("quality of the references")
        yield tables.quality(study, embeddings, classifier.settings.image_limits())


def _false_unknown_rate(classifier: Classifier) -> float:
    """The target rate that the classifier would calibrate with."""
    present = Calibration.from_dict(classifier.store.calibration())
    return classifier.settings.false_unknown_rate or (present.false_unknown_rate if present else FALSE_UNKNOWN_RATE)


def _named(image: ImageInput, otherwise: str) -> str:
    """Where an image comes from, or another name if it is no file."""
    return source_of(image) if isinstance(image, str | os.PathLike) else otherwise


def _summary(made: Sequence[Mapping[str, Any]], n_experts: int, sample: Sample, answers: Answers) -> list[str]:
    """What the tables say, in sentences."""
    top1 = [(row["name"], row["values"]["top1"]) for row in made[0]["rows"]]
    best, alone = max(top1[:n_experts], key=lambda row: row[1])
    paper, _, default = (value for _, value in top1[n_experts:])
    sentences = [
        f"The best expert alone is {best}: {alone:.1%} of the images are right. As in the paper, "
        f"their fusion gives {paper:.1%}; calibrated and by default {default:.1%}."
    ]
    if np.isfinite(answers.threshold).any() and not sample.known.all():
        detected, false_unknown = answers.unknown[~sample.known].mean(), answers.unknown[sample.known].mean()
        sentences.append(
            f"{detected:.1%} of the images of no category are called unknown, and {false_unknown:.1%} of the others."
        )
    return sentences
