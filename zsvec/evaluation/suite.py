"""Computes the tables of the paper (section 4) for the references of a store and labelled images."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import distributions
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from zsvec.classifier import Classifier
from zsvec.classifier.facade import basis_of
from zsvec.errors import ImageError, InvalidInputError
from zsvec.evaluation.evaluate import check_labels
from zsvec.evaluation.study import (
    MANY,
    Answers,
    Embeddings,
    Sample,
    Study,
    drawn,
    known_categories,
    mislabelled,
    only,
    replaced,
    with_images,
)
from zsvec.evaluation.tables import ACCURACY, table
from zsvec.inputs.images import ImageInput, ImageLimits, load_image, source_of
from zsvec.method import DEFAULT_STRATEGY
from zsvec.method.predict.fusion import STRATEGIES
from zsvec.method.similarities import References, category_names, image_experts, laid_out
from zsvec.search.in_process import compare
from zsvec.types import encoder_and_modality

FORMAT = 1
PAPER_STRATEGY = "inverse_entropy"
DRAWS = 5
_BY_DEFAULT: Mapping[str, Any] = {"fusion": DEFAULT_STRATEGY}
_AS_IN_THE_PAPER: Mapping[str, Any] = {"fusion": PAPER_STRATEGY, "calibrated": False}
_BOTH = (("as in the paper", _AS_IN_THE_PAPER), ("by default", _BY_DEFAULT))
_TIMES = ({"key": "ms", "title": "time", "unit": "ms"}, {"key": "share", "title": "share", "unit": "%"})
_COUNTS = (1, 2, 3, 5, 10, 20, 50, 100)
_FEW = 4  # maximum number of experts of which all combinations are tried
_BLUR = 0.04  # radius of the blur, as a share of the shorter side
_PACKAGES = ("zsvec", "onnxruntime", "torch", "timm", "sentence-transformers")  # the results state their versions
_TIMED_IMAGES, _TIMED_AT_ONCE = 128, 32


@dataclass(slots=True)
class Suite:
    """Result of `run`.

    Attributes:
        results: Content of `results.json`; `zsvec docs evaluation` has the schema.
        study: References of the store, and the embedded test images.
        answers: Answers of the default strategy.
        images: The readable test images.
    """

    results: dict[str, Any]
    study: Study
    answers: Answers
    images: Sequence[ImageInput]

    @property
    def predictions(self) -> dict[str, Any]:
        """Content of `predictions.json`: the answers behind each table row, enough to compute all metrics."""
        sample = self.study.sample
        images = zip(sample.sources, sample.truth, strict=True)
        return {
            "images": [{"source": source, "category": label} for source, label in images],
            "rows": self.study.predictions,
        }


def run(
    classifier: Classifier,
    images: Sequence[tuple[Any, str]],
    unknown: Sequence[Any] = (),
    *,
    folder: Path,
    name: str,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    on_error: Callable[[str, str], None] = lambda source, reason: None,
    say: Callable[[str], None] = lambda stage: None,
) -> Suite:
    """Computes the tables of the paper.

    Args:
        classifier: Provides the references of the store, the encoders, and the settings of the aggregation.
        images: Pairs of test image and category.
        unknown: Images that belong to no category.
        folder: Folder for the cache of embeddings, which is created if necessary.
        name: Name of the set of images.
        track: Wraps the images that are embedded, to show progress.
        on_error: Called with source and reason for each image that cannot be read.
        say: Called with the name of each stage.

    Raises:
        InvalidInputError: No image with a category can be read, a label is not a category of the store, or the folder
            cannot be created.
        StoreError: The store has no category, or the references cannot be read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InvalidInputError(
            f"the report cannot be kept in {folder}: {exc}; give a folder that can be made"
        ) from exc
    references, scoring, false_unknown_rate = basis_of(classifier)
    names = category_names(references)
    check_labels(names, [label for _, label in images], images=name, location=classifier.location)

    say("embedding the images")
    inputs = [image for image, _ in images] + list(unknown)
    truth = [label for _, label in images] + [None] * len(unknown)
    start = time.perf_counter()
    embeddings = Embeddings(folder / "embeddings", classifier)
    positions, vectors = embeddings.of(inputs, on_error=on_error, track=track)
    embedding = time.perf_counter() - start
    readable = [inputs[i] for i in positions]
    sources = [source_of(inputs[i]) if isinstance(inputs[i], str | os.PathLike) else f"{name}/{i}" for i in positions]
    sample = Sample(sources, [truth[i] for i in positions], vectors)
    if not sample.known.any():
        raise InvalidInputError("no image with a category can be read")

    start = time.perf_counter()
    labels = sorted({label for label in sample.truth if label is not None})
    study = Study(
        references,
        sample,
        replace(scoring, calibrated=True, unknown_above=None),
        false_unknown_rate,
        [known_categories(labels, seed) for seed in range(DRAWS)] if len(labels) > 1 else [],
    )
    made = []
    say("experts and their fusion")
    made.append(single(study))
    say("components")
    made.append(components(study))
    say("strategies")
    made.append(strategies(study))
    if image_experts(references):
        say("one reference and many")
        made.append(one_and_many(study))
        say("quality of the references")
        made.append(quality(study, embeddings, classifier.settings.image_limits()))
    say("number of the references")
    by_number = curves(study)
    say("time per stage")
    made.append(stages(study, classifier, readable))
    spent = time.perf_counter() - start
    answers = study.answers(references, **_BY_DEFAULT)
    results = {
        "format": FORMAT,
        "set": name,
        "profile": classifier.settings.encoders_name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": int(sample.known.sum()),
        "unknown_images": int((~sample.known).sum()),
        "categories": len(names),
        "references": {expert: len(stored.hashes) for expert, stored in references.items()},
        "versions": {
            "python": platform.python_version(),
            **{package.name: package.version for package in distributions() if package.name in _PACKAGES},
        },
        "seconds": {"embedding": embedding, "everything else": spent},
        "splits": {"kind": "20/180" if len(labels) >= MANY else "6/4", "known": list(map(sorted, study.splits))},
        "summary": _summary(made[0]["rows"], len(references), sample, answers),
        "tables": made,
        "curves": by_number,
    }
    return Suite(results, study, answers, readable)


