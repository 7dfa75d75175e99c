"""The results of a suite as files: `results.json`, `predictions.json`, figures, and one page to read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from zsvec.errors import ImageError
from zsvec.evaluation import figures, metrics
from zsvec.evaluation.report import write_report
from zsvec.evaluation.suite import Suite
from zsvec.inputs.files import inside, write_whole
from zsvec.inputs.images import ImageInput, load_image
from zsvec.method.similarities import image_experts
from zsvec.search.numpy_index import compare
from zsvec.types import encoder_and_modality

_SHOWN = 12  # categories in the picture of the neighbourhood
_MISTAKES = 24


def publish(suite: Suite, folder: Path) -> Path:
    """Write everything into a folder.

    Args:
        suite: Result of `suite.run`.
        folder: Folder to write; made if it does not exist.

    Returns:
        The page.

    Raises:
        InvalidInputError: A link in the folder leads out of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [
        {"id": name, "title": title, "file": f"{name}.png", "caption": caption}
        for name, title, caption in _draw(suite, folder)
    ]
    results = {**suite.results, "figures": drawn}
    for name, values in (("results", results), ("predictions", suite.predictions)):
        text = json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1 if name == "results" else None)
        write_whole(inside(folder, folder / f"{name}.json"), text.encode())
    return write_report(folder, results)


def _draw(suite: Suite, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Draw each figure that has data, and yield its name, title and caption."""
    answers, known = suite.answers, suite.sample.known
    names = list(answers.categories)
    truth = suite.sample.columns(names)
    said = answers.probabilities[known].argmax(axis=1)
    largest = answers.probabilities[known].max(axis=1)
    if suite.results["curves"]:
        curves = {name: figures.Curve(**curve) for name, curve in suite.results["curves"].items()}
        figures.accuracy_by_references(curves, inside(folder, folder / "references.png"))
        yield (
            "references",
            "Accuracy by references",
            "Figure 3 of the paper. The band is one standard deviation over draws.",
        )
    figures.confusion(metrics.confusion(truth, said, len(names)), names, inside(folder, folder / "confusion.png"))
    yield (
        "confusion",
        "What is taken for what",
        "Each row is a category, and the share of its images by what they were called.",
    )
    figures.reliability(largest, said == truth, inside(folder, folder / "reliability.png"))
    yield "reliability", "What a probability is worth", "On the diagonal, of 100 answers with 80 %, 80 are right."
    unknown = answers.novelty[~known] if not known.all() else None
    threshold = 0.5 if np.isfinite(answers.threshold).any() else None
    figures.novelties(answers.novelty[known], unknown, threshold, inside(folder, folder / "novelty.png"))
    told = "Beyond the threshold an image is called unknown." if threshold else "No threshold could be learned."
    yield "novelty", "Novelty of known and unknown images", told
    picture = _neighbourhood(suite)
    if picture is not None:
        figures.neighbourhood(*picture, inside(folder, folder / "neighbourhood.png"))
        yield (
            "neighbourhood",
            "References and images",
            "Figure 5 of the paper: t-SNE of the first image expert's vectors.",
        )
    mistakes = list(_mistakes(suite, truth, said, largest))
    if mistakes:
        figures.mistakes(mistakes, inside(folder, folder / "mistakes.png"))
        yield "mistakes", "The most confident mistakes", "Each image with the reference that is nearest to it."


def _neighbourhood(suite: Suite) -> tuple[np.ndarray, list[str], np.ndarray] | None:
    """Points, categories, and which are references, of some categories under one image expert."""
    expert = next(iter(image_experts(suite.references)), None)
    if expert is None:
        return None
    references = suite.references[expert]
    chosen = set(references.names[:: max(1, len(references.names) // _SHOWN)][:_SHOWN])
    labels = references.labels
    rows = [i for i, name in enumerate(labels) if name in chosen]
    tests = [i for i, name in enumerate(suite.sample.truth) if name in chosen]
    vectors = np.concatenate([references.vectors[rows], suite.sample.vectors[encoder_and_modality(expert)[0]][tests]])
    named = [labels[i] for i in rows] + [str(suite.sample.truth[i]) for i in tests]
    return figures.embed_2d(vectors), named, np.arange(len(named)) < len(rows)


def _mistakes(suite: Suite, truth: np.ndarray, said: np.ndarray, largest: np.ndarray) -> Iterator[figures.Mistake]:
    """The wrong answers of the highest probability, with the nearest reference image."""
    names = list(suite.answers.categories)
    rows = np.flatnonzero(suite.sample.known)
    wrong = sorted(np.flatnonzero(said != truth), key=lambda i: -largest[i])[:_MISTAKES]
    if not wrong:
        return
    images = image_experts(suite.references)
    queries = {encoder: vectors[rows[wrong]] for encoder, vectors in suite.sample.vectors.items()}
    nearest = compare(images, names, queries, 1).experts if images else ()
    for position, i in enumerate(wrong):
        image = _picture(suite.images[rows[i]])
        if image is None:
            continue
        neighbor = nearest[-1].nearest[position][0] if nearest else None
        yield figures.Mistake(
            image=image,
            truth=names[truth[i]],
            answer=names[said[i]],
            probability=float(largest[i]),
            nearest=_picture(neighbor.source) if neighbor else None,
            nearest_category=neighbor.category if neighbor else "",
        )


def _picture(image: ImageInput) -> Image.Image | None:
    """An image of a mistake; ``None`` if its file cannot be read: the mistake is shown without."""
    try:
        return load_image(image)
    except ImageError:
        return None
