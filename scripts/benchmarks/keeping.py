"""What it costs a stream to keep images for labelling."""

from __future__ import annotations

import tempfile
from pathlib import Path

import zsvec
from benchmarks.measure import Device, Out, Row, interleaved, medians, ratio, report
from zsvec.inputs.folders import find_images, read_categories
from zsvec.types import Keep

_NONE = "none"


def keeping(
    folder: Path, photos: Path, profile: str = "offline", rounds: int = 7, device: Device = "auto", out: Out = None
) -> None:
    """Images a second of classify_stream, with nothing kept, uncertain images, and all, into an empty inbox."""
    paths = find_images(photos)
    kept: dict[str, int] = {}
    with (
        tempfile.TemporaryDirectory() as scratch,
        zsvec.open(Path(scratch) / "store", profile=profile, device=device, inbox_size=len(paths)) as classifier,
    ):
        classifier.add_categories(read_categories(folder))

        def classify(keep: Keep) -> None:
            with classifier.classify_stream(paths, keep=keep) as stream:
                for _ in stream:
                    pass
            kept[keep] = len(classifier.inbox) if keep != _NONE else 0
            if kept[keep]:
                classifier.inbox.clear()

        choices: tuple[Keep, ...] = ("none", "uncertain", "all")
        times = interleaved({keep: lambda keep=keep: classify(keep) for keep in choices}, rounds)  # type: ignore[misc]
    rows: list[Row] = [
        {"keep": keep, "images/s": len(paths) / spent, "kept": kept[keep], "÷ none": ratio(times, keep, _NONE)}
        for keep, spent in medians(times).items()
    ]
    report(
        "keeping",
        f"{len(paths)} images, profile {profile}, {rounds} rounds",
        {"rates (medians)": rows},
        out=out,
        draw=lambda axes: axes.bar([str(row["keep"]) for row in rows], [float(row["images/s"]) for row in rows]),
        device=device,
        raw={"seconds": times},
        notes=[
            "Ratios: of the rates, with their 95 % intervals over the rounds. What is kept is written, read once, and "
            "deleted within the time.",
        ],
    )