def _summary(rows: Sequence[Mapping[str, Any]], n_experts: int, sample: Sample, answers: Answers) -> list[str]:
    """Returns sentences about the rows of `single`, and about unknown images."""
    top1 = [(row["name"], row["values"]["top1"]) for row in rows]
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


# ---- the tables


def single(study: Study) -> dict[str, Any]:
    """Table 2: each expert alone, then three ways to fuse all of them."""
    alone = [
        study.row("single", expert, only(study.references, [expert]), fusion="log_linear")
        for expert in study.references
    ]
    fused = [
        study.row("single", "fusion as in the paper", study.references, **_AS_IN_THE_PAPER),
        study.row("single", "the same, calibrated", study.references, fusion=PAPER_STRATEGY),
        study.row("single", f"fusion by default ({DEFAULT_STRATEGY})", study.references, **_BY_DEFAULT),
    ]
    note = "Each expert alone, calibrated, then their fusion. A fusion should beat each of them."
    return table("single", "Single experts against their fusion", note, ACCURACY, alone + fused, paper="table 2")


def components(study: Study) -> dict[str, Any]:
    """Tables 3 and 4: combinations of experts."""
    experts = sorted(study.references, key=lambda expert: (encoder_and_modality(expert)[1] != "text", expert))
    sizes = range(1, len(experts) + 1) if len(experts) <= _FEW else (1, 2, len(experts))
    rows = [
        study.row("components", f"{' + '.join(chosen)}, {how}", only(study.references, chosen), **choices)
        for size in sizes
        for chosen in combinations(experts, size)
        for how, choices in _BOTH
    ]
    modules = ", ".join(f"M{i} is {expert}" for i, expert in enumerate(experts, 1))
    note = f"In the paper's words, {modules}."
    return table("components", "Components in all combinations", note, ACCURACY, rows, paper="tables 3 and 4")


