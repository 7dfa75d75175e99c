"""Exports kept for the user: when they are used, and when not."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.encoders import tiny_checkpoints as tiny
from tests.encoders.tiny_checkpoints import photo
from zsvec.encoders import cache, describe_device, host, load_encoders
from zsvec.encoders.cache import Record, WeightFile, place, read_record, record_of, tidy
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch.export import export_to_cache
from zsvec.errors import InvalidInputError, MissingExtraError

for package in ("onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason='pip install "zsvec[onnx]"')

IMAGES = [photo(seed) for seed in range(3)]
FAST = {"torch float32": 10.0, "onnx": 20.0}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, EncoderSpec]]:
    """Fills a cache folder with the export of a tiny encoder, made once."""
    home = tmp_path_factory.mktemp("home")
    weights = tiny.save_vit(home / "vit.pth")
    specs = {"vit": EncoderSpec(family="vision", model=tiny.VIT, weights=str(weights), modalities=("image",))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "cache_folder", lambda: home / "cache")
        export_to_cache(specs)

    def fill(folder: Path) -> dict[str, EncoderSpec]:
        shutil.copytree(home / "cache", folder)
        shutil.copystat(home / "cache", folder)
        return specs

    return fill


@pytest.fixture
def specs(
    filled: Callable[[Path], dict[str, EncoderSpec]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, EncoderSpec]:
    monkeypatch.setattr(host, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(cache, "_GPUS", ())
    specs = filled(tmp_path / "cache")
    rated(specs, FAST)  # whatever this machine was busy with
    return specs


def rated(specs: dict[str, EncoderSpec], rates: dict[str, float]) -> None:
    """Record rates, of the weights as they are now."""
    weights = (WeightFile.now(str(specs["vit"].weights)),)
    record_of(place(specs)).write_text(Record(weights=weights, rates=rates).model_dump_json())


def uses_torch(specs: dict[str, EncoderSpec], **options: Any) -> bool:
    return load_encoders(specs, **{"device": "cpu", **options}).on_torch


def test_an_export_is_used_from_the_next_start_on(specs: dict[str, EncoderSpec]) -> None:
    torch, onnx = (load_encoders(specs, device="cpu", dtype="float32", runtime=name) for name in ("torch", "auto"))  # type: ignore[arg-type]
    assert (torch.on_torch, onnx.on_torch) == (True, False)
    assert torch.fingerprints == onnx.fingerprints
    expected, got = (encoders["vit"].encode_images(IMAGES) for encoders in (torch, onnx))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    measured = "all together: torch float32 10.0, onnx 20.0 images/s → auto is onnx; vit by torch: not measured yet"
    for runtime, computes in {"auto": "onnxruntime", "torch": "torch"}.items():
        words = describe_device("cpu", specs=specs, runtime=runtime)  # type: ignore[arg-type]
        assert f", float32, {computes} " in words or f", float32 or bfloat16, {computes} " in words
        assert words.endswith(measured)


def test_rates_are_measured(specs: dict[str, EncoderSpec]) -> None:
    record = export_to_cache(specs)
    assert record == read_record(specs)
    assert record.rates.keys() == {"torch float32", "torch bfloat16", "onnx"}
    assert min(record.rates.values()) > 0


@pytest.mark.parametrize(
    ("rates", "torch"), [({"torch float32": 10.0, "onnx": 9.6}, False), ({"torch bfloat16": 10.0, "onnx": 9.4}, True)]
)
def test_the_faster_one_is_chosen(rates: dict[str, float], torch: bool, specs: dict[str, EncoderSpec]) -> None:
    rated(specs, rates)
    assert uses_torch(specs) is torch
    assert not uses_torch(specs, runtime="onnx")
    assert uses_torch(specs, runtime="torch")


@pytest.mark.parametrize(("dtype", "torch"), [("auto", True), ("float32", False)])
def test_only_number_formats_that_are_allowed_are_compared(
    dtype: str, torch: bool, specs: dict[str, EncoderSpec]
) -> None:
    rated(specs, {"torch float32": 10.0, "torch bfloat16": 20.0, "onnx": 15.0})
    assert uses_torch(specs, dtype=dtype) is torch


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_gpu_is_left_to_torch(
    device: Any, specs: dict[str, EncoderSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not uses_torch(specs, device=device)
    monkeypatch.setattr(cache, "_GPUS", (str(tmp_path),))
    assert uses_torch(specs, device=device) is (device == "auto")


def test_what_was_asked_for_comes_first(specs: dict[str, EncoderSpec]) -> None:
    assert uses_torch(specs, dtype="bfloat16")
    assert not uses_torch(specs, dtype="float32")
    with pytest.raises(InvalidInputError, match="does not go with device='cpu', dtype='bfloat16' and"):
        load_encoders(specs, device="cpu", dtype="bfloat16", runtime="onnx")


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


CHANGES: dict[str, Callable[[Path], object]] = {
    "no record": lambda folder: record_of(folder).unlink(),
    "damaged record": lambda folder: record_of(folder).write_bytes(b"\x80\x04."),
    "record of another kind": lambda folder: record_of(folder).write_text("[]"),
    "no folder": shutil.rmtree,
    "no manifest": lambda folder: (folder / "encoders.json").unlink(),
    "damaged manifest": lambda folder: (folder / "encoders.json").write_text("{"),
    "others may write": lambda folder: folder.chmod(0o777),
    "others may write beside": lambda folder: folder.parent.chmod(0o770),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_whole_or_not_ours_is_not_used(change: str, specs: dict[str, EncoderSpec]) -> None:
    CHANGES[change](place(specs))
    assert uses_torch(specs)
    with pytest.raises(InvalidInputError, match="run `zsvec encoders export`"):
        load_encoders(specs, device="cpu", runtime="onnx")


@pytest.mark.parametrize("damage", [lambda folder: flipped(next(folder.glob("*.onnx"))), CHANGES["damaged manifest"]])
def test_what_is_damaged_is_not_used_and_can_be_replaced(
    damage: Callable[[Path], object], specs: dict[str, EncoderSpec]
) -> None:
    damage(place(specs))
    assert uses_torch(specs)
    export_to_cache(specs)
    rated(specs, FAST)
    assert not uses_torch(specs)


def test_torch_computes_where_onnxruntime_cannot_be_imported(
    specs: dict[str, EncoderSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package = tmp_path / "packages" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libonnxruntime.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    assert uses_torch(specs)
    assert "libonnxruntime.so.1: cannot open shared object file); torch computes until then" in caplog.text
    assert ", torch " in describe_device("cpu", specs=specs)
    for insists in (lambda: load_encoders(specs, runtime="onnx"), lambda: describe_device(specs=specs, runtime="onnx")):
        with pytest.raises(MissingExtraError, match=r"onnxruntime: .*repair .*libonnxruntime\.so\.1"):
            insists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users here")
def test_what_another_user_has_written_is_not_used(
    specs: dict[str, EncoderSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert read_record(specs) is None


@pytest.mark.skipif(os.name != "posix", reason="no modes here")
def test_nothing_is_exported_to_where_others_may_write(specs: dict[str, EncoderSpec], tmp_path: Path) -> None:
    record, victim = record_of(place(specs)), tmp_path / "victim"
    record.unlink()
    victim.write_text("precious")
    record.with_suffix(".partial").symlink_to(victim)
    record.parent.chmod(0o777)
    with pytest.raises(InvalidInputError, match=r"others may write to .*chmod go-w"):
        export_to_cache(specs)
    assert victim.read_text() == "precious"


def test_changed_weights_are_exported_anew(specs: dict[str, EncoderSpec]) -> None:
    file = Path(str(specs["vit"].weights))
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    flipped(file)
    flipped(file)  # the same again, with the same size
    os.utime(file, ns=times)  # and the same time
    assert read_record(specs) is None


def test_each_dependency_has_an_export_of_its_own(
    specs: dict[str, EncoderSpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = place(specs)
    assert place({"other": specs["vit"]}) != here
    assert place({"vit": specs["vit"].model_copy(update={"image_size": 96})}) != here
    shutil.copy(str(specs["vit"].weights), tmp_path / "vit.pth")
    monkeypatch.chdir(tmp_path)
    relative = {"vit": specs["vit"].model_copy(update={"weights": "vit.pth"})}
    first = place(relative)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy("vit.pth", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert place(relative) != first
    monkeypatch.setattr(host, "processor", lambda: "another")
    assert place(specs) != here
    monkeypatch.undo()


@pytest.mark.parametrize("package", ["zsvec", "torch", "pillow"])
def test_another_version_has_an_export_of_its_own(
    package: str, specs: dict[str, EncoderSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = host.installed_version
    assert not uses_torch(specs)
    monkeypatch.setattr(host, "installed_version", lambda name: "99" if name == package else installed(name))
    assert uses_torch(specs)


def aged(file: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(file, (then, then))


def test_what_nobody_uses_is_deleted(specs: dict[str, EncoderSpec]) -> None:
    folder, month = place(specs), 31 * 86_400
    unused = Path(shutil.copytree(folder, folder.with_name("0" * 32)))
    record_of(unused).write_text("{}")
    killed, at_work = (folder.with_name(f".{'0' * 32}-{end}") for end in ("killed", "at_work"))
    letter, photos = folder.with_name("letter.txt"), folder.with_name(".photos-of-mine")
    for path in (killed, at_work, photos):
        path.mkdir()
        (path / "images-0.onnx").touch()
    letter.touch()
    for path in (unused, record_of(unused), folder, record_of(folder), letter, photos):
        aged(path, month)
    aged(killed, 3700)
    assert not uses_torch(specs)  # which uses it
    tidy()
    assert sorted(folder.parent.iterdir()) == sorted([folder, record_of(folder), at_work, letter, photos])
    assert not uses_torch(specs)
    aged(record_of(folder), month)
    tidy()
    assert not folder.exists()


def test_an_export_tidies(specs: dict[str, EncoderSpec]) -> None:
    unused = Path(shutil.copytree(place(specs), place(specs).with_name("0" * 32)))
    aged(unused, 31 * 86_400)
    export_to_cache(specs)
    assert not unused.exists()


def test_a_newest_revision_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cache_folder", lambda: tmp_path)
    with pytest.raises(InvalidInputError, match="pin its revision"):
        export_to_cache({"clip": EncoderSpec(family="clip", model="nobody/nothing-of-this-name")})


def test_a_record_says_what_was_measured() -> None:
    record = Record(weights=(), rates={"torch float32": 1.0, "onnx": 2.25})
    assert (str(record), record.is_fast) == ("torch float32 1.0, onnx 2.2 images/s", True)
    assert not Record(weights=(), rates={}).rates
