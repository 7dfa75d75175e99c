"""Table 8 of the paper: how long an image takes in each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from zsvec.classifier import Classifier
from zsvec.evaluation.study import Study
from zsvec.inputs.images import ImageInput, load_image
from zsvec.method.similarities import category_names
from zsvec.search.numpy_index import compare

_TIMED = 128  # images
_AT_ONCE = 32


def stages(study: Study, classifier: Classifier, images: Sequence[ImageInput]) -> dict[str, Any]:
    """Milliseconds an image of each stage, one after the other, a few images at a time.

    Args:
        study: Whose references are searched.
        classifier: Whose encoders are timed.
        images: Of which the first `_TIMED` are taken.
    """
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
        loaded = timed("load", lambda: [load_image(i, **classifier.settings.image_limits()) for i in some])
        prepared = timed("preprocess", lambda: [encoders.preprocess(image) for image in loaded])
        vectors = timed("encode", lambda: encoders.encode_images(prepared))
        found = timed("search", lambda: compare(study.references, names, vectors, 3))
        timed(
            "aggregate", lambda: [e.similarities.aggregate(scoring.aggregation, scoring.top_m) for e in found.experts]
        )
        timed("fuse", lambda: scoring.scores(found))

    go_through(chosen[:_AT_ONCE])
    spent.clear()  # the first time is warming up
    for first in range(0, len(chosen), _AT_ONCE):
        go_through(chosen[first : first + _AT_ONCE])
    spent["fuse"] = max(0.0, spent["fuse"] - spent["aggregate"])  # scores aggregate, too
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
