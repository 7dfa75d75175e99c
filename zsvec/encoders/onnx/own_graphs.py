"""ONNX graphs that people exported themselves: CLIP, SigLIP, DINOv2 and v3 by optimum or transformers, models of timm.

``model = "./clip/vision_model.onnx"`` names the graph of images, which takes float pixels (n, 3, height, width), and
``text_model`` that of texts, which may be the same file. Beside a graph, or in the folder above, are looked for
(`zsvec.encoders.onnx.side_files`): ``preprocessor_config.json`` or ``processor_config.json`` (transformers) or
``config.json`` (timm), unless the spec has the preprocessing; ``tokenizer.json`` and ``tokenizer_config.json`` for
texts. Whoever names a graph trusts it, and what is beside it, as a
weight file: nothing is unpickled, and no weights are taken from files outside of the graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zsvec.encoders.base import Vectors, batches, rgb_of_bounded_aspect
from zsvec.encoders.heads import ImageFeatures
from zsvec.encoders.onnx.session import Graph
from zsvec.encoders.onnx.side_files import damaged, preprocessing_beside, read_file, tokenizer_beside
from zsvec.encoders.preprocessing import Pixels, Preprocessing
from zsvec.encoders.spec import Device, EncoderSpec, GraphPreprocessing
from zsvec.encoders.weights import at_home
from zsvec.errors import InvalidInputError

_IMAGES_A_PASS = 8
_TEXTS_A_PASS = 64
_IMAGE_OUTPUTS = ("image_embeds", "pooler_output", "last_hidden_state")
_TEXT_OUTPUTS = ("text_embeds", "sentence_embedding", "pooler_output")


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
        found = spec.preprocessing or preprocessing_beside(graph.file)
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
        self._tokenizer, longest, digest = tokenizer_beside(graph)
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
            content = read_file(source.path)
            graphs[file] = Graph(content, source.path, damaged, device), hashlib.sha256(content).hexdigest()
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
    if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiu":
        raise InvalidInputError(f"{graph.file} gives something else than an array of numbers: name another output")
    if output.ndim == 3:
        output = output[:, 0]
    if output.ndim != 2:
        raise InvalidInputError(f"{graph.file} gives an array of shape {output.shape}, and vectors are (n, dim)")
    return np.asarray(output, np.float32)


def _resize(found: GraphPreprocessing) -> Any:
    if found.scaled is not None:
        return Preprocessing(size=found.size, scaled=found.scaled, interpolation=found.interpolation, half=found.half)
    filter_, size = Image.Resampling[found.interpolation.upper()], (found.size, found.size)
    return lambda image: np.array(rgb_of_bounded_aspect(image).resize(size, filter_))
