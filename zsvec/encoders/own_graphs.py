"""ONNX graphs that people exported themselves: CLIP, SigLIP, DINOv2 and v3 by optimum or transformers, models of timm.

``model = "./clip/vision_model.onnx"`` names the graph of images, which takes float pixels (n, 3, height, width), and
``text_model`` that of texts, which may be the same file. Beside a graph, or in the folder above, are looked for:
``preprocessor_config.json`` or ``processor_config.json`` (transformers) or ``config.json`` (timm), unless the spec has
the preprocessing;
``tokenizer.json`` and ``tokenizer_config.json`` for texts. Whoever names a graph trusts it, and what is beside it, as a
weight file: nothing is unpickled, and no weights are taken from files outside of the graph.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zsvec.encoders.base import Vectors, batches, rgb_of_bounded_aspect
from zsvec.encoders.heads import ImageFeatures
from zsvec.encoders.onnx_session import Graph, imported
from zsvec.encoders.preprocessing import Pixels, Preprocessing
from zsvec.encoders.spec import Device, EncoderSpec, GraphPreprocessing
from zsvec.encoders.weights import at_home
from zsvec.errors import InvalidInputError, WeightsUnavailableError

_IMAGES_A_PASS = 8
_TEXTS_A_PASS = 64
_IMAGE_OUTPUTS = ("image_embeds", "pooler_output", "last_hidden_state")
_TEXT_OUTPUTS = ("text_embeds", "sentence_embedding", "pooler_output")
_LONGEST = 100_000  # tokens; tokenizers that know no limit say 10³⁰
_LARGEST_SIDE_FILE = 2**26  # bytes


@dataclass(frozen=True, slots=True)
class GraphSource:
    """Where a graph is."""

    path: Path

    def missing(self) -> str | None:
        """What is not there, in words, or ``None``."""
        return None if self.path.is_file() else f"no graph at {self.path}"


class OwnImages:
    """The image model of a graph.

    Args:
        graph: Its graph.
        spec: Of the encoder.

    Attributes:
        side: Pixels to which the shorter side of an image is scaled.
        preprocessing: In words, for a fingerprint.
        dim: Of the vectors.

    Raises:
        InvalidInputError: It takes no images, gives no vectors that are known, or its preprocessing is nowhere.
        WeightsUnavailableError: What is beside it is damaged.
    """

    def __init__(self, graph: Graph, spec: EncoderSpec) -> None:
        self._graph = graph
        self._name = _input_of(graph, "pixel_values", "tensor(float)", 4)
        self._output = spec.output or _known(graph, _IMAGE_OUTPUTS, "images")
        if self._output not in graph.outputs:
            raise InvalidInputError(_no_output(graph, f"output {self._output!r}"))
        found = spec.preprocessing or _preprocessing_beside(graph.file)
        self._resize = _resize(found)
        self.side = found.scaled
        self._mean, self._std = (np.array(values, np.float32) * 255 for values in (found.mean, found.std))
        self.preprocessing = f"{found}, {self._output}"
        self._rest = _rest(graph, {self._name}, found.size)
        self.dim = self.forward([np.zeros((found.size, found.size, 3), np.uint8)]).pooled.shape[-1]

    def preprocess(self, image: Image.Image) -> Pixels:
        """One image, uint8 (size, size, 3)."""
        pixels: Pixels = self._resize(image)
        return pixels

    def forward(self, inputs: Sequence[Pixels]) -> ImageFeatures:
        """The features of a batch, computed in passes that fit the cache of a CPU."""
        vectors = np.concatenate([self._pass(np.stack(part)) for part in batches(inputs, _IMAGES_A_PASS)])
        return ImageFeatures(vectors, vectors)

    def _pass(self, pixels: Pixels) -> Vectors:
        scaled = (pixels.astype(np.float32) - self._mean) / self._std
        inputs = {self._name: np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), **self._rest}
        return _rows(self._graph(inputs, [self._output])[0], self._graph)


class OwnTexts:
    """The text model of a graph.

    Args:
        graph: Its graph.
        size: Side of the images that it takes too, if it does.

    Attributes:
        description: In words, for a fingerprint.

    Raises:
        InvalidInputError: It takes no texts, or gives no vectors that are known.
        WeightsUnavailableError: Its tokenizer is not there, or damaged.
    """

    def __init__(self, graph: Graph, size: int) -> None:
        self._graph = graph
        _input_of(graph, "input_ids", "tensor(int64)", 2)
        self._output = _known(graph, _TEXT_OUTPUTS, "texts")
        self._tokenizer, longest, digest = _tokenizer_beside(graph)
        self._rest = _rest(graph, {"input_ids", "attention_mask", "token_type_ids"}, size)
        self.description = f"{self._output} of at most {longest} tokens of {digest}"

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts in their order, float32 (n, dim), of any norm. Long texts are truncated."""
        order = sorted(range(len(texts)), key=lambda position: len(texts[position]))  # so that little is padded
        parts = []
        for positions in batches(order, _TEXTS_A_PASS):
            found = self._tokenizer.encode_batch([texts[position] for position in positions])
            tokens = {
                "input_ids": [one.ids for one in found],
                "attention_mask": [one.attention_mask for one in found],
                "token_type_ids": [one.type_ids for one in found],
            }
            inputs = {name: np.array(rows, np.int64) for name, rows in tokens.items() if name in self._graph.inputs}
            parts.append(_rows(self._graph({**inputs, **self._rest}, [self._output])[0], self._graph))
        return np.concatenate(parts)[np.argsort(order)]


