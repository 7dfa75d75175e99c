"""Settings, plans and purchases for tests of runs and of their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zsvec.generation.manifest import ImageRecord, Manifest
from zsvec.generation.plan import Budget, Plan, StoredCategory, make_plan
from zsvec.method.calibrate.confusions import Confusions
from zsvec.settings.settings import GenerationSettings

PNG = b"\x89PNG, or so it begins"


def settings_of(url: str = "http://127.0.0.1:9/v1", **options: Any) -> GenerationSettings:
    """Settings with known prices, and timeouts for a busy machine."""
    return GenerationSettings(**{"base_url": url, "concurrency": 4, "timeout": 30.0, "deadline": 60.0, **options})


def plan_of(
    folder: Path,
    categories: Sequence[str],
    settings: GenerationSettings | None = None,
    *,
    per_category: int = 2,
    budget: Budget | None = None,
    stored: Mapping[str, StoredCategory] | None = None,
    confusions: Confusions | None = None,
    texts_only: bool = False,
) -> Plan:
    return make_plan(
        categories,
        stored or {},
        confusions or Confusions(),
        settings or settings_of(),
        per_category=per_category,
        budget=budget or Budget(),
        folder=folder,
        texts_only=texts_only,
    )


def purchase(category: str = "red panda", index: int = 0, **others: Any) -> dict[str, Any]:
    """Returns arguments of `Manifest.add_image`, without the image."""
    known = {"prompt": f"{category} {index}", "version": 1, "model": "painter", "size": "1024x1024", "quality": "low"}
    return {"category": category, "index": index, "response": "req-1", "seconds": 0.5, "cost": 0.01, **known, **others}


def buy(
    manifest: Manifest, category: str = "red panda", index: int = 0, data: bytes = PNG, **others: Any
) -> ImageRecord:
    """Adds an image to a manifest."""
    return manifest.add_image(data, **purchase(category, index, **others))


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Returns modification time and content of each path in a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }
