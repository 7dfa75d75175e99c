#!/usr/bin/env python
"""Measures the answers of tracks on bursts: frames of single photos under motion, blur and noise.

    python scripts/tracks.py SET… --cache FOLDER

SET has the folders `references` and `photos`, each with a sub-folder per category, and may have a folder `unknown` with
images of no category. Each draw takes two thirds of the categories and some references of each. The photos of the other
categories, and those of `unknown`, are strangers. An answer is wrong if the photo is of another category, or a
stranger. Two other rules use the same predictions:

- Frigate: frames with a probability of .8 and more count. The answer stands after 3 of them if 60 % agree.
- track_class_lock of Roboflow: the first category with 10 frames of .8 and more that leads by 3.

Then the id of each track passes to a photo of another category: the last columns have the share of frames that the
tracker wanted before, and the median number of frames after which the answer of the first photo was given up.

The caption has the share of frames whose most probable category is right, and the share of undamaged photos that reach
a probability of .99. Strangers do not count.

Bursts are embedded once, about 20 ms a frame on one core, and kept in the folder of `--cache`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from standing.bursts import embed_bursts

import zsvec
from zsvec.classifier.tracker import FEWEST_FRAMES
from zsvec.encoders import load_encoders
from zsvec.encoders.base import batches
from zsvec.inputs.folders import find_images
from zsvec.inputs.images import load_image
from zsvec.settings.profiles import PROFILES

app = typer.Typer(add_completion=False)
console = Console(width=140, highlight=False)
_ERROR_RATES = (0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002)
_ASKED = (0.05, 0.01)
_SURE = 0.99  # probability that is counted on undamaged photos
_VOTE = 0.8  # probability from which on a frame counts, in both other rules
_SEED = 20

Vectors = Mapping[str, NDArray[np.floating]]
Answer = tuple[int, str] | tuple[None, None]
"""Number of frames until an answer, and the answer."""


@dataclass(frozen=True)
class Outcome:
    """What a rule makes of a track.

    Attributes:
        truth: Category of the photo; ``None`` for a stranger.
        frames: Number of frames until the answer; ``None`` without an answer.
        answer: The first answer.
        wanted: Fraction of the frames that were classified.
        given_up: Number of frames of another photo after which the tracker gave the answer up.
    """

    truth: str | None
    frames: int | None
    answer: str | None
    wanted: float = np.nan
    given_up: float = np.nan

    @property
    def wrong(self) -> bool:
        """Whether the answer is wrong."""
        return self.answer is not None and self.answer != self.truth


@app.command()
def tracks(
    folders: list[Path],
    cache: Annotated[Path, typer.Option(help="Folder for the vectors of the bursts.")],
    references: Annotated[list[int], typer.Option(help="References of a category.")] = [3, 10],  # noqa: B006
    frames: int = 30,
    draws: int = 3,
) -> None:
    """Measure errors, locked tracks and frames until the lock, beside the rules of Frigate and Roboflow."""
    encoders = load_encoders(PROFILES["offline"].encoders, device="cpu", dtype="float32", batch_size=64)
    cache.mkdir(parents=True, exist_ok=True)

    def bursts(folder: Path) -> tuple[Vectors, list[str]]:
        paths, file = find_images(folder) if folder.is_dir() else [], cache / f"{folder.parent.name}-{folder.name}.npz"
        if paths and not file.exists():
            np.savez(file, **embed_bursts(paths, frames, encoders, _SEED))  # type: ignore[arg-type]
        return dict(np.load(file)) if paths else {}, [path.parent.name for path in paths]

    def still(paths: Sequence[Path]) -> Vectors:
        parts = [
            encoders.encode_images([encoders.preprocess(load_image(one)) for one in some])
            for some in batches(paths, 64)
        ]
        return {encoder.name: np.concatenate([part[encoder.name] for part in parts]) for encoder in encoders}

    for folder in folders:
        stored = find_images(folder / "references")
        vectors, owners = still(stored), np.array([path.parent.name for path in stored])
        photos, strangers = bursts(folder / "photos"), bursts(folder / "unknown")
        undamaged = still(find_images(folder / "photos"))
        with zsvec.open(":memory:", profile="offline", device="cpu", dtype="float32") as clf:
            for number in references:
                outcomes: dict[str, list[Outcome]] = {}
                right: list[bool] = []
                sure: list[bool] = []
                for seed in range(draws):
                    _draw(clf, (vectors, owners), (photos, strangers), undamaged, number, seed, outcomes, right, sure)
                clear = f"{np.mean(right):.0%} of the frames are right, {np.mean(sure):.0%} of the photos reach .99"
                _show(f"{folder.name}, {number} references of a category, {draws} draws", clear, outcomes)


def _draw(
    clf: zsvec.Classifier,
    references: tuple[Vectors, NDArray[np.str_]],
    sets: Sequence[tuple[Vectors, list[str]]],
    undamaged: Vectors,
    number: int,
    seed: int,
    outcomes: dict[str, list[Outcome]],
    right: list[bool],
    sure: list[bool],
) -> None:
    random = np.random.default_rng([number, seed])
    stored, owners = references
    names = np.unique(owners)
    chosen = sorted(random.choice(names, len(names) * 2 // 3, replace=False).tolist())
    rows = {name: random.choice(np.flatnonzero(owners == name), number, replace=False) for name in chosen}
    clf.add_categories(
        zsvec.CategoryInput(name=name, vectors={f"{e}:image": vectors[some] for e, vectors in stored.items()})
        for name, some in rows.items()
    )
    for bursts, subjects in sets:
        found = [
            clf.classify_vectors({e: vectors[burst] for e, vectors in bursts.items()}, top_k=10)
            for burst in range(len(subjects))
        ]
        for burst, subject in enumerate(subjects):
            truth, other = subject if subject in chosen else None, random.permutation(len(subjects))
            follower = found[next((i for i in other if subjects[i] != subject), burst)]
            for rule, (at, answer) in _answers(clf, found[burst]).items():
                more = _followed(clf, float(rule), found[burst], follower) if rule in map("{:g}".format, _ASKED) else ()
                outcomes.setdefault(rule, []).append(Outcome(truth, at, answer, *more))
            if truth is not None:
                right += [one.nearest == truth for one in found[burst]]
    for one, subject in zip(clf.classify_vectors(undamaged), sets[0][1], strict=True):
        if subject in chosen:
            sure.append((one.probability or 0) >= _SURE)
    for name in chosen:
        clf.remove_category(name)


def _answers(clf: zsvec.Classifier, found: Sequence[zsvec.Prediction]) -> dict[str, Answer]:
    """Returns by rule the frames until an answer, and the answer."""
    never = clf.tracker(error_rate=1e-12)
    course = [never.update("burst", one) for one in found]
    answers: dict[str, Answer] = {"Frigate": _frigate(found), "Roboflow": _roboflow(found)}
    for rate in _ERROR_RATES:
        locked = (one for one in course[FEWEST_FRAMES - 1 :] if (one.probability or 0) >= 1 - rate)
        first = next(locked, None)
        answers[f"{rate:g}"] = (None, None) if first is None else (first.frames, str(first.nearest))
    return answers


def _followed(
    clf: zsvec.Classifier, rate: float, found: Sequence[zsvec.Prediction], follower: Sequence[zsvec.Prediction]
) -> tuple[float, float]:
    """Returns `Outcome.wanted` and `Outcome.given_up`."""
    tracker, wanted, before = clf.tracker(error_rate=rate), 0, None
    for number, one in enumerate([*found, *follower]):
        if tracker.wants("burst"):
            wanted += number < len(found)
            answer = tracker.update("burst", one)
        if number == len(found) - 1:
            before = answer.label
        if number >= len(found) and before is not None and answer.label != before:
            return wanted / len(found), number - len(found) + 1
    return wanted / len(found), np.nan if before is None else np.inf


def _frigate(found: Sequence[zsvec.Prediction]) -> Answer:
    votes: list[str | None] = []
    for number, one in enumerate(found, 1):
        if (one.probability or 0) >= _VOTE:
            votes.append(one.label)
            (answer, count), *_ = Counter(votes).most_common(1)
            if len(votes) >= 3 and count >= 0.6 * len(votes) and answer is not None:
                return number, answer
    return None, None


def _roboflow(found: Sequence[zsvec.Prediction]) -> Answer:
    votes: Counter[str | None] = Counter()
    for number, one in enumerate(found, 1):
        if (one.probability or 0) >= _VOTE:
            votes[one.label] += 1
            (answer, count), (_, second) = [*votes.most_common(2), (None, 0)][:2]
            if count >= 10 and count - second >= 3:
                return (None, None) if answer is None else (number, answer)
    return None, None


def _show(title: str, clear: str, outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    headers = ("wrong %", "known locked %", "strangers locked %", "median frames", "mean", "wanted %", "given up after")
    table = Table("rule", *headers, box=SIMPLE_HEAD, title=title, title_justify="left", caption=clear)
    for rate in map("{:g}".format, _ASKED):
        table.add_row(f"asked {rate}", *_figures(outcomes[rate]))
    for rule in ("Frigate", "Roboflow"):
        table.add_row(rule, *_figures(outcomes[rule]))
        rates = map("{:g}".format, _ERROR_RATES)
        same = next((rate for rate in rates if _error(outcomes[rate]) <= _error(outcomes[rule])), None)
        if same is not None:
            ours = outcomes[same]
            table.add_row(
                f"  no more wrong: {same}", *_figures(ours), f"{_frames_ratio(ours, outcomes[rule]):.2f} × frames"
            )
    console.print(table)


def _frames_ratio(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> float:
    """Returns the ratio of the median frames, over the known tracks that both rules answer."""
    both = [(a.frames, b.frames) for a, b in zip(ours, theirs, strict=True) if a.truth and a.frames and b.frames]
    return float(np.median([a for a, _ in both]) / np.median([b for _, b in both])) if both else np.nan


def _error(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([one.wrong for one in outcomes if one.answer is not None] or [False]))


def _figures(outcomes: Sequence[Outcome]) -> list[str]:
    known, strangers = ([one for one in outcomes if (one.truth is None) == is_new] for is_new in (False, True))
    answered, error = [one for one in outcomes if one.answer is not None], _error(outcomes)
    frames = [one.frames for one in known if one.frames]
    figures = [
        f"{100 * error:.2f} ± {100 * np.sqrt(error * (1 - error) / max(1, len(answered))):.2f}",
        *(f"{100 * np.mean([one.answer is not None for one in some]):.1f}" for some in (known, strangers)),
        f"{np.median([one.frames or np.inf for one in known]):g}",
        f"{np.mean(frames):.1f}" if frames else "",
    ]
    if not np.isnan(outcomes[0].wanted):
        given_up = [one.given_up for one in known if not np.isnan(one.given_up)]
        figures.append(f"{100 * np.mean([one.wanted for one in outcomes]):.0f}")
        figures.append(f"{np.median(given_up):g}" if given_up else "")
    return figures


if __name__ == "__main__":
    app()