def is_graph(spec: EncoderSpec) -> bool:
    """Whether a spec of the family ``onnx`` names a graph, and not a folder that zsvec has exported."""
    return spec.model.endswith(".onnx")


def sources(spec: EncoderSpec) -> list[GraphSource]:
    """Where the graphs are."""
    return [GraphSource(at_home(Path(file))) for file in (spec.model, spec.text_model) if file]


def load(spec: EncoderSpec, device: Device) -> tuple[OwnImages, OwnTexts | None, str, str]:
    """The image model and the text model of a spec, with the name and the preprocessing for a fingerprint.

    Raises:
        InvalidInputError: The graphs are not of images and texts, or the preprocessing is nowhere.
        MissingExtraError: onnxruntime or tokenizers is not installed.
        WeightsUnavailableError: A file is not there, or damaged.
    """
    graphs: dict[str, tuple[Graph, str]] = {}
    for source, file in zip(sources(spec), filter(None, (spec.model, spec.text_model)), strict=True):
        if file not in graphs:
            content = _read(source.path)
            graphs[file] = Graph(content, source.path, _damaged, device), hashlib.sha256(content).hexdigest()
    graph, digest = graphs[spec.model]
    images = OwnImages(graph, spec)
    if spec.text_model is None:
        return images, None, f"sha256:{digest}", f"images: {images.preprocessing}"
    graph, of_texts = graphs[spec.text_model]
    texts = OwnTexts(graph, images.preprocess(Image.new("RGB", (8, 8))).shape[0])
    preprocessing = f"images: {images.preprocessing}; texts: sha256:{of_texts}, {texts.description}"
    return images, texts, f"sha256:{digest}", preprocessing


# ---- of a graph


def _input_of(graph: Graph, name: str, kind: str, dimensions: int) -> str:
    """The input of this name, or the only one."""
    found = name if name in graph.inputs else next(iter(graph.inputs)) if len(graph.inputs) == 1 else None
    if found is None or graph.inputs[found][0] != kind or len(graph.inputs[found][1]) != dimensions:
        there = ", ".join(f"{n} {kind} {shape}" for n, (kind, shape) in graph.inputs.items())
        raise InvalidInputError(
            f"{graph.file} takes no {name} as {kind} of {dimensions} dimensions. Its inputs: {there}; export it so, in "
            "float32"
        )
    return found


def _known(graph: Graph, names: Sequence[str], what: str) -> str:
    known = next((name for name in names if name in graph.outputs), None)
    if known is None and len(graph.outputs) == 1:
        (known,) = graph.outputs
    if known is None:
        raise InvalidInputError(_no_output(graph, f"vectors of {what} ({', '.join(names)})"))
    return known


def _no_output(graph: Graph, what: str) -> str:
    there = ", ".join(f"{name} {shape}" for name, shape in graph.outputs.items())
    return f"{graph.file} gives no {what}. Its outputs: {there}; name the one of images as output in zsvec.toml"


def _rest(graph: Graph, taken: set[str], size: int) -> dict[str, Any]:
    """What a graph of images and texts takes beside: one image or text of nothing."""
    empty = {
        "pixel_values": np.zeros((1, 3, size, size), np.float32),
        **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), np.ones((1, 1), np.int64)),
    }
    wanted = graph.inputs.keys() - taken
    if not wanted <= empty.keys():
        raise InvalidInputError(f"{graph.file} takes {', '.join(sorted(wanted - empty.keys()))} too: export it without")
    return {name: empty[name] for name in wanted}


def _rows(output: Any, graph: Graph) -> Vectors:
    """Vectors (n, dim); of tokens (n, tokens, dim) the first one, which is CLS."""
    if output.ndim == 3:
        output = output[:, 0]
    if output.ndim != 2:
        raise InvalidInputError(f"{graph.file} gives an array of shape {output.shape}, and vectors are (n, dim)")
    return np.asarray(output, np.float32)


# ---- what is beside a graph


def _preprocessing_beside(graph: Path) -> GraphPreprocessing:
    for folder in (graph.parent, graph.parent.parent):
        for name, reader in _CONFIGURATIONS.items():
            file = folder / name
            found = reader(_json(file)) if file.is_file() else None
            if found is not None:
                return found
    raise InvalidInputError(
        f"the preprocessing of {graph} is nowhere: no preprocessor_config.json of transformers, and no config.json of "
        "timm, that scales, crops the centre or squashes, and normalises, is beside it; write it in zsvec.toml, as "
        "preprocessing = {size = 224, scaled = 256, mean = […], std = […]}"
    )


