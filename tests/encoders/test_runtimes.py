"""Exports in the cache of the user: when used, replaced and deleted."""

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
from tests.encoders.support import Specs
from tests.encoders.tiny_checkpoints import photo
from zsvec.encoders import describe_device, hardware, load_encoders, runtimes
from zsvec.encoders.runtimes import Record, file_state, place, read_record, record_of, tidy
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch.export import export_to_cache
from zsvec.errors import InvalidInputError, MissingExtraError

for package in ("onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason='pip install "zsvec[onnx]"')

IMAGES = [photo(seed) for seed in range(3)]
FAST = {"torch float32": 10.0, "onnx": 20.0}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Specs]:
    """Fills a cache folder with the export of a tiny encoder, made once."""
    home = tmp_path_factory.mktemp("home")
    weights = tiny.save_vit(home / "vit.pth")
    specs = {"vit": EncoderSpec(family="vision", model=tiny.VIT, weights=str(weights), modalities=("image",))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "cache_folder", lambda: home / "cache")
        export_to_cache(specs)

    def fill(folder: Path) -> Specs:
        shutil.copytree(home / "cache", folder)
        shutil.copystat(home / "cache", folder)
        return specs

    return fill


@pytest.fixture
def specs(filled: Callable[[Path], Specs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Specs:
    monkeypatch.setattr(hardware, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(runtimes, "_GPUS", ())
    specs = filled(tmp_path / "cache")
    rated(specs, FAST)  # in place of measured rates
    return specs


def rated(specs: Specs, rates: dict[str, float]) -> None:
    """Records rates and the present state of the weights."""
    weights = str(specs["vit"].weights)
    record_of(place(specs)).write_text(Record(weights={weights: file_state(weights)}, rates=rates).model_dump_json())


def uses_torch(specs: Specs, **options: Any) -> bool:
    return load_encoders(specs, **{"device": "cpu", **options}).on_torch


def test_an_export_is_used_from_the_next_start_on(specs: Specs) -> None:
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


@pytest.mark.parametrize(
    ("rates", "torch"), [({"torch float32": 10.0, "onnx": 9.6}, False), ({"torch bfloat16": 10.0, "onnx": 9.4}, True)]
)
def test_the_faster_runtime_is_chosen(rates: dict[str, float], torch: bool, specs: Specs) -> None:
    rated(specs, rates)
    assert uses_torch(specs) is torch
    assert not uses_torch(specs, runtime="onnx")
    assert uses_torch(specs, runtime="torch")


def test_only_allowed_number_formats_are_compared(specs: Specs) -> None:
    rated(specs, {"torch float32": 10.0, "torch bfloat16": 20.0, "onnx": 15.0})
    assert uses_torch(specs, dtype="auto")
    assert not uses_torch(specs, dtype="float32")


def test_a_gpu_is_left_to_torch(specs: Specs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not uses_torch(specs, device="auto")
    monkeypatch.setattr(runtimes, "_GPUS", (str(tmp_path),))
    assert uses_torch(specs, device="auto")
    assert not uses_torch(specs, device="cpu")


def test_settings_come_first(specs: Specs) -> None:
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
    "a list as the record": lambda folder: record_of(folder).write_text("[]"),
    "no folder": shutil.rmtree,
    "no manifest": lambda folder: (folder / "encoders.json").unlink(),
    "damaged manifest": lambda folder: (folder / "encoders.json").write_text("{"),
    "others may write": lambda folder: folder.chmod(0o777),
    "others may write beside": lambda folder: folder.parent.chmod(0o770),
}


@pytest.mark.parametrize("change", CHANGES)
def test_exports_that_are_damaged_or_open_to_others_are_not_used(change: str, specs: Specs) -> None:
    CHANGES[change](place(specs))
    assert uses_torch(specs)
    with pytest.raises(InvalidInputError, match="run `zsvec encoders export`"):
        load_encoders(specs, device="cpu", runtime="onnx")


def test_a_damaged_export_is_replaced_and_measured(specs: Specs) -> None:
    flipped(next(place(specs).glob("*.onnx")))
    assert uses_torch(specs)
    record = export_to_cache(specs)
    assert record == read_record(place(specs))
    assert record.rates.keys() == {"torch float32", "torch bfloat16", "onnx"}
    assert min(record.rates.values()) > 0
    rated(specs, FAST)
    assert not uses_torch(specs)


def test_torch_computes_where_onnxruntime_cannot_be_imported(
    specs: Specs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
def test_exports_of_another_user_are_not_used(specs: Specs, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert read_record(place(specs)) is None


@pytest.mark.skipif(os.name != "posix", reason="no modes here")
def test_exports_to_a_folder_that_others_may_write_are_refused(specs: Specs, tmp_path: Path) -> None:
    record, victim = record_of(place(specs)), tmp_path / "victim"
    record.unlink()
    victim.write_text("precious")
    record.with_suffix(".partial").symlink_to(victim)
    record.parent.chmod(0o777)
    with pytest.raises(InvalidInputError, match=r"others may write to .*chmod go-w"):
        export_to_cache(specs)
    assert victim.read_text() == "precious"


def test_changed_weights_are_exported_anew(specs: Specs) -> None:
    file = Path(str(specs["vit"].weights))
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    flipped(file)
    flipped(file)  # the same again, with the same size
    os.utime(file, ns=times)  # and the same time
    assert read_record(place(specs)) is None


def test_each_dependency_has_its_own_export(specs: Specs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "processor", lambda: "another")
        assert place(specs) != here
    installed = hardware.installed_version
    assert not uses_torch(specs)
    for package in ("zsvec", "torch", "pillow"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hardware, "installed_version", lambda name: "99" if name == package else installed(name))  # noqa: B023
            assert uses_torch(specs)


def aged(file: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(file, (then, then))


def test_unused_exports_are_deleted(specs: Specs) -> None:
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
    assert not uses_torch(specs)  # which marks the export as used
    tidy()
    assert sorted(folder.parent.iterdir()) == sorted([folder, record_of(folder), at_work, letter, photos])
    assert not uses_torch(specs)
    aged(record_of(folder), month)
    export_to_cache({"other": specs["vit"]})  # which tidies
    assert not folder.exists()


def test_an_unpinned_revision_is_not_exported_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cache_folder", lambda: tmp_path)
    with pytest.raises(InvalidInputError, match="pin the revision"):
        export_to_cache({"clip": EncoderSpec(family="clip", model="nobody/nothing-of-this-name")})