def strategies(study: Study) -> dict[str, Any]:
    """Tables 5 and 6: every strategy with and without a calibration, and fixed weights."""
    choices: dict[str, dict[str, Any]] = {}
    for strategy in STRATEGIES:
        choices[f"{strategy}, fixed temperatures"] = {"fusion": strategy, "calibrated": False}
        choices[f"{strategy}, calibrated"] = {"fusion": strategy}
    for expert, factor in product(study.references, (2, 4)):
        weights = {"fusion": "fixed", "calibrated": False, "weights": {expert: float(factor)}}
        choices[f"fixed, {expert} × {factor}, fixed temperatures"] = weights
    rows = [study.row("strategies", name, study.references, **chosen) for name, chosen in choices.items()]
    note = (
        "max_confidence, inverse_entropy and neg_exp_entropy are the paper's options 1 to 3, fixed its predefined "
        "weights; transductive sees the images in batches of 256. Every strategy has the novelty of the "
        "evidence; with fixed temperatures novelty is the distance to the nearest reference."
    )
    return table("strategies", "Strategies of fusion and fixed weights", note, ACCURACY, rows, paper="tables 5 and 6")


def one_and_many(study: Study) -> dict[str, Any]:
    """Table 7: one reference image per category against all reference images."""
    rows = []
    for how, choices in _BOTH:
        draws = [
            study.row("one-and-many", f"one, {how}, draw {seed}", drawn(study.references, 1, seed), **choices)
            for seed in range(DRAWS)
        ]
        rows.append(_mean(f"one reference image, {how}", draws))
        rows.append(study.row("one-and-many", f"all reference images, {how}", study.references, **choices))
    note = f"One reference image of each category (mean of {DRAWS} draws) against all of them; texts in both."
    return table("one-and-many", "One reference against many", note, ACCURACY, rows, paper="table 7")


def quality(study: Study, embeddings: Embeddings, limits: ImageLimits) -> dict[str, Any]:
    """Section 4.3.3: reference images that are in a wrong category, belong to no category, or are blurred."""
    changed = {"as they are": study.references}
    note = "The default fusion, calibrated on references that have been spoiled."
    if len(category_names(study.references)) > 1:
        for share in (0.2, 0.5):
            changed[f"{share:.0%} under a wrong category"] = mislabelled(study.references, share, seed=0)
    if not study.sample.known.all():
        foreign = {encoder: vectors[~study.sample.known] for encoder, vectors in study.sample.vectors.items()}
        changed["20% replaced by images of no category"] = replaced(study.references, 0.2, foreign, seed=0)
        note += (
            " The images of no category that became references are among the test images too, which lowers the AUROC."
        )
    blurred = _blurred(study.references, embeddings, limits)
    if blurred is not None:
        changed[f"blurred (radius {_BLUR:.0%} of the side)"] = blurred
    else:
        note += " References were not blurred: some of the files cannot be read at the path of the import."
    rows = [study.row("quality", name, references, **_BY_DEFAULT) for name, references in changed.items()]
    return table("quality", "Quality of the references", note, ACCURACY, rows, paper="section 4.3.3")


