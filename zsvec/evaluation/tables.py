"""The tables of the paper (section 4), and accuracy by the number of references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from zsvec.errors import ImageError
from zsvec.evaluation.ablations import drawn, laid_out, mislabelled, only, replaced, with_images
from zsvec.evaluation.embeddings import Embeddings
from zsvec.evaluation.study import Study
from zsvec.inputs.images import ImageLimits, load_image
from zsvec.method import DEFAULT_STRATEGY
from zsvec.method.predict.fusion import STRATEGIES
from zsvec.method.similarities import References, category_names, image_experts
from zsvec.types import encoder_and_modality

PAPER_STRATEGY = "inverse_entropy"
DRAWS = 5
COLUMNS = (
    {"key": "top1", "title": "top-1", "unit": "%", "best": "high"},
    {"key": "top3", "title": "top-3", "unit": "%", "best": "high"},
    {"key": "top5", "title": "top-5", "unit": "%", "best": "high"},
    {"key": "paper_auroc", "title": "AUROC, paper", "unit": "", "best": "high"},
    {"key": "auroc", "title": "AUROC, novelty", "unit": "", "best": "high"},
    {"key": "nll", "title": "NLL, nats", "unit": "", "best": "low"},
    {"key": "brier", "title": "Brier", "unit": "", "best": "low"},
    {"key": "ece", "title": "ECE", "unit": "%", "best": "low"},
    {"key": "ece_floor", "title": "its floor", "unit": "%", "best": ""},
)
_BY_DEFAULT: Mapping[str, Any] = {"fusion": DEFAULT_STRATEGY}
_AS_IN_THE_PAPER: Mapping[str, Any] = {"fusion": PAPER_STRATEGY, "calibrated": False}
_BOTH = (("as in the paper", _AS_IN_THE_PAPER), ("by default", _BY_DEFAULT))
_COUNTS = (1, 2, 3, 5, 10, 20, 50, 100)
_FEW = 4  # experts of which all combinations are tried
_BLUR = 0.04  # radius of the blur, as a share of the shorter side


def single(study: Study) -> dict[str, Any]:
    """Table 2: each expert alone, then three ways to fuse all of them."""
    rows = [
        study.row("single", expert, study.answers(only(study.references, [expert]), fusion="log_linear"))
        for expert in study.references
    ]
    rows += [
        study.row("single", title, study.answers(study.references, fusion=fusion, calibrated=calibrated))
        for title, fusion, calibrated in (
            ("fusion as in the paper", PAPER_STRATEGY, False),
            ("the same, calibrated", PAPER_STRATEGY, True),
            (f"fusion by default ({DEFAULT_STRATEGY})", DEFAULT_STRATEGY, True),
        )
    ]
    note = "Each expert alone, calibrated, then their fusion. A fusion should beat each of them."
    return _table("single", "Single experts against their fusion", "table 2", note, rows)


def components(study: Study) -> dict[str, Any]:
    """Tables 3 and 4: combinations of experts."""
    experts = sorted(study.references, key=lambda expert: (encoder_and_modality(expert)[1] != "text", expert))
    sizes = range(1, len(experts) + 1) if len(experts) <= _FEW else (1, 2, len(experts))
    rows = [
        study.row(
            "components", f"{' + '.join(chosen)}, {how}", study.answers(only(study.references, chosen), **choices)
        )
        for size in sizes
        for chosen in combinations(experts, size)
        for how, choices in _BOTH
    ]
    modules = ", ".join(f"M{i} is {expert}" for i, expert in enumerate(experts, 1))
    note = f"In the paper's words, {modules}."
    return _table("components", "Components in all combinations", "tables 3 and 4", note, rows)


def strategies(study: Study) -> dict[str, Any]:
    """Tables 5 and 6: every strategy with and without a calibration, and fixed weights."""
    rows = [
        study.row(
            "strategies", f"{strategy}, {how}", study.answers(study.references, fusion=strategy, calibrated=calibrated)
        )
        for strategy in STRATEGIES
        for how, calibrated in (("fixed temperatures", False), ("calibrated", True))
    ]
    rows += [
        study.row(
            "strategies",
            f"fixed, {expert} × {factor}, fixed temperatures",
            study.answers(study.references, fusion="fixed", calibrated=False, weights={expert: float(factor)}),
        )
        for expert in study.references
        for factor in (2, 4)
    ]
    note = (
        "max_confidence, inverse_entropy and neg_exp_entropy are the paper's options 1 to 3, fixed its predefined "
        "weights; transductive sees the images in batches of 256. The novelty is that of the evidence, whatever the "
        "strategy; with fixed temperatures it is the distance to the nearest reference."
    )
    return _table("strategies", "Strategies of fusion and fixed weights", "tables 5 and 6", note, rows)


def one_and_many(study: Study) -> dict[str, Any]:
    """Table 7: one reference image a category against all of them."""
    rows = []
    for how, choices in _BOTH:
        draws = [
            study.row(
                "one-and-many", f"one, {how}, draw {seed}", study.answers(drawn(study.references, 1, seed), **choices)
            )
            for seed in range(DRAWS)
        ]
        rows.append(_mean(f"one reference image, {how}", draws))
        rows.append(
            study.row("one-and-many", f"all reference images, {how}", study.answers(study.references, **choices))
        )
    note = f"One reference image of each category (mean of {DRAWS} draws) against all of them; texts in both."
    return _table("one-and-many", "One reference against many", "table 7", note, rows)


def quality(study: Study, embeddings: Embeddings, limits: ImageLimits) -> dict[str, Any]:
    """Section 4.3.3: reference images under wrong categories, of no category, and out of focus."""
    rows = []

    def add(name: str, references: Mapping[str, References]) -> None:
        rows.append(study.row("quality", name, study.answers(references, **_BY_DEFAULT)))

    note = "The default fusion, calibrated on references that have been spoiled."
    add("as they are", study.references)
    if len(category_names(study.references)) > 1:
        for share in (0.2, 0.5):
            add(f"{share:.0%} under a wrong category", mislabelled(study.references, share, seed=0))
    if not study.sample.known.all():
        foreign = replaced(study.references, 0.2, study.sample.unknown_vectors, seed=0)
        add("20% replaced by images of no category", foreign)
        note += (
            " The images of no category that became references are among the test images too, which lowers the AUROC."
        )
    blurred = _blurred(study.references, embeddings, limits)
    if blurred is not None:
        add(f"blurred (radius {_BLUR:.0%} of the side)", blurred)
    else:
        note += " References were not blurred: not all of their files can be read where they were when they were added."
    return _table("quality", "Quality of the references", "section 4.3.3", note, rows)


def curves(study: Study) -> dict[str, Any]:
    """Top-1 accuracy by the number of references a category, for both fusions and each image expert.

    Returns:
        By name of the line, lists ``counts``, ``mean`` and ``std`` (over draws); nothing without reference images.
    """
    experts = study.image_experts
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


def _table(identifier: str, title: str, paper: str, note: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    used = [column for column in COLUMNS if any(row["values"].get(column["key"]) is not None for row in rows)]
    return {"id": identifier, "title": title, "paper": paper, "note": note, "columns": used, "rows": list(rows)}


def _mean(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of the rows of several draws."""
    by_key = {key: [row["values"][key] for row in rows] for key in rows[0]["values"]}
    values = {key: None if None in drawn else float(np.mean(drawn)) for key, drawn in by_key.items()}
    return {"name": name, "values": values, "interval": {}}


def _blurred(
    references: Mapping[str, References], embeddings: Embeddings, limits: ImageLimits
) -> dict[str, References] | None:
    """The same reference images out of focus; ``None`` if not all of their files can be read."""
    sources = {
        digest: source
        for stored in image_experts(references).values()
        for digest, source in zip(stored.hashes, stored.sources, strict=True)
    }
    try:
        out_of_focus = (_out_of_focus(load_image(source, **limits)) for source in sources.values())
        positions, vectors = embeddings.of(out_of_focus, on_error=lambda source, reason: None)
    except ImageError:
        return None
    if len(positions) < len(sources):
        return None
    row = {digest: i for i, digest in enumerate(sources)}

    def change(encoder: str, images: References) -> References:
        rows = [row[digest] for digest in images.hashes]
        return laid_out(vectors[encoder][rows], images.labels, images.hashes, images.sources)

    return with_images(references, change)


def _out_of_focus(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(_BLUR * min(image.size)))
