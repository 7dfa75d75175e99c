"""A long stream while the store changes: does memory stay flat, are answers in order, errors the right ones?"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

import zsvec
from benchmarks.measure import Device, Out, Row, console, memory, report
from zsvec.classifier import Classifier
from zsvec.encoders import load_encoders
from zsvec.inputs.categories import CategoryInput
from zsvec.settings.profiles import PROFILES
from zsvec.testing import HashEncoder
from zsvec.types import Prediction

_STABLE = 50  # categories that no change touches: every image is of one of them
_CHANGING = 10  # others that are there at any time
_REFERENCES = 4
_VARIANTS = 20  # images of each stable category
_CORRUPT = 100  # one image of so many
_SAMPLES_A_SECOND = 2
_WARM_UP = 0.2  # share of the samples
_FLAT = 0.05


class _Encoded(io.BytesIO):
    """An encoded image in memory, which predictions call by its name."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


@dataclass(slots=True)
class _Seen:
    """What has come out so far."""

    images: int = 0
    misplaced: int = 0
    mislabelled: int = 0
    missed: int = 0
    unexpected: int = 0
    samples: list[tuple[float, float, float, int]] = field(default_factory=list)  # seconds, MiB, of its own, images

    def take(self, prediction: Prediction) -> None:
        """Compare the next prediction with what it must be; numbers tell everything, so nothing piles up."""
        number = self.images
        self.images += 1
        self.misplaced += prediction.source != str(number)
        if prediction.error is None:
            self.missed += _is_corrupt(number)
            self.mislabelled += prediction.nearest != f"stable {_category(number)}"
        else:
            self.unexpected += not _is_corrupt(number)


