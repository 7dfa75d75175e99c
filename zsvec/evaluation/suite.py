"""The tables and figures of the paper (section 4), for the references of a store and images of one's own."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from zsvec.classifier import Classifier
from zsvec.errors import ImageError, InvalidInputError
from zsvec.evaluation.ablations import (
    Answers,
    Sample,
    answer,
    drawn,
    image_keys,
    laid_out,
    mislabelled,
    only,
    with_images,
)
from zsvec.evaluation.embeddings import Embeddings
from zsvec.evaluation.evaluate import check_labels
from zsvec.evaluation.metrics import (
    blind_auroc,
    bootstrap,
    bootstrap_auroc,
    paper_auroc,
    paper_unknown_score,
    top_k,
)
from zsvec.evaluation.splits import Split, paper_splits
from zsvec.inputs.images import ImageInput, load_image, source_of
from zsvec.method.aggregation import aggregate
from zsvec.method.fit import expected_calibration_error
from zsvec.method.fusion import DEFAULT_STRATEGY, STRATEGIES
from zsvec.method.scoring import Scoring
from zsvec.method.similarities import References, category_names
from zsvec.search.searcher import Searcher, compare
from zsvec.types import encoder_and_modality

FORMAT = 1
PAPER_STRATEGY = "inverse_entropy"
DRAWS = 5
_COUNTS = (1, 2, 3, 5, 10, 20, 50, 100)
_TIMED = 128  # images whose stages are timed, and
_AT_ONCE = 32
_MANY = 100  # categories from which 20 are known, as in TinyImageNet of the paper
_FEW = 4  # experts of which all combinations are tried
_BLUR = 0.04  # radius of the blur, as a share of the shorter side

COLUMNS = (
    {"key": "top1", "title": "top-1", "unit": "%", "best": "high"},
    {"key": "top3", "title": "top-3", "unit": "%", "best": "high"},
    {"key": "top5", "title": "top-5", "unit": "%", "best": "high"},
    {"key": "paper_auroc", "title": "AUROC, paper", "unit": "", "best": "high"},
    {"key": "auroc", "title": "AUROC, novelty", "unit": "", "best": "high"},
    {"key": "ece", "title": "ECE", "unit": "%", "best": "low"},
)


@dataclass(slots=True)
class Suite:
    """Everything that the suite found.

    Attributes:
        results: What `results.json` holds; see the README for its schema.
        predictions: By table and row, what was said of each image: enough to compute every number again.
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