def stages(study: Study, classifier: Classifier, images: Sequence[ImageInput]) -> dict[str, Any]:
    """Table 8: milliseconds per image in each stage, measured on the first `_TIMED_IMAGES` images in small batches.

    Args:
        study: Study with the references to search.
        classifier: Classifier with the encoders to time.
        images: One or more images to classify.
    """
    encoders, scoring, limits = classifier.encoders, study.scoring, classifier.settings.image_limits()
    chosen = images[:_TIMED_IMAGES]
    names = category_names(study.references)
    spent: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        made = work()
        spent[stage] = spent.get(stage, 0.0) + 1000 * (time.perf_counter() - start) / len(chosen)
        return made

    def go_through(some: Sequence[ImageInput]) -> None:
        loaded = timed("load", lambda: [load_image(image, **limits) for image in some])
        prepared = timed("preprocess", lambda: [encoders.preprocess(image) for image in loaded])
        vectors = timed("encode", lambda: encoders.encode_images(prepared))
        found = timed("search", lambda: compare(study.references, names, vectors, 3))
        timed(
            "aggregate", lambda: [e.similarities.aggregate(scoring.aggregation, scoring.top_m) for e in found.experts]
        )
        timed("fuse", lambda: scoring.scores(found))

    go_through(chosen[:_TIMED_AT_ONCE])
    spent.clear()  # the first batch only warms up
    for first in range(0, len(chosen), _TIMED_AT_ONCE):
        go_through(chosen[first : first + _TIMED_AT_ONCE])
    spent["fuse"] = max(0.0, spent["fuse"] - spent["aggregate"])  # `scoring.scores` aggregates too
    spent["total"] = sum(spent.values())
    note = f"Of {len(chosen)} images, stage after stage; zsvec itself loads and preprocesses beside the encoders."
    rows = [
        {"name": stage, "values": {"ms": ms, "share": ms / spent["total"]}, "interval": {}}
        for stage, ms in spent.items()
    ]
    return table("stages", "Time per image", note, _TIMES, rows, paper="table 8")


def curves(study: Study) -> dict[str, Any]:
    """Returns top-1 accuracy by the number of reference images per category.

    Returns:
        By line (default fusion, fusion of the paper, each image expert), the lists ``counts``, ``mean`` and ``std``
        (over draws). Empty without reference images.
    """
    experts = image_experts(study.references)
    most = max((int(np.diff(study.references[expert].starts).max()) for expert in experts), default=0)
    counts = [count for count in _COUNTS if count < most] + [most] * (most > 0)
    known = study.sample.known
    accuracies: dict[str, list[list[float]]] = {}
    for position, count in enumerate(counts):
        for seed in range(DRAWS if count < most else 1):
            references = drawn(study.references, count, seed)
            lines = {
                "fusion by default": study.answers(references, **_BY_DEFAULT),
                "fusion as in the paper": study.answers(references, **_AS_IN_THE_PAPER),
                **{expert: study.answers(only(references, [expert]), fusion="log_linear") for expert in experts},
            }
            for line, answers in lines.items():
                right = answers.probabilities[known].argmax(axis=1) == study.sample.columns(answers.categories)
                accuracies.setdefault(line, [[] for _ in counts])[position].append(float(right.mean()))
    return {
        line: {
            "counts": counts,
            "mean": [float(np.mean(draws)) for draws in by_count],
            "std": [float(np.std(draws)) for draws in by_count],
        }
        for line, by_count in accuracies.items()
    }


def _mean(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    by_key = {key: [row["values"][key] for row in rows] for key in rows[0]["values"]}
    values = {key: None if None in drawn else float(np.mean(drawn)) for key, drawn in by_key.items()}
    return {"name": name, "values": values, "interval": {}}


def _blurred(
    references: Mapping[str, References], embeddings: Embeddings, limits: ImageLimits
) -> dict[str, References] | None:
    """Returns the references with blurred images; ``None`` if a file cannot be read."""
    sources = {
        digest: source
        for stored in image_experts(references).values()
        for digest, source in zip(stored.hashes, stored.sources, strict=True)
    }

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(_BLUR * min(image.size)))

    try:
        blurred = (blur(load_image(source, **limits)) for source in sources.values())
        positions, vectors = embeddings.of(blurred, on_error=lambda source, reason: None)
    except ImageError:
        return None
    if len(positions) < len(sources):
        return None
    row = {digest: i for i, digest in enumerate(sources)}

    def change(encoder: str, images: References) -> References:
        rows = [row[digest] for digest in images.hashes]
        return laid_out(vectors[encoder][rows], images.labels, images.hashes, images.sources)

    return with_images(references, change)