def _of_transformers(config: Mapping[str, Any]) -> GraphPreprocessing | None:
    config = config.get("image_processor", config)
    size, crop = config.get("size") or {}, config.get("crop_size") or {}
    if isinstance(size, int):
        size = {"shortest_edge": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    crops = config.get("do_center_crop", bool(crop))
    square = crop if crops else size
    if not (config.get("do_resize", True) and config.get("do_normalize", True) and config.get("do_rescale", True)):
        return None
    if square.get("height") is None or square.get("height") != square.get("width"):
        return None
    scaled = size.get("shortest_edge") if crops else None
    return _checked(
        size=square["height"],
        scaled=scaled,
        interpolation=Image.Resampling(config.get("resample", 3)).name.lower(),
        mean=config.get("image_mean"),
        std=config.get("image_std"),
        half="down",
    )


def _of_timm(config: Mapping[str, Any]) -> GraphPreprocessing | None:
    values = config.get("pretrained_cfg", config)
    if "input_size" not in values:
        return None
    size = values.get("test_input_size", values["input_size"])[-1]
    squashed = values.get("crop_mode") == "squash"
    scaled = None if squashed else int(size / values.get("test_crop_pct", values.get("crop_pct", 1.0)))
    return _checked(
        size=size,
        scaled=scaled,
        interpolation=values.get("interpolation"),
        mean=values.get("mean"),
        std=values.get("std"),
        half="even",
    )


_CONFIGURATIONS: Mapping[str, Callable[[Mapping[str, Any]], GraphPreprocessing | None]] = {
    "preprocessor_config.json": _of_transformers,
    "processor_config.json": _of_transformers,
    "config.json": _of_timm,
}


def _checked(**values: Any) -> GraphPreprocessing | None:
    try:
        return GraphPreprocessing(**values)
    except ValueError:
        return None


def _resize(found: GraphPreprocessing) -> Any:
    if found.scaled is not None:
        return Preprocessing(size=found.size, scaled=found.scaled, interpolation=found.interpolation, half=found.half)
    filter_, size = Image.Resampling[found.interpolation.upper()], (found.size, found.size)
    return lambda image: np.array(rgb_of_bounded_aspect(image).resize(size, filter_))


def _tokenizer_beside(graph: Graph) -> tuple[Any, int, str]:
    """The tokenizer with its truncation and padding, the tokens that it gives at most, and its digest."""
    folders = (graph.file.parent, graph.file.parent.parent)
    file = next((folder / "tokenizer.json" for folder in folders if (folder / "tokenizer.json").is_file()), None)
    if file is None:
        raise WeightsUnavailableError(f"no tokenizer.json beside {graph.file}: copy that of the model there")
    content = _read(file)
    try:
        tokenizer = imported("tokenizers").Tokenizer.from_buffer(content)
    except Exception as exc:  # the library raises nothing more specific
        if type(exc).__module__.startswith("zsvec"):
            raise
        raise _damaged(f"{file} is no tokenizer ({exc})") from exc
    config, model = (_json_if_there(file.with_name(name)) for name in ("tokenizer_config.json", "config.json"))
    limits = (
        config.get("model_max_length"),
        model.get("text_config", model).get("max_position_embeddings"),  # which some tokenizers do not know
        (tokenizer.truncation or {}).get("max_length"),
    )
    longest = min((int(limit) for limit in limits if limit and limit < _LONGEST), default=None)
    if longest is None:
        raise InvalidInputError(
            f"nothing beside {graph.file} says how long texts are: give model_max_length in tokenizer_config.json"
        )
    tokenizer.enable_truncation(longest)
    token = config.get("pad_token") or (tokenizer.padding or {}).get("pad_token") or "[PAD]"
    token = token.get("content") if isinstance(token, dict) else token
    # Without a mask, the model has learnt from texts that are padded to the end.
    length = {} if "attention_mask" in graph.inputs else {"length": longest}
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(token) or 0, pad_token=token, **length)
    return tokenizer, longest, f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json_if_there(file: Path) -> Any:
    return _json(file) if file.is_file() else {}


def _json(file: Path) -> Any:
    try:
        found = json.loads(_read(file, _LARGEST_SIDE_FILE))
    except ValueError as exc:
        raise _damaged(f"{file} is no JSON ({exc})") from exc
    if not isinstance(found, dict):
        raise _damaged(f"{file} is no table")
    return found


def _read(file: Path, most: int = -1) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(most)
    except OSError as exc:
        raise WeightsUnavailableError(f"{file} cannot be read ({exc}); give the path of a graph") from exc


def _damaged(what: str) -> WeightsUnavailableError:
    return WeightsUnavailableError(
        f"{what}; it must be a whole graph in one file, with its weights: export or download it again"
    )
