"""Image models in int8: only on request, only where that is faster, and never mixed with others."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime.quantization", reason='pip install "zsvec[onnx]"')

from tests.encoders.tiny_checkpoints import photo
from zsvec.encoders import load_encoders
from zsvec.encoders.onnx import int8
from zsvec.encoders.onnx.exported import ExportedFolder
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch import export
from zsvec.encoders.torch.export import export_encoders
from zsvec.errors import EncoderError, InvalidInputError

PHOTOS = [photo(seed, (200, 180)) for seed in range(12)]


@pytest.fixture
def chosen(specs: dict[str, EncoderSpec]) -> dict[str, EncoderSpec]:
    return {"vit": specs["vit"], "clip": specs["clip"]}


@pytest.mark.parametrize("form", ["dynamic", "static"])
def test_int8_is_alike_and_has_a_fingerprint_of_its_own(
    form: str, chosen: dict[str, EncoderSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "_fastest", lambda forms, _: form)
    monkeypatch.setattr(int8, "LEAST_COSINE", 0.9)  # random weights are more sensitive
    handlers = list(logging.getLogger().handlers)
    cosines = export_encoders(chosen, tmp_path / "it", photographs=PHOTOS)
    assert logging.getLogger().handlers == handlers
    assert cosines.keys() == chosen.keys()
    assert all(0.9 <= cosine < 1 for cosine in cosines.values())
    exact, rounded = (
        load_encoders(specs, device="cpu", dtype="float32", runtime=runtime)  # type: ignore[arg-type]
        for specs, runtime in ((chosen, "torch"), (ExportedFolder(tmp_path / "it").specs(), "auto"))
    )
    for encoder in exact:
        found = rounded[encoder.name]
        assert found.fingerprint != encoder.fingerprint
        assert f"; {form} int8 " in found.fingerprint.preprocessing
        cosine = (found.encode_images(PHOTOS) * encoder.encode_images(PHOTOS)).sum(axis=1)
        assert 0.8 < cosine.min() < 0.999999
    texts = exact["clip"].encode_texts(["a cat"]), rounded["clip"].encode_texts(["a cat"])
    assert (texts[0] * texts[1]).sum() > 0.9999
    names = {file.name for file in (tmp_path / "it").iterdir()}
    assert names == {*ExportedFolder(tmp_path / "it").manifest.files, "encoders.json"}  # no other form is left


def test_what_is_slower_or_too_different_stays_in_float32(
    chosen: dict[str, EncoderSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "LEAST_COSINE", 1.1)  # which no form reaches
    assert export_encoders(chosen, tmp_path / "it", photographs=PHOTOS) == {}
    rounded = load_encoders(ExportedFolder(tmp_path / "it").specs(), device="cpu")
    assert rounded.fingerprints == load_encoders(chosen, device="cpu", runtime="torch").fingerprints


def test_an_encoder_that_rounding_ruins_is_not_exported(
    chosen: dict[str, EncoderSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "_fastest", lambda forms, _: "static")
    quantize = int8.quantize

    def ruined(*given: object) -> object:
        monkeypatch.setattr(int8, "LEAST_COSINE", 0.95)
        found = quantize(*given)  # type: ignore[arg-type]
        monkeypatch.setattr(int8, "LEAST_COSINE", 1.1)
        return found

    monkeypatch.setattr(int8, "quantize", ruined)
    with pytest.raises(EncoderError, match=r"'vit' is not exported: vectors of images differ"):
        export_encoders(chosen, tmp_path / "it", photographs=PHOTOS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 7])
def test_a_handful_of_photographs_is_refused_before_anything_is_exported(
    count: int, chosen: dict[str, EncoderSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(export, "load_encoders")
    with pytest.raises(
        InvalidInputError, match=f"at least 8 photographs .* these are {count}: give more, or export in"
    ):
        export_encoders(chosen, tmp_path / "it", photographs=PHOTOS[:count])
