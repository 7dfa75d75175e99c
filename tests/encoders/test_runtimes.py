"""Exports in the cache of the user: when used, replaced and deleted."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from tests.encoders import tiny_checkpoints as tiny
from tests.encoders.support import Specs
from tests.encoders.tiny_checkpoints import photo
from zsvec.encoders import describe_device, hardware, load_encoders, runtimes
from zsvec.encoders.runtimes import (
    Record,
    failure_of,
    file_state,
    lacks_export,
    place,
    read_record,
    record_of,
    tidy,
)
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch import export
from zsvec.encoders.torch.export import export_to_cache
from zsvec.errors import EncoderError, InvalidInputError, WeightsUnavailableError

for package in ("onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason='pip install "zsvec[export]"')

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
    assert (
        "libonnxruntime.so.1: cannot open shared object file. Install it again; torch computes until then"
        in caplog.text
    )
    assert ", torch " in describe_device("cpu", specs=specs)
    for insists in (lambda: load_encoders(specs, runtime="onnx"), lambda: describe_device(specs=specs, runtime="onnx")):
        with pytest.raises(WeightsUnavailableError, match=r"onnxruntime .*libonnxruntime\.so\.1"):
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
    lock = folder.parent / ".lock"
    assert sorted(folder.parent.iterdir()) == sorted([folder, record_of(folder), at_work, letter, photos, lock])
    assert not uses_torch(specs)
    aged(record_of(folder), month)
    export_to_cache({"other": specs["vit"]})  # which tidies
    assert not folder.exists()


def test_an_unpinned_revision_is_not_exported_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cache_folder", lambda: tmp_path)
    with pytest.raises(InvalidInputError, match="pin the revision"):
        export_to_cache({"clip": EncoderSpec(family="clip", model="nobody/nothing-of-this-name")})


def lacking(specs: Specs, **options: Any) -> bool:
    return lacks_export(specs, **{"device": "cpu", "dtype": "auto", "runtime": "auto"} | options)


def test_an_export_is_lacking_until_it_is_made_and_again_when_it_is_stale(specs: Specs) -> None:
    assert not lacking(specs)
    changed = {"vit": specs["vit"].model_copy(update={"image_size": 96})}
    assert lacking(changed)
    assert lacking(changed, runtime="onnx")
    assert not lacking(changed, runtime="torch")
    flipped(next(place(specs).glob("*.onnx")))
    assert not lacking(specs)  # a damaged export is named by a warning
    flipped(Path(str(specs["vit"].weights)))
    assert lacking(specs)


def test_a_failure_is_remembered_until_an_export_succeeds(specs: Specs, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"other": specs["vit"]}

    def fails(*_: object) -> None:
        raise ValueError("no such operator\nand a long explanation")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.onnx.export", lambda *_, **__: fails())
        with pytest.raises(EncoderError, match=r"ValueError: no such operator\); use"):
            export_to_cache(other)
    assert not lacking(other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "installed_version", lambda _: "99")
        assert lacking(other)
    assert not lacking(specs)
    monkeypatch.setattr(export, "_rates", lambda *_: FAST)
    steps: list[str] = []
    assert export_to_cache(other, on_step=steps.append).rates == FAST
    assert len(steps) == 4
    assert not failure_of(place(other)).exists()


def test_a_full_disk_is_not_remembered(specs: Specs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torch.onnx.export", full)
    with pytest.raises(OSError, match="No space left"):
        export_to_cache({"other": specs["vit"]})
    assert lacking({"other": specs["vit"]})


def test_an_export_of_another_process_is_awaited_and_used(specs: Specs, monkeypatch: pytest.MonkeyPatch) -> None:
    record = record_of(place(specs))
    content = record.read_bytes()
    record.unlink()
    with ThreadPoolExecutor() as pool:
        with FileLock(record.parent / ".lock"):
            waiting = pool.submit(export_to_cache, specs)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.5)
            record.write_bytes(content)  # as the other process does
        assert waiting.result(timeout=60).rates == FAST
    monkeypatch.setattr(export, "_LOCK_TIMEOUT_S", 0)
    with FileLock(record.parent / ".lock"), pytest.raises(InvalidInputError, match="another process"):
        export_to_cache(specs)


@pytest.mark.skipif(os.name != "posix", reason="links take rights elsewhere")
def test_links_in_the_cache_are_not_written_through(
    specs: Specs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, victim, elsewhere = place(specs), tmp_path / "victim", tmp_path / "elsewhere"
    victim.write_text("precious")
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    shutil.rmtree(folder)
    folder.symlink_to(elsewhere)
    for file in (record_of(folder), failure_of(folder)):
        file.unlink(missing_ok=True)
        file.symlink_to(victim)
    monkeypatch.setattr(export, "_rates", lambda *_: FAST)
    assert export_to_cache(specs).rates == FAST
    assert victim.read_text() == "precious"
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]
    assert not folder.is_symlink()
    assert not uses_torch(specs)
    lock = folder.parent / ".lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(victim)
    with suppress(OSError):  # refused
        export_to_cache(specs)
    assert victim.read_text() == "precious"
