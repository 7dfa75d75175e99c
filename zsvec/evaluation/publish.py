"""Pages of results with figures.

`page_of` returns an evaluation as one page. `publish` writes results, figures and a page of a `Suite` to a folder.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zsvec.errors import ImageError
from zsvec.evaluation import figures, metrics
from zsvec.evaluation.evaluate import Evaluation
from zsvec.evaluation.labels import LabelEvaluation
from zsvec.evaluation.report import Drawing, Mistake, report_page
from zsvec.evaluation.study import Study
from zsvec.evaluation.suite import Suite
from zsvec.evaluation.tables import summary_of, tables_of
from zsvec.inputs.files import inside, write_whole
from zsvec.inputs.images import ImageInput, load_image
from zsvec.inputs.small import small_copy
from zsvec.method.arrays import Doubles
from zsvec.method.similarities import image_experts
from zsvec.search.in_process import compare
from zsvec.types import encoder_and_modality

_MOST_MISTAKES, _MOST_NEIGHBOURHOODS = 24, 10


# ---- an evaluation


def page_of(
    evaluation: Evaluation | LabelEvaluation, *, name: str, profile: str, references: Mapping[str, int], version: str
) -> str:
    """Returns the page of an evaluation, as HTML. The page of an evaluation of labels has no figures.

    Args:
        evaluation: The results.
        name: Name of the set of images.
        profile: Profile of the encoders.
        references: Number of references in the store, by expert.
        version: Version of zsvec.
    """
    drawings: list[Drawing] = []
    if isinstance(evaluation, LabelEvaluation):
        unknown_images, categories = evaluation.unknown_images, len(evaluation.labels)
    else:
        unknown_images, categories = len(evaluation.judged) - evaluation.n, len(evaluation.categories)
        drawings += _drawings(evaluation)
    results = {
        "set": name,
        "profile": profile,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": evaluation.n,
        "unknown_images": unknown_images,
        "categories": categories,
        "references": references,
        "versions": {"python": platform.python_version(), "zsvec": version},
        "summary": summary_of(evaluation),
        "tables": list(tables_of(evaluation)),
    }
    return report_page(results, drawings)


def _drawings(evaluation: Evaluation) -> Iterator[Drawing]:
    known = evaluation.judged[: evaluation.n]
    right = np.array([image.nearest == image.truth for image in known])
    yield from _of_answers(
        evaluation.confusion, list(evaluation.categories), np.array([image.probability for image in known]), right
    )
    if any(image.novelty is None for image in evaluation.judged):
        return
    novelty = np.array([image.novelty for image in evaluation.judged], dtype=np.float64)
    has_threshold = [image.unknown for image in evaluation.judged] == (novelty > 0.5).tolist()
    yield _of_novelty(novelty[: evaluation.n], novelty[evaluation.n :], has_threshold=has_threshold)


# ---- a suite


def publish(suite: Suite, folder: Path) -> Path:
    """Writes `results.json`, `predictions.json`, the figures and `report.html`.

    Args:
        suite: Result of `suite.run`.
        folder: Folder to write; created if it does not exist.

    Returns:
        Path of `report.html`.

    Raises:
        InvalidInputError: A link in the folder leads out of it.
        OSError: A file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = list(_suite_drawings(suite))
    named = [{"id": one.id, "title": one.title, "file": f"{one.id}.png", "caption": one.caption} for one in drawn]
    results = {**suite.results, "figures": named}
    files = {
        "results.json": json.dumps(results, allow_nan=False, indent=1).encode(),
        "predictions.json": json.dumps(suite.predictions, allow_nan=False).encode(),
        **{f"{one.id}.png": one.png for one in drawn},
        "report.html": report_page(results, drawn, list(_mistakes(suite))).encode(errors="backslashreplace"),
    }
    for name, content in files.items():
        write_whole(inside(folder, folder / name), content)
    return folder / "report.html"


