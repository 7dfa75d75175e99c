#!/usr/bin/env python
"""Measures definition texts of a language model, as `zsvec generate --texts` stores them.

    python scripts/definition_texts.py SET…

SET has the folders `references` and `photos`, each with a sub-folder per category. The folder `standing/answers` has
recorded answers for the sets caltech24 and cifar10, written by hand in place of a paid model. Each draw pools the
images of both folders and divides them again at random. The draws share images, so the standard errors are somewhat
too small.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track
from standing.measure import Asked, show
from standing.sets import Images, embed, progress
from standing.trials import Draw, Trial

from zsvec.encoders import load_encoders
from zsvec.generation.features import Knowledge
from zsvec.generation.manifest import read_manifest
from zsvec.inputs.categories import as_words
from zsvec.method import DEFAULT_STRATEGY
from zsvec.method.similarities import laid_out
from zsvec.settings.profiles import PROFILES
from zsvec.types import expert_name

app = typer.Typer(add_completion=False)
_ANSWERS = Path(__file__).parent / "standing" / "answers"


@app.command()
def definition_texts(
    folders: list[Path],
    references: Annotated[list[int], typer.Option(help="Reference images of a category.")] = [0, 1, 3, 10],  # noqa: B006
    profile: str = "offline",
    draws: int = 30,
) -> None:
    """Measure accuracy and calibration with and without the texts over random draws."""
    for folder in folders:
        images = embed(folder, profile)
        knowledge = Knowledge.of(read_manifest(_ANSWERS / images.name))
        names = sorted(images.pool)
        found = knowledge.texts(names, names)
        variants = {
            "the name": _with_texts(images, profile, {}),
            "and the description": _with_texts(images, profile, {name: some[:1] for name, some in found.items()}),
            "and features": _with_texts(images, profile, found),
        }
        measured: dict[str, dict[str, list[Mapping[str, float]]]] = defaultdict(lambda: defaultdict(list))
        for seed in track(range(draws), f"measuring {images.name}", console=progress, transient=True):
            draw = Draw(images, seed)
            batches = draw.balanced()
            for count in references:
                for variant, some in variants.items():
                    figures = _asked(some, draw, count).figures(DEFAULT_STRATEGY, batches)
                    measured[f"{count} references"][variant].append(figures)
        show(f"{images.name}, {draws} draws", measured)


def _with_texts(images: Images, profile: str, texts: Mapping[str, Sequence[str]]) -> Images:
    """Returns a set whose categories have the name in the prompt of the encoder and some texts."""
    specs = PROFILES[profile].encoders
    encoders = load_encoders(specs, device="auto", dtype="auto", batch_size=64)
    vectors, owners = {}, [name for name in sorted(images.pool) for _ in ["", *texts.get(name, ())]]
    for encoder in encoders:
        if "text" in encoder.modalities:
            prompt = specs[encoder.name].prompt
            named = ([prompt.replace("{name}", as_words(name)), *texts.get(name, ())] for name in sorted(images.pool))
            vectors[encoder.name] = encoder.encode_texts([text for own in named for text in own])
    return replace(images, texts=vectors, owners=owners)


def _asked(images: Images, draw: Draw, count: int) -> Asked:
    if count:
        return Asked.of(images, Trial(draw.equal(count), {}, draw.truth))
    hashes = [f"text {i}" for i in range(len(images.owners))]
    texts = {
        expert_name(encoder, "text"): laid_out(vectors, images.owners, hashes, [""] * len(hashes))
        for encoder, vectors in images.texts.items()
    }
    return Asked(images, Trial([], {}, draw.truth), texts, None)


if __name__ == "__main__":
    app()
