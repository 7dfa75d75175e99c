#!/usr/bin/env python
"""What the inbox is worth, on real images: the order in which it asks for labels, and the groups that it finds.

    python scripts/teaching.py order SET…    accuracy by rounds of labelling, beside images at random
    python scripts/teaching.py groups SET    categories that are left out, among the groups of unknown images

SET has the folders `references` and `photos`, each with a sub-folder per category, and possibly `unknown`. `order`
pools the images of both, and divides them anew in each draw: a few references a category, images to ask about, and
images to measure by. `groups` leaves categories out of the references, and classifies all photos.

Every image is embedded once; every store is a real one, calibrated as a user's would be. Gains over random are paired,
draw by draw, with their standard error over the draws.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

import zsvec
from zsvec.classifier import Classifier
from zsvec.encoders import EncoderSet, load_encoders
from zsvec.evaluation import labelled_images
from zsvec.evaluation.embeddings import Embeddings
from zsvec.inputs.categories import CategoryInput, as_words
from zsvec.inputs.folders import find_images
from zsvec.method.quality.unlabelled import most_useful, urgency
from zsvec.settings.profiles import PROFILES
from zsvec.store import InboxImage
from zsvec.types import Prediction

app = typer.Typer(add_completion=False)
console = Console(highlight=False, width=180)
progress = Console(stderr=True)

RANDOM = "at random"
_SHOWN = (1, 2, 3, 5, 8, 10, 15, 20)  # rounds in the table
_HELD_OUT = 0.4  # of the images of a category, beside the first references


@dataclass(frozen=True)
class Set:
    """A set of images, embedded once.

    Attributes:
        name: Of the set.
        labels: Category of each image; empty for one of no category.
        reference: bool ``(n_images,)``, whether each is a reference of the set.
        vectors: By encoder, float32 ``(n_images, dim)``.
        texts: By encoder and category, vectors of the name, float32 ``(1, dim)``.
    """

    name: str
    labels: NDArray[np.str_]
    reference: NDArray[np.bool_]
    vectors: Mapping[str, NDArray[np.float32]]
    texts: Mapping[str, Mapping[str, NDArray[np.float32]]]

    @property
    def names(self) -> list[str]:
        """The categories."""
        return sorted(set(self.labels.tolist()) - {""})

    def rows(self, numbers: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """Vectors of some images, by encoder."""
        return {name: vectors[list(numbers)] for name, vectors in self.vectors.items()}

    def categories(self, numbers: Sequence[int], *, texts: bool = False) -> list[CategoryInput]:
        """Images under their categories; with the text of each category, if that is wanted."""
        given = []
        for name in sorted({str(self.labels[number]) for number in numbers}):
            own = [number for number in numbers if self.labels[number] == name]
            vectors = {f"{encoder}:image": rows for encoder, rows in self.rows(own).items()}
            named = {f"{encoder}:text": by_name[name] for encoder, by_name in self.texts.items()} if texts else {}
            given.append(CategoryInput(name=name, texts=[], vectors=vectors | named))
        return given


@dataclass(frozen=True)
class Asked:
    """What a recipe chooses from.

    Attributes:
        predictions: Of the images that may be asked about.
        vectors: Of them, by encoder.
        known: Vectors of the references, by encoder.
        random: Of the draw.
    """

    predictions: Sequence[Prediction]
    vectors: Mapping[str, NDArray[np.float32]]
    known: Mapping[str, NDArray[np.float32]]
    random: np.random.Generator

    @property
    def urgencies(self) -> NDArray[np.float64]:
        """Of the images, as the inbox has it."""
        return np.array([urgency(prediction) for prediction in self.predictions])

    @property
    def cosines(self) -> NDArray[np.float64]:
        """Mean cosine of each two images."""
        mean: NDArray[np.float64] = np.mean([rows @ rows.T for rows in self.vectors.values()], axis=0)
        return mean


def at_random(asked: Asked, number: int) -> Sequence[int]:
    """Any images."""
    return list(map(int, asked.random.permutation(len(asked.predictions))[:number]))


def inbox(asked: Asked, number: int) -> Sequence[int]:
    """As the inbox ranks them."""
    nearness = np.array([1 - (prediction.distance or 0.0) for prediction in asked.predictions])
    return most_useful(asked.urgencies, nearness, asked.vectors, number)


def urgent(asked: Asked, number: int) -> Sequence[int]:
    """The most urgent ones, however alike."""
    return list(map(int, np.argsort(-asked.urgencies, kind="stable")[:number]))


def far(asked: Asked, number: int) -> Sequence[int]:
    """Those farthest from all that is labelled or chosen (k-center greedy: Sener & Savarese, 2018), by urgency."""
    known = np.mean([asked.vectors[name] @ asked.known[name].T for name in asked.vectors], axis=0).max(axis=1)
    cosines, nearest, chosen = asked.cosines, known, list[int]()
    for _ in range(number):
        worth = (asked.urgencies + 1e-6) * (1 - nearest)
        worth[chosen] = -1
        chosen.append(int(worth.argmax()))
        nearest = np.maximum(nearest, cosines[chosen[-1]])
    return chosen


def typical(asked: Asked, number: int) -> Sequence[int]:
    """The most typical of the largest clusters without a label (TypiClust: Hacohen et al., 2022)."""
    from sklearn.cluster import KMeans

    known = len(next(iter(asked.known.values())))
    every = np.concatenate([np.concatenate([asked.vectors[n], asked.known[n]]) for n in asked.vectors], axis=1)
    pool = len(every) - known
    found = KMeans(min(known + number, pool), n_init=1, random_state=int(asked.random.integers(2**31))).fit(every)
    clusters = found.labels_
    covered = set(clusters[pool:].tolist())
    sizes = np.bincount(clusters[:pool], minlength=clusters.max() + 1)
    cosines, chosen = asked.cosines, list[int]()
    for cluster in sorted(range(len(sizes)), key=lambda c: (c in covered, -sizes[c]))[:number]:
        own = np.flatnonzero(clusters[:pool] == cluster)
        if len(own):
            near = np.sort(cosines[np.ix_(own, own)], axis=1)[:, -min(20, len(own)) :].mean(axis=1)
            chosen.append(int(own[near.argmax()]))
    return chosen


def clustered(asked: Asked, number: int) -> Sequence[int]:
    """Of the ten times as many that are most urgent, those nearest to the centres of as many clusters, by urgency."""
    from sklearn.cluster import KMeans

    first = np.argsort(-asked.urgencies, kind="stable")[: 10 * number]
    rows = np.concatenate([vectors[first] for vectors in asked.vectors.values()], axis=1)
    found = KMeans(min(number, len(first)), n_init=1, random_state=int(asked.random.integers(2**31)))
    found.fit(rows, sample_weight=asked.urgencies[first] + 1e-6)
    return sorted({int(first[np.argmin(((rows - centre) ** 2).sum(axis=1))]) for centre in found.cluster_centers_})


RECIPES: Mapping[str, Callable[[Asked, int], Sequence[int]]] = {
    RANDOM: at_random,
    "inbox": inbox,
    "urgent": urgent,
    "far": far,
    "typical": typical,
    "clustered": clustered,
}


@app.command()
def order(
    folders: list[Path],
    profile: str = "offline",
    recipe: Annotated[list[str] | None, typer.Option(help="Beside random ones; by default the inbox's.")] = None,
    references: Annotated[int, typer.Option(help="References a category to begin with.")] = 3,
    rounds: int = 20,
    budget: Annotated[int, typer.Option(help="Labels a round.")] = 10,
    draws: int = 10,
    cache: Annotated[Path | None, typer.Option(help="Folder to keep vectors in.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture of the accuracies, a PNG, with the set in its name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Accuracy after each round of labelling, by the order in which images are labelled."""
    encoders = _encoders(profile)
    recipes = [RANDOM, *(recipe or ["inbox"])]
    for folder in folders:
        images = embedded(folder, encoders, profile, cache)
        found: dict[str, list[list[float]]] = defaultdict(list)
        for draw in track(range(draws), f"teaching {images.name}", console=progress, transient=True):
            for name in recipes:
                found[name].append(list(taught(images, encoders, RECIPES[name], references, rounds, budget, draw)))
        accuracies = {name: np.array(values) for name, values in found.items()}
        if as_json:
            print(json.dumps({"set": images.name, **{name: values.tolist() for name, values in accuracies.items()}}))
        else:
            console.print(order_table(images.name, accuracies))
        if out:
            draw_order(out.with_stem(f"{out.stem}-{images.name}"), images.name, accuracies, budget)


