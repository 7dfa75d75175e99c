"""Custom graphs: the vectors of torch, or an error that lists inputs, outputs and files."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import zsvec
from tests.encoders import tiny_checkpoints as tiny
from tests.encoders.support import Specs, load_one
from tests.encoders.tiny_checkpoints import photo
from zsvec.encoders import describe_device, hardware, load_encoders, missing_weights
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch.export import silent_export
from zsvec.errors import InvalidInputError, WeightsUnavailableError

for package in ("onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason='pip install "zsvec[export]"')

IMAGES = [photo(seed, (60 + 10 * seed, 50)) for seed in range(9)]
TEXTS = ["a cat", "a red panda", "x", "a long text " * 30]


class Named(torch.nn.Module):
    """Returns some of a model's outputs, as exporters of transformers do."""

    def __init__(self, run: Callable[..., Any], model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.run(self.model, *inputs)


def write(
    file: Path, model: torch.nn.Module, run: Callable[..., Any], inputs: Mapping[str, torch.Tensor], outputs: list[str]
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    axes = {0: torch.export.Dim("n"), 1: torch.export.Dim("tokens")}
    images = torch.export.Dim("images")
    shapes = tuple(
        {0: images} if tensor.ndim == 4 else {axis: axes[axis] for axis in (0, 1)} for tensor in inputs.values()
    )
    with silent_export():
        torch.onnx.export(
            Named(run, model.eval()),
            tuple(inputs.values()),
            str(file),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=(shapes,),
        )
    return file


PIXELS = {"pixel_values": torch.rand(2, 3, 32, 32)}
TOKENS = {"input_ids": torch.ones((3, 5), dtype=torch.int64), "attention_mask": torch.ones((3, 5), dtype=torch.int64)}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a CLIP, with towers in two graphs and in one, and the files of transformers."""
    folder = tiny.save_clip(tmp_path_factory.mktemp("own") / "clip")
    model = CLIPModel.from_pretrained(folder)

    def texts(m: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        pooled = m.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return m.text_projection(pooled)  # type: ignore[no-any-return]

    def images(m: Any, pixels: torch.Tensor) -> torch.Tensor:
        return m.visual_projection(m.vision_model(pixels).pooler_output)  # type: ignore[no-any-return]

    def both(m: Any, ids: torch.Tensor, pixels: torch.Tensor, mask: torch.Tensor) -> Any:
        of_images, of_texts = images(m, pixels), texts(m, ids, mask)
        return of_images @ of_texts.T, of_texts, of_images

    write(folder / "onnx" / "vision_model.onnx", model, images, PIXELS, ["image_embeds"])
    write(folder / "onnx" / "text_model.onnx", model, texts, TOKENS, ["text_embeds"])
    together = {"input_ids": TOKENS["input_ids"], **PIXELS, "attention_mask": TOKENS["attention_mask"]}
    write(folder / "model.onnx", model, both, together, ["logits_per_image", "text_embeds", "image_embeds"])
    return folder


@pytest.fixture
def copy(clip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clip, tmp_path / "copy"))


def spec(image: Path, text: Path | None = None, **fields: Any) -> EncoderSpec:
    return EncoderSpec(family="onnx", model=str(image), text_model=str(text) if text else None, **fields)


def assert_similar(rows: Any, others: Any) -> None:
    rows, others = (np.asarray(v) / np.linalg.norm(v, axis=1, keepdims=True) for v in (rows, others))
    assert (rows * others).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("names", [("onnx/vision_model.onnx", "onnx/text_model.onnx"), ("model.onnx", "model.onnx")])
def test_clip_gives_the_vectors_of_torch(names: tuple[str, str], clip: Path) -> None:
    encoder = load_one(spec(clip / names[0], clip / names[1]))
    expected = load_one(EncoderSpec(family="clip", model=str(clip)))
    assert encoder.modalities == ("text", "image")
    assert_similar(encoder.encode_images(IMAGES), expected.encode_images(IMAGES))
    assert_similar(encoder.encode_texts(TEXTS), expected.encode_texts(TEXTS))
    assert encoder.backbone.side == 32
    words = describe_device("cpu", specs={"it": spec(clip / names[0])})
    assert ", float32, onnxruntime " in words
    assert "export" not in words  # there is none to be measured
    assert missing_weights({"it": spec(clip / names[0], clip / names[1])}) == {}


def test_a_graph_of_images_alone(clip: Path) -> None:
    encoder = load_one(spec(clip / "onnx" / "vision_model.onnx"))
    assert (encoder.modalities, encoder.fingerprint.dim) == (("image",), 24)
    assert encoder.encode_images([]).shape == (0, 24)


def test_tokens_of_dino_are_pooled_to_cls(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    model = Dinov2Model(Dinov2Config(**tower))

    def run(m: Any, pixels: torch.Tensor) -> torch.Tensor:
        return m(pixels).last_hidden_state  # type: ignore[no-any-return]

    processor = CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    file = write(tmp_path / "model.onnx", model, run, PIXELS, ["last_hidden_state"])
    with torch.no_grad():
        expected = model(torch.cat([processor(i, return_tensors="pt")["pixel_values"] for i in IMAGES])).pooler_output
    assert_similar(load_one(spec(file)).encode_images(IMAGES), expected)


def test_siglip_squashes_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = SiglipVisionModel(SiglipVisionConfig(**tower, image_size=32, patch_size=8)).eval()
    processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)

    def run(m: Any, pixels: torch.Tensor) -> Any:
        found = m(pixels)
        return found.last_hidden_state, found.pooler_output

    file = write(tmp_path / "model.onnx", model, run, PIXELS, ["last_hidden_state", "pooler_output"])
    with torch.no_grad():
        pixels = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in IMAGES])
        expected = model(pixels)
    encoder = load_one(spec(file))
    assert encoder.backbone.side is None
    assert_similar(encoder.encode_images(IMAGES), expected.pooler_output)
    assert_similar(
        load_one(spec(file, output="last_hidden_state")).encode_images(IMAGES), expected.last_hidden_state[:, 0]
    )


def test_timm_with_its_configuration(tmp_path: Path, specs: Specs) -> None:
    model = timm.create_model(tiny.VIT, num_classes=0)
    model.load_state_dict(torch.load(str(specs["vit"].weights)), strict=False)
    file = write(tmp_path / "model.onnx", model, lambda m, x: m(x), {"x": torch.rand(2, 3, 160, 160)}, ["features"])
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    config = {key: model.pretrained_cfg[key] for key in keys if key in model.pretrained_cfg}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": tiny.VIT, "pretrained_cfg": config}))
    expected = load_one(specs["vit"])
    assert_similar(load_one(spec(file)).encode_images(IMAGES), expected.encode_images(IMAGES))


def test_the_preprocessing_of_the_spec_comes_first(copy: Path) -> None:
    graph = copy / "onnx" / "vision_model.onnx"
    expected = load_one(spec(graph))
    (copy / "processor_config.json").unlink()
    for file in copy.glob("*preprocessor*"):
        file.unlink()
    with pytest.raises(InvalidInputError, match=r"preprocessing of .*vision_model\.onnx is nowhere: .* write it in"):
        load_one(spec(graph))
    mean, std = CLIPImageProcessor().image_mean, CLIPImageProcessor().image_std
    given = {"size": 32, "scaled": 32, "mean": mean, "std": std, "half": "down"}
    found = load_one(spec(graph, preprocessing=given))
    assert found.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(found.encode_images(IMAGES), expected.encode_images(IMAGES))
    other = load_one(spec(graph, preprocessing={**given, "mean": (0.5, 0.5, 0.5)}))
    assert other.fingerprint != expected.fingerprint
    with pytest.raises(ValueError, match="cannot be cut out"):
        spec(graph, preprocessing={**given, "scaled": 16})


def test_in_a_settings_file(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zsvec.toml").write_text(
        f"""
profile = "mine"
[profiles.mine.encoders.it]
family = "onnx"
model = "{clip.as_posix()}/onnx/vision_model.onnx"
text_model = "{clip.as_posix()}/onnx/text_model.onnx"
preprocessing = {{ size = 32, mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5] }}
"""
    )
    monkeypatch.setattr("zsvec.settings.settings.require_trust", lambda *_: None)
    with zsvec.open(tmp_path / "store", calibration="off") as clf:
        clf.add_category("red", texts=["a red thing"], images=[Image.new("RGB", (40, 40), "red")])
        assert dict(clf.categories()[0].references) == {"it:text": 1, "it:image": 1}
        assert clf.classify(Image.new("RGB", (50, 40), "red")).nearest == "red"


# ---- errors


def test_unknown_outputs_are_named(tmp_path: Path, clip: Path) -> None:
    model = torch.nn.Conv2d(3, 4, 8)

    def run(m: Any, pixels: torch.Tensor) -> Any:
        found = m(pixels).mean((2, 3))
        return found, found * 2

    shutil.copy(clip / "processor_config.json", tmp_path)
    file = write(tmp_path / "model.onnx", model, run, PIXELS, ["this", "that"])
    with pytest.raises(InvalidInputError, match=r"no vectors of images .* Its outputs: this .*that .*name the one"):
        load_one(spec(file))
    with pytest.raises(InvalidInputError, match=r"no output 'those'. Its outputs: this"):
        load_one(spec(file, output="those"))
    assert load_one(spec(file, output="that")).fingerprint.dim == 4


def test_unknown_inputs_are_named(clip: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"takes no pixel_values as tensor\(float\) .* Its inputs: input_ids"):
        load_one(spec(clip / "onnx" / "text_model.onnx"))
    with pytest.raises(InvalidInputError, match=r"takes no input_ids as tensor\(int64\) .* Its inputs: pixel_values"):
        load_one(spec(clip / "onnx" / "vision_model.onnx", clip / "onnx" / "vision_model.onnx"))


def test_the_only_input_of_texts_needs_its_name(clip: Path, tmp_path: Path) -> None:
    ids = {"ids": TOKENS["input_ids"]}
    file = write(tmp_path / "texts.onnx", torch.nn.Embedding(9, 4), lambda m, given: m(given).mean(1), ids, ["found"])
    with pytest.raises(InvalidInputError, match=r"takes no input_ids as tensor\(int64\) .* Its inputs: ids tensor"):
        load_one(spec(clip / "onnx" / "vision_model.onnx", file))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no graph": (lambda folder: (folder / "model.onnx").unlink(), r"model\.onnx cannot be read"),
    "no ONNX": (lambda folder: (folder / "model.onnx").write_bytes(b"\x80\x04."), r"model\.onnx cannot be loaded"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), r"no tokenizer\.json beside"),
    "damaged tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), "is no tokenizer"),
    "damaged configuration": (lambda folder: (folder / "processor_config.json").write_text("{"), "is no JSON"),
    "configuration of another kind": (lambda folder: (folder / "processor_config.json").write_text("[]"), "no table"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named(damage: str, copy: Path) -> None:
    change, said = DAMAGES[damage]
    change(copy)
    with pytest.raises(WeightsUnavailableError, match=said):
        load_one(spec(copy / "model.onnx", copy / "model.onnx"))


CROPPED: dict[str, Any] = {
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
OF_TIMM: dict[str, Any] = {"input_size": [3, 32, 32], "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3}


def bare(folder: Path) -> Path:
    """Returns a graph of images, after deleting the side files."""
    for file in folder.glob("*.json"):
        file.unlink()
    return folder / "onnx" / "vision_model.onnx"


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("preprocessor_config.json", CROPPED, "32×32 of 40, bicubic down"),
        ("processor_config.json", {"image_processor": CROPPED}, "32×32 of 40, bicubic down"),
        ("config.json", {"pretrained_cfg": OF_TIMM}, "32×32 of 35, bicubic even"),
    ],
)
def test_preprocessing_is_read_from_side_files(name: str, config: Any, words: str, copy: Path) -> None:
    graph = bare(copy)
    (copy / name).write_text(json.dumps(config))
    assert load_one(spec(graph)).fingerprint.preprocessing.startswith(f"images: {words}")


def test_preprocessing_that_cannot_be_reproduced_is_refused(copy: Path) -> None:
    graph = bare(copy)
    wrongs = {"config.json": {**OF_TIMM, "crop_mode": "border"}, "preprocessor_config.json": {**CROPPED, "size": 40}}
    for name, config in wrongs.items():
        (copy / name).write_text(json.dumps(config))
        with pytest.raises(InvalidInputError, match=rf"/{name} cannot be carried out .* in zsvec\.toml"):
            load_one(spec(graph))


@pytest.mark.parametrize("name", ["preprocessor_config.json", "config.json", "tokenizer_config.json"])
def test_side_files_that_are_no_json_are_named(name: str, copy: Path) -> None:
    for content in (b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"\xff\xfe{}"):
        (copy / name).write_bytes(content)
        with pytest.raises(WeightsUnavailableError, match=rf"{name} is no JSON"):
            load_one(spec(copy / "model.onnx", copy / "model.onnx"))


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("tokenizer_config.json", "model_max_length", ("a", [1], {}, -3, 0, float("nan"))),
        ("tokenizer_config.json", "pad_token", (5, [1], {"x": 1}, {"content": 5})),
        ("config.json", "text_config", (5, "a", [1], {"max_position_embeddings": [1]})),
        ("config.json", "max_position_embeddings", ("nine",)),
    ],
)
def test_configurations_of_texts_are_checked(name: str, key: str, values: tuple[Any, ...], copy: Path) -> None:
    file = copy / name
    before = json.loads(file.read_text())
    for value in values:
        file.write_text(json.dumps(before | {key: value}))
        with pytest.raises(WeightsUnavailableError, match=rf"{name} is not understood \({key}"):
            load_one(spec(copy / "model.onnx", copy / "model.onnx"))


@pytest.mark.parametrize(("op", "kind"), [("SequenceConstruct", None), ("Cast", "string")])
def test_outputs_other_than_arrays_of_numbers_are_refused(op: str, kind: str | None, copy: Path) -> None:
    onnx = pytest.importorskip("onnx")
    make, float_, string = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.STRING
    node = make.make_node(op, ["pixel_values"], ["pooler_output"], **({"to": string} if kind else {}))
    given = make.make_tensor_value_info("pixel_values", float_, ("n", 3, "h", "w"))
    output = (
        make.make_tensor_value_info("pooler_output", string, None)
        if kind
        else make.make_tensor_sequence_value_info("pooler_output", float_, None)
    )
    graph = make.make_graph([node], "it", [given], [output])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, copy / "model.onnx")
    with pytest.raises(InvalidInputError, match=r"model\.onnx gives something else than an array of numbers"):
        load_one(spec(copy / "model.onnx"))


def test_missing_graphs_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match="cannot be read"):
        load_one(EncoderSpec(family="onnx", model="\0.onnx"))
    found = missing_weights({"it": spec(tmp_path / "a.onnx", tmp_path / "b.onnx")})
    assert found == {"it": f"no graph at {tmp_path / 'a.onnx'}, no graph at {tmp_path / 'b.onnx'}"}


def test_texts_without_a_known_length_are_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    file = copy / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 10**30}))
    with pytest.raises(InvalidInputError, match=r"how long texts are: give model_max_length"):
        load_one(spec(copy / "model.onnx", copy / "model.onnx"))


def test_no_weights_are_taken_from_other_files(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    graph = copy / "onnx" / "vision_model.onnx"
    model = onnx.load(graph)
    tensor = max(model.graph.initializer, key=lambda one: one.ByteSize())
    for folder in (graph.parent, copy):
        (folder / "outside.bin").write_bytes(tensor.raw_data)
    monkeypatch.chdir(graph.parent)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for location in ("outside.bin", "../outside.bin"):
        tensor.ClearField("external_data")
        tensor.external_data.add(key="location", value=location)
        graph.write_bytes(model.SerializeToString())
        with pytest.raises(WeightsUnavailableError, match="a whole graph in one file"):
            load_one(spec(graph))


# ---- CUDA, without a device


def test_cuda_is_preferred_where_onnxruntime_has_it(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    asked: list[list[str]] = []
    initialised = True

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, content: bytes, options: Any, providers: list[str]) -> None:
            super().__init__(content, options, providers=["CPUExecutionProvider"])
            asked.append(providers)

        def get_providers(self) -> list[str]:
            return asked[-1] if initialised else ["CPUExecutionProvider"]

    fake = types.SimpleNamespace(
        SessionOptions=onnxruntime.SessionOptions,
        InferenceSession=Session,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        __version__="1",
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    found = {"it": spec(clip / "onnx" / "vision_model.onnx")}
    loaded = [load_encoders(found, device=device) for device in ("auto", "cpu")]  # type: ignore[arg-type]
    assert [(encoders.device, encoders.on_torch) for encoders in loaded] == [("cuda", False), ("cpu", False)]
    assert asked == [["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]]
    assert describe_device("auto", specs=found).startswith("cuda, and cpu (")
    assert describe_device("cpu", specs=found).startswith("cpu (")
    with pytest.raises(InvalidInputError, match="with onnxruntime-gpu"):
        load_encoders(found, device="cuda")
    version = hardware.installed_version
    monkeypatch.setattr(hardware, "installed_version", lambda n: "1" if n == "onnxruntime-gpu" else version(n))
    assert load_encoders(found, device="cuda").device == "cuda"
    assert asked[-1][0] == "CUDAExecutionProvider"
    initialised = False  # onnxruntime then goes on with the CPU
    assert load_encoders(found, device="cuda").device == "cpu"
