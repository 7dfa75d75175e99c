"""The benchmarks run, on the smallest sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.encoders.tiny_checkpoints import VIT, save_vit
from tests.store.support import ServerDeployment
from tests.support import coloured_set, fast_folder, isolated, run_script  # noqa: F401
from zsvec.settings.settings import Settings

SCRIPTS = Path(__file__).parents[1] / "scripts"
TINY = """
[profiles.tiny.encoders.vit]
family = 'vision'
model = '{model}'
weights = '{weights}'
modalities = ['image']
"""


@pytest.fixture(autouse=True)
def fast_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts the temporary folders of the scripts into memory."""
    with fast_folder() as folder:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        yield


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command in a folder with images and a profile `tiny`, which processes of the command find, too."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS.parent))
    import bench

    coloured_set(3, 4)
    config = Settings.toml_files[0]
    config.parent.mkdir(parents=True)
    config.write_text(TINY.format(model=VIT, weights=save_vit(Path("vit.pth").absolute())))
    return lambda *arguments: run_script(bench, *arguments)


SETS = ("colours/references", "colours/photos", "--profile", "tiny", "--rounds", 1)
STREAM = ("--images", 6, "--references", 40, "--categories", 4, "--batch-size", 4, "--rounds", 1)


@pytest.mark.parametrize(
    ("arguments", "printed", "extra"),
    [
        (("stream", "--profile", "tiny", *STREAM), ("plain loop", "fuse"), None),
        (("scale", "--largest", 1000, "--rounds", 1, "--dim", 16), ("in process", "times the bare product"), None),
        (("calibrate", "--references", 40, "--categories", 4, "--dim", 16), ("GiB",), None),
        (("runtimes", *SETS[1:]), ("onnxruntime, int8",), "onnxscript"),
        (("service", *SETS, "--clients", 2), ("latencies",), "uvicorn"),
        (("keeping", *SETS), ("keep_images=small",), None),
        (("regions", *SETS, "--scenes", 2, "--boxes", 3), ("6 of 6", "decoded once ÷ in memory"), None),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_benchmarks(
    bench: Callable[..., str], arguments: tuple[Any, ...], printed: tuple[str, ...], extra: str | None
) -> None:
    if extra:
        pytest.importorskip(extra, reason=f"{extra} is not installed")
    found = bench(*arguments)
    assert all(text in found for text in printed)


def test_benchmark_of_large_stores(bench: Callable[..., str], server: ServerDeployment) -> None:
    sizes = ("--references", 400, "--dim", 16, "--images", 20, "--neighbors", 10, "--ef", 16)
    found = bench("large", server.url, "colours/photos", "--profile", "tiny", *sizes)
    assert all(text in found for text in ("exact", "int8 scan", "HNSW graph, ef 16", "import"))
    assert not [name for name in server.collections() if name.startswith("bench-")]