def taught(
    images: Set,
    encoders: EncoderSet,
    recipe: Callable[[Asked, int], Sequence[int]],
    references: int,
    rounds: int,
    budget: int,
    draw: int,
) -> Iterator[float]:
    """Accuracy on images that are held out, before the first round and after each."""
    begin, pool, held_out = divided(images, references, draw)
    random = np.random.default_rng([draw, 1])
    known = list(begin)
    with _store(encoders) as classifier:
        classifier.add_categories(images.categories(begin, texts=True))
        for left in range(rounds, -1, -1):
            answers = classifier.classify_vectors(images.rows(held_out), top_k=1)
            right = [answer.nearest == images.labels[number] for answer, number in zip(answers, held_out, strict=True)]
            yield float(np.mean(right))
            if left and pool:
                predictions = classifier.classify_vectors(images.rows(pool))
                asked = Asked(predictions, images.rows(pool), images.rows(known), random)
                chosen = [pool[row] for row in recipe(asked, min(budget, len(pool)))]
                classifier.add_categories(images.categories(chosen))
                known += chosen
                pool = [number for number in pool if number not in set(chosen)]


def divided(images: Set, references: int, draw: int) -> tuple[list[int], list[int], list[int]]:
    """Numbers of the first references, of images to ask about, and of those held out; as many of each category."""
    random = np.random.default_rng(draw)
    begin: list[int] = []
    pool: list[int] = []
    held_out: list[int] = []
    for name in images.names:
        numbers = random.permutation(np.flatnonzero(images.labels == name)).tolist()
        measured = references + round(_HELD_OUT * (len(numbers) - references))
        begin += numbers[:references]
        held_out += numbers[references:measured]
        pool += numbers[measured:]
    return begin, pool, held_out