@dataclass
class _Study:
    """One store, one sample, and the rows that were made of them."""

    references: Mapping[str, References]
    sample: Sample
    scoring: Scoring
    false_unknown_rate: float
    splits: Sequence[Split]
    predictions: dict[str, Any] = field(default_factory=dict)

    @property
    def has_images(self) -> bool:
        """Whether there are reference images."""
        return any(encoder_and_modality(expert)[1] == "image" for expert in self.references)

    def answers(self, references: Mapping[str, References], **choices: Any) -> Answers:
        return answer(references, self.sample, replace(self.scoring, **choices), self.false_unknown_rate)

    def row(self, table: str, name: str, said: Answers) -> dict[str, Any]:
        """Metrics of a row of a table, and its predictions for those who want to compute them again."""
        known = self.sample.known
        position = {category: i for i, category in enumerate(said.categories)}
        truth = np.array([position.get(str(label), -1) for label in np.array(self.sample.truth)[known]], dtype=np.intp)
        probabilities = said.probabilities[known]
        hits = {k: top_k(probabilities, truth, k) for k in (1, 3, 5)}
        values: dict[str, float | None] = {f"top{k}": float(hit.mean()) for k, hit in hits.items()}
        values["ece"] = expected_calibration_error(probabilities.max(axis=1), hits[1])
        masks = [np.isin(said.categories, list(split.known)) for split in self.splits]
        # Of experts that know some categories only, a split may leave no image on one side.
        aurocs = [
            paper_auroc(probabilities, truth, mask) for mask in masks if len(np.unique(mask[truth[truth >= 0]])) > 1
        ]
        values["paper_auroc"] = float(np.mean(aurocs)) if aurocs else None
        interval = {f"top{k}": list(bootstrap(hit.astype(np.float64))) for k, hit in hits.items()}
        values["auroc"] = None
        if not known.all():
            values["auroc"] = blind_auroc(said.novelty, ~known)
            interval["auroc"] = list(bootstrap_auroc(said.novelty, ~known))
        self.predictions[f"{table}/{name}"] = {
            "categories": list(said.categories),
            "top": np.argsort(-said.probabilities, axis=1, kind="stable")[:, :5].tolist(),
            "probability": said.probabilities.max(axis=1).tolist(),
            "novelty": said.novelty.tolist(),
            "unknown": said.unknown.tolist(),
            "unknown_scores": [paper_unknown_score(said.probabilities, mask).tolist() for mask in masks],
        }
        return {"name": name, "values": values, "interval": interval}


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
    store = classifier.store
    searcher = Searcher(store, method="mirror", budget=0, limit=1, norms=True)
    stored, _ = searcher.references()
    references = only(stored, classifier.scoring.temperatures.keys())
    names = category_names(references)
    check_labels(names, [label for _, label in images], images=name, location=store.location)

    say("embedding the images")
    paths = [image for image, _ in images] + list(unknown)
    truth = [label for _, label in images] + [None] * len(unknown)
    start = time.perf_counter()
    embeddings = Embeddings(folder / "embeddings", classifier)
    positions, vectors = embeddings.of(paths, on_error=on_error, track=track)
    embedding = time.perf_counter() - start
    sources = [_named(paths[i], f"{name}/{i}") for i in positions]
    sample = Sample(sources, [truth[i] for i in positions], vectors)
    if not sample.known.any():
        raise InvalidInputError("no image with a category can be read")

    start = time.perf_counter()
    shown = sorted({label for label in sample.truth if label is not None})
    kind = "20/180" if len(shown) >= _MANY else "6/4"
    study = _Study(
        references,
        sample,
        replace(classifier.scoring, calibrated=True, unknown_above=None),
        classifier.false_unknown_rate,
        paper_splits(shown, kind, range(DRAWS)) if len(shown) > 1 else (),
    )
    tables = []
    for title, table in (
        ("experts and their fusion", _single),
        ("components", _components),
        ("strategies", _strategies),
        ("one reference and many", _one_and_many),
    ):
        say(title)
        if table is not _one_and_many or study.has_images:
            tables.append(table(study))
    if study.has_images:
        say("quality of the references")
        tables.append(_quality(study, embeddings, classifier.settings.max_pixels))
    say("number of the references")
    curves = _curves(study)
    say("time per stage")
    tables.append(_stages(study, classifier, [paths[i] for i in positions]))
    spent = time.perf_counter() - start
    said = study.answers(references, fusion=DEFAULT_STRATEGY)
    return Suite(
        results={
            "format": FORMAT,
            "set": name,
            "profile": classifier.settings.profile,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "images": int(sample.known.sum()),
            "unknown_images": int((~sample.known).sum()),
            "categories": len(names),
            "references": {expert: len(of.hashes) for expert, of in references.items()},
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in ("zsvec", "torch", "timm", "sentence-transformers")},
            },
            "seconds": {"embedding": embedding, "everything else": spent},
            "splits": {"kind": kind, "known": [sorted(split.known) for split in study.splits]},
            "summary": _summary(tables, len(references), sample, said),
            "tables": tables,
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
        answers=said,
        sample=sample,
        images=[paths[i] for i in positions],
        references=references,
    )


def _named(image: ImageInput, otherwise: str) -> str:
    """Where an image comes from, or a name for what comes from nowhere."""
    return source_of(image) if isinstance(image, str | os.PathLike) else otherwise


def _table(identifier: str, title: str, paper: str, note: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    used = [column for column in COLUMNS if any(row["values"].get(column["key"]) is not None for row in rows)]
    return {"id": identifier, "title": title, "paper": paper, "note": note, "columns": used, "rows": list(rows)}


def _single(study: _Study) -> dict[str, Any]:
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
    note = "Each expert alone, calibrated, then what they say together. A fusion should beat each of them."
    return _table("single", "Single experts against their fusion", "table 2", note, rows)


def _components(study: _Study) -> dict[str, Any]:
    experts = sorted(study.references, key=lambda expert: (encoder_and_modality(expert)[1] != "text", expert))
    sizes = range(1, len(experts) + 1) if len(experts) <= _FEW else (1, 2, len(experts))
    rows = [
        study.row(
            "components", f"{' + '.join(chosen)}, {how}", study.answers(only(study.references, chosen), **choices)
        )
        for size in sizes
        for chosen in combinations(experts, size)
        for how, choices in (
            ("as in the paper", {"fusion": PAPER_STRATEGY, "calibrated": False}),
            ("by default", {"fusion": DEFAULT_STRATEGY}),
        )
    ]
    modules = ", ".join(f"M{i} is {expert}" for i, expert in enumerate(experts, 1))
    return _table(
        "components", "Components in all combinations", "tables 3 and 4", f"In the paper's words, {modules}.", rows
    )


def _strategies(study: _Study) -> dict[str, Any]:
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
        "max, inverse_entropy and neg_exp_entropy are the paper's options 1 to 3, fixed its predefined weights; "
        "transductive sees the images in batches of 256. The novelty is that of the evidence, whatever the strategy."
    )
    return _table("strategies", "Strategies of fusion and fixed weights", "tables 5 and 6", note, rows)


def _mean(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of the rows of several draws."""
    values = {
        key: None if rows[0]["values"][key] is None else float(np.mean([row["values"][key] for row in rows]))
        for key in rows[0]["values"]
    }
    return {"name": name, "values": values, "interval": {}}


def _one_and_many(study: _Study) -> dict[str, Any]:
    rows = []
    for how, choices in (
        ("as in the paper", {"fusion": PAPER_STRATEGY, "calibrated": False}),
        ("by default", {"fusion": DEFAULT_STRATEGY}),
    ):
        of_draws = [
            study.row(
                "one-and-many", f"one, {how}, draw {seed}", study.answers(drawn(study.references, 1, seed), **choices)
            )
            for seed in range(DRAWS)
        ]
        rows.append(_mean(f"one reference image, {how}", of_draws))
        rows.append(
            study.row("one-and-many", f"all reference images, {how}", study.answers(study.references, **choices))
        )
    note = f"One reference image of each category (mean of {DRAWS} draws) against all of them; texts in both."
    return _table("one-and-many", "One reference against many", "table 7", note, rows)


def _curves(study: _Study) -> dict[str, Any]:
    """Top-1 accuracy by the number of references a category: the default fusion, the paper's, and image experts."""
    images = [expert for expert in study.references if encoder_and_modality(expert)[1] == "image"]
    most = max((int(np.diff(study.references[expert].starts).max()) for expert in images), default=0)
    counts = [count for count in _COUNTS if count < most] + [most] * (most > 0)
    known = study.sample.known
    truth = np.array(study.sample.truth)[known]
    lines: dict[str, list[list[float]]] = {}
    for count in counts:
        for seed in range(DRAWS if count < most else 1):
            references = drawn(study.references, count, seed)
            said = {
                "fusion by default": study.answers(references, fusion=DEFAULT_STRATEGY),
                "fusion as in the paper": study.answers(references, fusion=PAPER_STRATEGY, calibrated=False),
                **{expert: study.answers(only(references, [expert]), fusion="log_linear") for expert in images},
            }
            for line, of in said.items():
                right = np.array(of.categories)[of.probabilities[known].argmax(axis=1)] == truth
                lines.setdefault(line, [[] for _ in counts])[counts.index(count)].append(float(right.mean()))
    return {
        line: {
            "counts": counts,
            "mean": [float(np.mean(draws)) for draws in of],
            "std": [float(np.std(draws)) for draws in of],
        }
        for line, of in lines.items()
    }


def _quality(study: _Study, embeddings: Embeddings, max_pixels: int) -> dict[str, Any]:
    choices = {"fusion": DEFAULT_STRATEGY}
    said = study.answers(study.references, **choices)
    rows = [study.row("quality", "as they are", said)]
    for share in (0.2, 0.5) if len(said.categories) > 1 else ():
        wrong = mislabelled(study.references, share, seed=0)
        rows.append(study.row("quality", f"{share:.0%} under a wrong category", study.answers(wrong, **choices)))
    foreign = _foreign(study.references, study.sample)
    if foreign is not None:
        rows.append(study.row("quality", "20% replaced by images of no category", study.answers(foreign, **choices)))
    blurred = _blurred(study.references, embeddings, max_pixels)
    if blurred is not None:
        rows.append(
            study.row("quality", f"blurred (radius {_BLUR:.0%} of the side)", study.answers(blurred, **choices))
        )
    note = "The default fusion, calibrated on references that have been spoiled."
    if foreign is not None:
        note += (
            " The images of no category that became references are among the test images too, which lowers the AUROC."
        )
    if blurred is None:
        note += " References were not blurred: not all of their files can be read where they were when they were added."
    return _table("quality", "Quality of the references", "section 4.3.3", note, rows)


def _foreign(references: Mapping[str, References], sample: Sample) -> dict[str, References] | None:
    """A fifth of the reference images replaced by images of no category; ``None`` without any."""
    strangers = np.flatnonzero(~sample.known)
    if not strangers.size:
        return None
    random = np.random.default_rng(0)
    keys = sorted({digest for _, digest in image_keys(references)})
    replaced = {keys[i]: int(random.choice(strangers)) for i in random.permutation(len(keys))[: len(keys) // 5]}

    def change(encoder: str, of: References) -> References:
        vectors = of.vectors.copy()
        for row, digest in enumerate(of.hashes):
            if digest in replaced:
                vectors[row] = sample.vectors[encoder][replaced[digest]]
        return laid_out(vectors, of.labels, of.hashes, of.sources)

    return with_images(references, change)


def _blurred(
    references: Mapping[str, References], embeddings: Embeddings, max_pixels: int
) -> dict[str, References] | None:
    """The same reference images out of focus; ``None`` if not all of their files can be read."""
    sources = {
        digest: source
        for expert, of in references.items()
        if encoder_and_modality(expert)[1] == "image"
        for digest, source in zip(of.hashes, of.sources, strict=True)
    }
    try:
        out_of_focus = (_out_of_focus(load_image(source, max_pixels=max_pixels)) for source in sources.values())
        positions, vectors = embeddings.of(out_of_focus, on_error=lambda source, reason: None)
    except ImageError:
        return None
    if len(positions) < len(sources):
        return None
    row = {digest: i for i, digest in enumerate(sources)}
    return with_images(
        references,
        lambda encoder, of: laid_out(
            vectors[encoder][[row[digest] for digest in of.hashes]], of.labels, of.hashes, of.sources
        ),
    )


def _out_of_focus(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(_BLUR * min(image.size)))


def _stages(study: _Study, classifier: Classifier, images: Sequence[ImageInput]) -> dict[str, Any]:
    """Time per image of each stage, one after the other, a few images at a time."""
    encoders, scoring = classifier.encoders, study.scoring
    chosen = images[:_TIMED]
    names = category_names(study.references)
    spent: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        made = work()
        spent[stage] = spent.get(stage, 0.0) + 1000 * (time.perf_counter() - start) / len(chosen)
        return made

    def go_through(some: Sequence[ImageInput]) -> None:
        loaded = timed("load", lambda: [load_image(i, max_pixels=classifier.settings.max_pixels) for i in some])
        prepared = timed("preprocess", lambda: [encoders.preprocess(image) for image in loaded])
        vectors = timed("encode", lambda: encoders.encode_images(prepared))
        found = timed("search", lambda: compare(study.references, names, vectors, 3))
        timed(
            "aggregate", lambda: [aggregate(e.similarities, scoring.aggregation, scoring.top_m) for e in found.experts]
        )
        timed("fuse", lambda: scoring.scores(found))

    go_through(chosen[:_AT_ONCE])
    spent.clear()  # the first time is warming up
    for first in range(0, len(chosen), _AT_ONCE):
        go_through(chosen[first : first + _AT_ONCE])
    spent["fuse"] = max(0.0, spent["fuse"] - spent["aggregate"])
    spent["total"] = sum(spent.values())
    return {
        "id": "stages",
        "title": "Time per image",
        "paper": "table 8",
        "note": f"Of {len(chosen)} images, stage after stage; zsvec itself loads and preprocesses beside the encoders.",
        "columns": [{"key": "ms", "title": "time", "unit": "ms"}, {"key": "share", "title": "share", "unit": "%"}],
        "rows": [
            {"name": stage, "values": {"ms": ms, "share": ms / spent["total"]}, "interval": {}}
            for stage, ms in spent.items()
        ],
    }


def _summary(tables: Sequence[Mapping[str, Any]], n_experts: int, sample: Sample, said: Answers) -> list[str]:
    """What the tables say, in sentences."""
    top1 = [(row["name"], row["values"]["top1"]) for row in tables[0]["rows"]]
    best, alone = max(top1[:n_experts], key=lambda row: row[1])
    paper, _, default = (value for _, value in top1[n_experts:])
    sentences = [
        f"The best expert alone is {best}: {alone:.1%} of the images are right. As in the paper, "
        f"their fusion gives {paper:.1%}; calibrated and by default {default:.1%}."
    ]
    if np.isfinite(said.threshold).any() and not sample.known.all():
        found, alarms = said.unknown[~sample.known].mean(), said.unknown[sample.known].mean()
        sentences.append(
            f"{found:.1%} of the images of no category are called unknown, and {alarms:.1%} of the others."
        )
    return sentences
