"""The benchmarks run and say what they measured, on sizes that measure nothing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import zsvec
from tests.encoders.tiny_checkpoints import VIT, photo, save_clip, save_vit
from tests.support import coloured_set, fast_folder, isolated, two_encoders  # noqa: F401
from zsvec.encoders.spec import EncoderSpec
from zsvec.settings.profiles import Profile
from zsvec.settings.settings import Settings

SCRIPTS = Path(__file__).parents[1] / "scripts"
STAGES = {"decode", "preprocess", "encode", "search", "fuse", "search + fuse"}


@pytest.fixture(autouse=True)
def fast_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts keep their stores in temporary folders. That of the test is made before."""
    with fast_folder() as folder:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, dict[str, Any]]]:
    """Runs a command and gives what it printed and its JSON."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import bench

    def invoke(command: str, *arguments: str) -> tuple[Result, dict[str, Any]]:
        result = CliRunner().invoke(bench.app, [command, *arguments, "--device", "cpu", "--out", "out"])
        assert result.exit_code == 0, result.output
        assert Path("out", f"{command}.png").stat().st_size
        return result, json.loads(Path("out", f"{command}.json").read_text(encoding="utf-8"))

    return invoke


def test_stream(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import material, measure, peers

    in_a_process = peers.in_a_process

    @contextmanager
    def nearer(make: Any, paths: Any) -> Iterator[Callable[[], Any]]:
        """One of the two other processes is enough: each imports torch, transformers and timm again."""
        if make.func is peers.transformers_pipeline:
            with in_a_process(make, paths) as measured:
                yield measured
        else:
            embed = make()
            yield lambda: measure.spent(lambda: embed(paths))

    monkeypatch.setattr(peers, "in_a_process", nearer)
    tiny = {
        "clip": EncoderSpec(family="clip", model=str(save_clip(tmp_path / "clip"))),
        "vit": EncoderSpec(family="vision", model=VIT, weights=str(save_vit(tmp_path / "vit.pt")), image_size=160),
    }
    monkeypatch.setattr(material, "specs", lambda name, cache: tiny)
    sizes = {"images": 6, "references": 40, "categories": 4, "labels": 2, "batch-size": 4, "rounds": 1}
    result, figures = run("stream", *(part for name, value in sizes.items() for part in (f"--{name}", str(value))))
    assert "transformers, zero-shot pipeline" in result.output
    rates, *stages = figures["tables"].values()
    for way in ("classify_stream", "classify_stream, CLIP alone"):
        assert [row[f"{way} ÷ this"] for row in rates if row["way"] == way] == [1.0]
    assert len(rates) == 6
    assert [{row["stage"] for row in table} for table in stages] == [STAGES] * 2
    assert {"torch", "numpy", "python"} <= set(figures["versions"])


@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__:DeprecationWarning")
def test_keeping(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = coloured_set(3, 4)
    encoders = two_encoders()
    real = zsvec.open
    monkeypatch.setattr(
        zsvec, "open", lambda store, *, profile, device, **settings: real(store, encoders=encoders, **settings)
    )
    result, figures = run("keeping", str(folder / "references"), str(folder / "photos"), "--rounds", "2")
    [rates] = figures["tables"].values()
    assert [row["keep"] for row in rates] == ["none", "uncertain", "all"]
    assert rates[0]["kept"] == 0 <= rates[1]["kept"] <= rates[2]["kept"]
    assert "÷ none" in result.output


def test_scale(run: Callable[..., Any]) -> None:
    pytest.importorskip("faiss")
    _, figures = run("scale", "--smallest", "--rounds", "1", "--dim", "16")
    (added,) = figures["tables"]["adding a category"]
    assert (added["to so many categories"], added["vectors read from the store"]) == (100, 10)


def test_soak(run: Callable[..., Any]) -> None:
    result, figures = run("soak", "--images", "300", "--changes", "6")
    assert "6 changes" in result.output
    checks = {row["what"]: row["value"] for row in figures["tables"][""]}
    assert checks["corrupt images"] == "3, 0 without an error"
    assert checks["predictions out of order"] == "0"


def test_runtimes(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import runtimes

    pytest.importorskip("onnxscript", reason='pip install "zsvec[onnx]"')
    weights = save_vit(tmp_path / "vit.pth")
    spec = EncoderSpec(family="vision", model=VIT, weights=str(weights), modalities=("image",))
    monkeypatch.setattr(runtimes, "PROFILES", {"tiny": Profile(encoders={"vit": spec})})
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS.parent))
    users = Settings.toml_files[0]
    users.parent.mkdir(parents=True)
    users.write_text(
        "[profiles.tiny.encoders.vit]\nfamily = 'vision'\n"
        f"model = '{VIT}'\nweights = '{weights}'\nmodalities = ['image']\n"
    )
    Path("photos").mkdir()
    for seed in range(8):
        photo(seed, (60, 50)).save(f"photos/{seed}.png")
    _, figures = run("runtimes", "photos", "--profile", "tiny", "--rounds", "1", "--starts", "1")
    rates, one, busy, _ = figures["tables"].values()
    ways = [
        *(f"torch{way}, {dtype}" for dtype in ("float32", "bfloat16") for way in (" eager", "")),
        *("torch, auto", "onnxruntime, float32", "onnxruntime, int8", "onnxruntime, plain loop"),
    ]
    assert [row["way"] for row in one] == [row["way"] for row in busy] == ways
    assert [row["way"] for row in rates] == [*ways, "sentence-transformers and timm, plain loops"]
    assert all(row["images/s"] > 0 for row in (*rates, *one, *busy))
    assert rates[-2]["÷ plain onnxruntime"] == "1.00 [1.00, 1.00]"
    torch, onnx = figures["tables"]["zsvec classify, one image"]
    assert onnx["s of CPU"] < torch["s of CPU"]
    assert onnx["MiB"] < torch["MiB"]


def test_copies(run: Callable[..., Any]) -> None:
    folder = coloured_set(4, 4)
    _, figures = run("copies", str(folder / "references"), str(folder / "photos"), "--profile", "hash", "--rounds", "2")
    imports, streams = figures["tables"].values()
    assert "24 images, 3 categories, profile hash" in figures["title"]
    assert [row["store"] for row in imports] == [row["store"] for row in streams] == ["with copies", "without"]
    assert imports[0]["MB"] > imports[1]["MB"]
    assert (imports[1]["÷ without"], streams[1]["of a store without"]) == ("1.00 [1.00, 1.00]", "1.000 [1.000, 1.000]")
    assert {name: len(one) for name, one in figures["raw"]["bytes"].items()} == {"with copies": 3, "without": 3}


def test_calibrate(run: Callable[..., Any]) -> None:
    _, figures = run("calibrate", "--references", "40", "--categories", "4", "--dim", "16")
    assert [row["what"] for row in figures["tables"][""]] == [
        "calibrate",
        "add a category",
    ]
    assert all(row["s"] > 0 for row in figures["tables"][""])


def test_decoding(run: Callable[..., Any]) -> None:
    Path("photos").mkdir()
    photo(0, (60, 50)).save("photos/0.png")
    _, figures = run("decoding", "photos", "--images", "1", "--rounds", "1")
    kinds = [row["files"] for row in figures["tables"]["ms an image"]]
    assert kinds == ["300×200", "500×375", "840×560", "4000×3000", "500×375 PNG"]


def test_pillow_alone_is_given_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    from benchmarks import decoding

    for size in ((300, 200), (375, 500)):
        image = photo(0, size)
        np.testing.assert_array_equal(decoding._resize(image), decoding._PREPROCESSING(image))


def test_spin(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS.parent))
    Path("photos").mkdir()
    photo(0, (60, 50)).save("photos/0.png")
    _, figures = run("spin", "photos", "--images", "1", "--counts", "0", "--rounds", "1")
    rows = figures["tables"]["streams by torch"]
    assert [row["GOMP_SPINCOUNT"] for row in rows] == ["default", "0"]
    assert all(row["images/s"] > 0 and row["images/s, cores busy"] > 0 for row in rows)
    assert os.environ["GOMP_SPINCOUNT"] == "7"  # as it was