def _suite_drawings(suite: Suite) -> Iterator[Drawing]:
    answers, known = suite.answers, suite.study.sample.known
    names, (truth, said, largest) = list(answers.categories), _answered(suite)
    if suite.results["curves"]:
        caption = "Figure 3 of the paper. The band is one standard deviation over draws."
        drawn = figures.accuracy_by_references(suite.results["curves"])
        yield Drawing("references", "Accuracy by references", caption, drawn)
    yield from _of_answers(metrics.confusion(truth, said, names), names, largest, np.array(said) == np.array(truth))
    has_threshold = bool(np.isfinite(answers.threshold).any())
    yield _of_novelty(answers.novelty[known], answers.novelty[~known], has_threshold=has_threshold)
    expert = next(iter(image_experts(suite.study.references)), None)
    if expert is not None:
        caption = "Figure 5 of the paper: t-SNE of the first image expert's vectors."
        yield Drawing("neighbourhood", "References and images", caption, _neighbourhood(suite.study, expert))


def _answered(suite: Suite) -> tuple[list[str], list[str], Doubles]:
    """Returns true categories, answers, and probabilities of the answers, for the images with a category."""
    names, probabilities = suite.answers.categories, suite.answers.probabilities[suite.study.sample.known]
    truth = [label for label in suite.study.sample.truth if label is not None]
    return truth, [names[column] for column in probabilities.argmax(axis=1)], probabilities.max(axis=1)


def _neighbourhood(study: Study, expert: str) -> bytes:
    """Draws the vectors of one image expert, for references and images of at most `_MOST_NEIGHBOURHOODS` categories."""
    references, sample = study.references[expert], study.sample
    step = max(1, len(references.names) // _MOST_NEIGHBOURHOODS)
    chosen = set(references.names[::step][:_MOST_NEIGHBOURHOODS])
    labels = references.labels
    rows = [i for i, name in enumerate(labels) if name in chosen]
    tests = [i for i, name in enumerate(sample.truth) if name in chosen]
    vectors = np.concatenate([references.vectors[rows], sample.vectors[encoder_and_modality(expert)[0]][tests]])
    named = [labels[i] for i in rows] + [str(sample.truth[i]) for i in tests]
    return figures.neighbourhood(figures.embed_2d(vectors), named, np.arange(len(named)) < len(rows))


def _mistakes(suite: Suite) -> Iterator[Mistake]:
    """Yields the wrong answers with the highest probabilities, each with the nearest reference image."""
    truth, said, largest = _answered(suite)
    is_wrong = [answer != true for answer, true in zip(said, truth, strict=True)]
    wrong = sorted(np.flatnonzero(is_wrong), key=lambda i: -largest[i])[:_MOST_MISTAKES]
    rows = np.flatnonzero(suite.study.sample.known)[wrong]
    images = image_experts(suite.study.references)
    queries = {encoder: vectors[rows] for encoder, vectors in suite.study.sample.vectors.items()}
    nearest = compare(images, suite.answers.categories, queries, 1).experts[-1].nearest if images and wrong else ()
    for position, (i, row) in enumerate(zip(wrong, rows, strict=True)):
        neighbor = nearest[position][0] if nearest else None
        yield Mistake(
            image=_picture(suite.images[row]),
            truth=truth[i],
            answer=said[i],
            probability=float(largest[i]),
            nearest=_picture(neighbor.source) if neighbor else None,
            nearest_category=neighbor.category if neighbor else "",
        )


def _picture(image: ImageInput) -> bytes | None:
    try:
        return small_copy(load_image(image))
    except ImageError:  # the file was deleted or changed
        return None


# ---- figures of both


def _of_answers(
    counts: NDArray[np.int64], names: Sequence[str], confidence: Doubles, right: NDArray[np.bool_]
) -> Iterator[Drawing]:
    caption = "Each row is a category, and the share of its images by answer."
    yield Drawing("confusion", "Confusions", caption, figures.confusion(counts, names))
    caption = "On the diagonal, of 100 answers with 80 %, 80 are right."
    yield Drawing("reliability", "Calibration of the probabilities", caption, figures.reliability(confidence, right))


def _of_novelty(known: Doubles, unknown: Doubles, *, has_threshold: bool) -> Drawing:
    threshold = 0.5 if has_threshold else None
    caption = "Beyond the threshold an image is called unknown." if has_threshold else "No threshold could be learned."
    drawn = figures.novelties(known, unknown, threshold)
    return Drawing("novelty", "Novelty of known and unknown images", caption, drawn)
