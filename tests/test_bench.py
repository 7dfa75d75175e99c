"""The benchmarks run, on sizes that measure nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.encoders.tiny_checkpoints import VIT, save_vit
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
    """The scripts keep their stores in temporary folders. That of the test is made before."""
    with fast_folder() as folder:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        yield


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command in a folder with images and a profile `tiny`, also for processes that the command starts."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS.parent))
    import bench

    coloured_set(3, 4)
    config = Settings.toml_files[0]
    config.parent.mkdir(parents=True)
    config.write_text(TINY.format(model=VIT, weights=save_vit(Path("vit.pth").absolute())))
    return lambda *arguments: run_script(bench, *arguments)


def test_stream(bench: Callable[..., str]) -> None:
    sizes = ("--images", 6, "--references", 40, "--categories", 4, "--batch-size", 4, "--rounds", 1)
    printed = bench("stream", "--profile", "tiny", *sizes)
    assert "plain loop" in printed
    assert "fuse" in printed


def test_scale(bench: Callable[..., str]) -> None:
    printed = bench("scale", "--largest", 1000, "--rounds", 1, "--dim", 16)
    assert "in process" in printed
    assert "embedded engine" in printed


def test_calibrate(bench: Callable[..., str]) -> None:
    assert "GiB" in bench("calibrate", "--references", 40, "--categories", 4, "--dim", 16)


def test_runtimes(bench: Callable[..., str]) -> None:
    pytest.importorskip("onnxscript", reason='pip install "zsvec[onnx]"')
    assert "onnxruntime, int8" in bench("runtimes", "colours/photos", "--profile", "tiny", "--rounds", 1)


def test_service(bench: Callable[..., str]) -> None:
    pytest.importorskip("uvicorn", reason='pip install "zsvec[serve]"')
    folders = ("colours/references", "colours/photos")
    assert "latencies" in bench("service", *folders, "--profile", "tiny", "--clients", 2, "--rounds", 1)


def test_keeping(bench: Callable[..., str]) -> None:
    printed = bench("keeping", "colours/references", "colours/photos", "--profile", "tiny", "--rounds", 1)
    assert "keep_images=small" in printed
    assert "keep=uncertain" in printed