def soak(
    minutes: float = 10,
    images: Annotated[int | None, typer.Option(help="Take so many images, however long it takes.")] = None,
    changes: Annotated[int | None, typer.Option(help="Of categories, with --images; else one per 100 images.")] = None,
    encoders: Annotated[str, typer.Option(help="hash (fast, no model), or a profile.")] = "hash",
    batch_size: int = 32,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Memory, order and errors of a stream, while another thread adds, replaces and removes categories."""
    every = max(1, images // changes) if images and changes else 100
    pool = [[_jpeg(category, variant) for variant in range(_VARIANTS)] for category in range(_STABLE)]
    loaded = (
        [HashEncoder("hash")]
        if encoders == "hash"
        else list(load_encoders(PROFILES[encoders].encoders, device=device, batch_size=batch_size))  # type: ignore[arg-type]
    )
    made = 0
    end = time.monotonic() + 60 * minutes

    def endless(classifier: Classifier, changer: ThreadPoolExecutor) -> Iterator[_Encoded]:
        """Images, and a change for every so many of them; images wait for a change that takes longer than that."""
        nonlocal made
        change: Future[None] | None = None
        number = 0
        while number < images if images else time.monotonic() < end:
            if number % every == 0:
                if change:
                    change.result()
                    made += 1
                change = changer.submit(_change, classifier, number // every)
            data = pool[_category(number)][number % _VARIANTS]
            yield _Encoded(data[: len(data) // 2] if _is_corrupt(number) else data, str(number))
            number += 1
        if change:
            change.result()
            made += 1

    seen = _Seen()
    with (
        tempfile.TemporaryDirectory() as scratch,
        zsvec.open(scratch, encoders=loaded, batch_size=batch_size, index_device=device) as classifier,
        ThreadPoolExecutor(1) as changer,
    ):
        _fill(classifier)
        begun = time.monotonic()
        for prediction in classifier.classify_stream(endless(classifier, changer)):
            seen.take(prediction)
            passed = time.monotonic() - begun
            if passed * _SAMPLES_A_SECOND >= len(seen.samples):
                seen.samples.append((passed, *memory(), seen.images))
        passed = time.monotonic() - begun
    results, passes = _results(seen)
    report(
        "soak",
        f"{seen.images:,} images in {passed:.0f} s, {made:,} changes meanwhile, encoders {encoders}",
        {
            "": [
                {"what": "images/s", "value": seen.images / passed, "result": ""},
                {"what": "changes/s", "value": made / passed, "result": ""},
                *results,
            ]
        },
        out=out,
        draw=lambda axes: _draw(axes, seen),
        device=device,
        raw={"samples": [dict(zip(("seconds", "MiB", "own MiB", "images"), one, strict=True)) for one in seen.samples]},
        notes=[f"Memory is flat within {_FLAT:.0%} of its median after the first {_WARM_UP:.0%} of the time."],
    )
    console.print("passed" if passes else "FAILED")
    if not passes:
        raise typer.Exit(1)


def _is_corrupt(number: int) -> bool:
    return number % _CORRUPT == _CORRUPT // 2


def _category(number: int) -> int:
    """The stable category that an image of this number is of; neighbours are of different ones."""
    return number * 7 % _STABLE


def _jpeg(category: int, variant: int) -> bytes:
    """A pattern of colours of its category, with noise of its own."""
    pattern = np.random.default_rng(category).integers(0, 256, (8, 8, 3))
    noise = np.random.default_rng([category, variant]).integers(-20, 21, (8, 8, 3))
    pixels = np.clip(pattern + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((96, 96), Image.Resampling.NEAREST).save(file, "JPEG")
    return file.getvalue()


def _fill(classifier: Classifier) -> None:
    stable = [
        CategoryInput(name=f"stable {number}", images=[_jpeg(number, _VARIANTS + i) for i in range(_REFERENCES)])
        for number in range(_STABLE)
    ]
    changing = [
        CategoryInput(name=f"changing {number}", images=_changing_images(number, 0)) for number in range(_CHANGING)
    ]
    classifier.add_categories([*stable, *changing])


def _change(classifier: Classifier, number: int) -> None:
    """Add one, replace one, remove one, and so on; the changing categories stay as many, and none stays for long."""
    kind, oldest = number % 3, number // 3
    if kind == 0:
        _add(classifier, oldest + _CHANGING, 0)
    elif kind == 1:
        _add(classifier, oldest + _CHANGING // 2, _REFERENCES, replace=True)
    else:
        classifier.remove_category(f"changing {oldest}")


def _add(classifier: Classifier, number: int, variant: int, *, replace: bool = False) -> None:
    classifier.add_category(f"changing {number}", images=_changing_images(number, variant), replace=replace)


def _changing_images(number: int, variant: int) -> list[bytes]:
    return [_jpeg(_STABLE + number, variant + i) for i in range(_REFERENCES)]


def _results(seen: _Seen) -> tuple[list[Row], bool]:
    warm = seen.samples[int(_WARM_UP * len(seen.samples)) :]
    passed, resident = (np.array(column) for column in list(zip(*warm, strict=True))[:2])
    growth = float(np.polyfit(passed, resident, 1)[0] * (passed[-1] - passed[0])) if len(warm) > 1 else 0.0
    middle = float(np.median(resident))
    low, high = float(resident.min()) / middle - 1, float(resident.max()) / middle - 1
    corrupt = sum(map(_is_corrupt, range(seen.images)))
    checks: dict[str, tuple[str, bool]] = {
        "memory after warm-up": (
            f"{middle:.0f} MiB, {low:+.1%} to {high:+.1%}, trend {growth:+.1f} MiB",
            -low <= _FLAT and high <= _FLAT,
        ),
        "predictions out of order": (f"{seen.misplaced:,}", seen.misplaced == 0),
        "with the label of another image": (f"{seen.mislabelled:,}", seen.mislabelled == 0),
        "corrupt images": (f"{corrupt:,}, {seen.missed:,} without an error", seen.missed == 0),
        "errors of other images": (f"{seen.unexpected:,}", seen.unexpected == 0),
    }
    rows: list[Row] = [
        {"what": name, "value": value, "result": "right" if is_right else "WRONG"}
        for name, (value, is_right) in checks.items()
    ]
    return rows, all(is_right for _, is_right in checks.values())


def _draw(axes: Any, seen: _Seen) -> None:
    times, total, own, images = np.array(seen.samples).T
    axes.plot(times, total, label="resident memory, MiB")
    axes.plot(times, own, label="… without pages of files")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.legend(loc="lower left", fontsize="small")
    rates = axes.twinx()
    rates.plot(times[1:], np.diff(images) / np.diff(times), color="grey", linewidth=0.5)
    rates.set_ylabel("images/s")
    rates.set_ylim(bottom=0)
