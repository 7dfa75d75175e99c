"""Image models in int8: only on request, only where faster, and never mixed with float32."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime.quantization", reason='pip install "zsvec[export]"')

from tests.encoders.support import Specs, load_one
from tests.encoders.tiny_checkpoints import photo
from zsvec.encoders.onnx import int8
from zsvec.encoders.onnx.exported import ExportedFolder
from zsvec.encoders.torch import export
from zsvec.encoders.torch.export import export_encoders
from zsvec.errors import EncoderError, InvalidInputError

PHOTOS = [photo(seed, (200, 180)) for seed in range(12)]


@pytest.mark.parametrize(("form", "name"), [("dynamic", "clip"), ("static", "vit")])
def test_int8_is_similar_and_has_its_own_fingerprint(
    form: str, name: str, specs: Specs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "_fastest", lambda forms, _: form)
    monkeypatch.setattr(int8, "LEAST_COSINE", 0.9)  # random weights are more sensitive
    handlers = list(logging.getLogger().handlers)
    cosines = export_encoders({name: specs[name]}, tmp_path / "it", photographs=PHOTOS)
    assert logging.getLogger().handlers == handlers
    assert cosines.keys() == {name}
    assert 0.9 <= cosines[name] < 1
    folder = ExportedFolder(tmp_path / "it")
    exact, rounded = load_one(specs[name], name, runtime="torch"), load_one(folder.specs()[name], name)
    assert rounded.fingerprint != exact.fingerprint
    assert f"; {form} int8 " in rounded.fingerprint.preprocessing
    cosine = (rounded.encode_images(PHOTOS) * exact.encode_images(PHOTOS)).sum(axis=1)
    assert 0.8 < cosine.min() < 0.999999
    if name == "clip":
        texts = exact.encode_texts(["a cat"]), rounded.encode_texts(["a cat"])
        assert (texts[0] * texts[1]).sum() > 0.9999
    names = {file.name for file in (tmp_path / "it").iterdir()}
    assert names == {*folder.manifest.files, "encoders.json"}  # no other form is left


def test_too_different_models_stay_in_float32(specs: Specs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "LEAST_COSINE", 1.1)  # which no form reaches
    assert export_encoders({"vit": specs["vit"]}, tmp_path / "it", photographs=PHOTOS) == {}
    exported = load_one(ExportedFolder(tmp_path / "it").specs()["vit"], "vit")
    assert exported.fingerprint == load_one(specs["vit"], runtime="torch").fingerprint


def test_an_encoder_that_rounding_ruins_is_not_exported(
    specs: Specs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        export_encoders({"vit": specs["vit"]}, tmp_path / "it", photographs=PHOTOS)
    assert list(tmp_path.iterdir()) == []


def test_too_few_photographs_are_refused_before_the_export(
    specs: Specs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(export, "load_encoders")
    for count in (0, 7):
        with pytest.raises(InvalidInputError, match=f"at least 8 photographs .* these are {count}: give more"):
            export_encoders({"vit": specs["vit"]}, tmp_path / "it", photographs=PHOTOS[:count])