@app.command()
def groups(
    folder: Path,
    profile: str = "offline",
    left_out: Annotated[int, typer.Option(help="Categories that are left out of the references.")] = 4,
    draws: int = 10,
    strangers: Annotated[bool, typer.Option(help="Whether images of no category are among the others.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder to keep vectors in.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """How pure the first groups of unknown images are, and how many of the left-out images they hold.

    As many groups are looked at as categories are left out. A group is as pure as its most frequent category is; images
    of no category are never of one.
    """
    encoders = _encoders(profile)
    images = embedded(folder, encoders, profile, cache)
    found = [
        grouped(images, encoders, left_out, draw, strangers=strangers)
        for draw in track(range(draws), f"grouping {images.name}", console=progress, transient=True)
    ]
    if as_json:
        print(json.dumps({"set": images.name, "draws": found}))
        return
    table = Table("", "mean", "standard error", "worst", box=SIMPLE_HEAD, title=f"{images.name}, {draws} draws")
    for name in found[0]:
        values = np.array([one[name] for one in found])
        error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        table.add_row(name, f"{values.mean():.3f}", f"{error:.3f}", f"{values.min():.3f}")
    console.print(table)


def grouped(images: Set, encoders: EncoderSet, left_out: int, draw: int, *, strangers: bool) -> dict[str, float]:
    """The figures of one draw."""
    out = set(np.random.default_rng(draw).permutation(images.names)[:left_out].tolist())
    chosen = ~images.reference & ((images.labels != "") | strangers)
    photos = np.flatnonzero(chosen).tolist()
    known = [n for n in np.flatnonzero(images.reference).tolist() if images.labels[n] not in out]
    now = datetime.now(UTC)
    with _store(encoders, inbox_size=len(photos)) as classifier:
        classifier.add_categories(images.categories(known, texts=True))
        waiting = [
            InboxImage(hash=str(n), source="", added=now, vectors={e: rows[n] for e, rows in images.vectors.items()})
            for n in photos
        ]
        classifier.store.inbox.put(waiting)
        unknown = [int(one.hash) for one in classifier.inbox if one.prediction and one.prediction.unknown]
        made = classifier.inbox.groups()
    first = [[str(images.labels[int(one.hash)]) for one in group.images] for group in made[:left_out]]
    wanted = sum(images.labels[n] in out for n in photos)
    pure = [max(group.count(name) for name in images.names) / len(group) for group in first]
    return {
        "unknown, of the left-out images": sum(images.labels[n] in out for n in unknown) / wanted,
        "left-out images, of the unknown": sum(images.labels[n] in out for n in unknown) / max(1, len(unknown)),
        "groups": float(len(made)),
        "purity of the first groups, mean": float(np.mean(pure)) if pure else 0.0,
        "left-out images in the first groups": sum(label in out for group in first for label in group) / wanted,
        "left-out categories with a group": float(len({max(set(g), key=g.count) for g in first} & out)),
    }


def embedded(folder: Path, encoders: EncoderSet, profile: str, cache: Path | None) -> Set:
    """Read and embed a set."""
    references, photos = labelled_images(folder / "references"), labelled_images(folder / "photos")
    strangers = [(path, "") for path in find_images(folder / "unknown")] if (folder / "unknown").is_dir() else []
    every = [*references, *photos, *strangers]
    names = sorted({name for _, name in every} - {""})
    prompts = {name: spec.prompt for name, spec in PROFILES[profile].encoders.items()}
    with TemporaryDirectory() as scratch, _store(encoders) as classifier:
        classifier.create()
        kept = Embeddings(cache or Path(scratch) / "vectors", classifier)

        def refuse(source: str, reason: str) -> None:
            raise typer.BadParameter(f"{source}: {reason}")

        def shown(paths: Any) -> Any:
            return track(paths, f"embedding {folder.name}", console=progress, transient=True)

        _, vectors = kept.of([path for path, _ in every], on_error=refuse, track=shown)
    texts = {}
    for encoder in encoders:
        if "text" in encoder.modalities:
            prompt = prompts.get(encoder.name, "{name}")
            found = encoder.encode_texts([prompt.replace("{name}", as_words(name)) for name in names])
            texts[encoder.name] = {name: found[i : i + 1] for i, name in enumerate(names)}
    reference = np.arange(len(every)) < len(references)
    return Set(folder.name, np.array([name for _, name in every]), reference, vectors, texts)


def _encoders(profile: str) -> EncoderSet:
    return load_encoders(PROFILES[profile].encoders, device="auto", dtype="auto", batch_size=64)


@contextmanager
def _store(encoders: EncoderSet, **settings: Any) -> Iterator[Classifier]:
    with zsvec.open(":memory:", encoders=list(encoders), **settings) as classifier:
        yield classifier


def order_table(name: str, accuracies: Mapping[str, NDArray[np.float64]]) -> Table:
    """Accuracy by rounds in %, with the paired gain over random and its standard error."""
    draws, rounds = accuracies[RANDOM].shape
    shown = [round_ for round_ in (0, *_SHOWN) if round_ < rounds]
    table = Table("labelled", *map(str, shown), box=SIMPLE_HEAD, title=f"{name}, {draws} draws: top-1 after rounds, %")
    for recipe, values in accuracies.items():
        table.add_row(recipe, *(f"{100 * values[:, r].mean():.1f}" for r in shown))
        if recipe != RANDOM:
            gain = 100 * (values - accuracies[RANDOM])
            error = gain.std(axis=0, ddof=1) / draws**0.5 if draws > 1 else np.full(rounds, np.nan)
            table.add_row("  gain", *(f"{gain[:, r].mean():+.1f} ± {error[r]:.1f}" for r in shown))
            late = gain.mean(axis=0)[5:]
            if late.size:
                with np.errstate(divide="ignore", invalid="ignore"):
                    least = (late / error[5:]).min()
                table.add_row(f"  least gain from round 5 on: {late.min():+.1f}, {least:.1f} standard errors")
    return table


def draw_order(file: Path, name: str, accuracies: Mapping[str, NDArray[np.float64]], budget: int) -> None:
    """A picture of the accuracies, each with a band of two standard errors."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for recipe, values in accuracies.items():
        mean = 100 * values.mean(axis=0)
        error = 200 * values.std(axis=0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0 * mean
        labels = budget * np.arange(len(mean))
        axes.plot(labels, mean, label=recipe)
        axes.fill_between(labels, mean - error, mean + error, alpha=0.15)
    axes.set(xlabel="labels given", ylabel="top-1 on images held out, %", title=f"{name}, {len(values)} draws")
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    app()
