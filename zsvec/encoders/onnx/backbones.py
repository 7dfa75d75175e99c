"""Exported encoders, run by onnxruntime: without torch, and without the libraries that made the models.

Graphs compute on the CPU, or on CUDA where onnxruntime has it. Their threads do not spin while they wait, so that they
leave the cores to others, and there are as many as torch would have.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from zsvec.encoders.base import BatchEncoder, Vectors, batches
from zsvec.encoders.heads import ClipEncoder, ConseEncoder, ImageFeatures, VisionEncoder
from zsvec.encoders.onnx import own_graphs
from zsvec.encoders.onnx.exported import ExportedFolder, ExportedImages, ExportedTexts
from zsvec.encoders.onnx.session import Graph, imported
from zsvec.encoders.preprocessing import Pixels
from zsvec.encoders.spec import Device, EncoderSpec
from zsvec.errors import InvalidInputError, WeightsUnavailableError
from zsvec.types import Fingerprint, Modality

_IMAGES_A_PASS = 8  # so that their activations stay in the cache
_TEXTS_A_PASS = 64


@dataclass(frozen=True, slots=True)
class ExportedSource:
    """Where the weights of an exported encoder are: they are there, or the folder is damaged."""

    folder: Path

    def missing(self) -> str | None:
        """What is wrong with the folder, in words, or ``None``."""
        try:
            ExportedFolder(self.folder)
        except WeightsUnavailableError as exc:
            return str(exc)
        return None


class OnnxBackbone:
    """An image model.

    Args:
        folder: Where it is.
        model: Which one.
        device: As `Graph`.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        WeightsUnavailableError: The graph is damaged, or not one of images.
    """

    def __init__(self, folder: ExportedFolder, model: ExportedImages, device: Device) -> None:
        self._graph = _graph(folder, model.graph, device)
        self.preprocessing = model.preprocessing
        self.side = model.preprocessing.scaled
        size = model.preprocessing.size
        shapes = [(kind, shape[1:]) for kind, shape in self._graph.inputs.values()]
        if shapes != [("tensor(uint8)", [size, size, 3])] or len(self._graph.outputs) not in {1, 2}:
            raise folder.damaged(f"{model.graph} is no image model of {size} × {size} pixels")
        (self._input,) = self._graph.inputs
        widths = [shape[-1] for shape in self._graph.outputs.values()]
        self.width, self.classes = widths[0], widths[-1]

    def preprocess(self, image: Image.Image) -> Pixels:
        """One image, uint8 (size, size, 3)."""
        return self.preprocessing(image)

    def forward(self, inputs: Sequence[Pixels]) -> ImageFeatures:
        """The features of a batch, computed in passes that fit the cache of a CPU."""
        passes = [self._graph({self._input: np.stack(part)}) for part in batches(inputs, _IMAGES_A_PASS)]
        outputs = [np.concatenate(parts) for parts in zip(*passes, strict=True)]
        return ImageFeatures(pooled=outputs[0], logits=outputs[-1])


class OnnxTexts:
    """A text model, loaded when the first text is embedded: classifying images needs none.

    Its files are open until then, so that a new export in the same folder does no harm.

    Args:
        folder: Where it is.
        model: Which one.

    Raises:
        WeightsUnavailableError: A file cannot be opened.
    """

    def __init__(self, folder: ExportedFolder, model: ExportedTexts) -> None:
        self._folder = folder
        self._model = model
        self._loading = threading.Lock()
        files = ExitStack()
        self._close = weakref.finalize(self, files.close)
        self._graph, self._tokenizer = (
            files.enter_context(folder.open(file)) for file in (model.graph, model.tokenizer)
        )

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts in their order, float32 (n, dim), of any norm. Long texts are truncated.

        Raises:
            MissingExtraError: onnxruntime or tokenizers is not installed.
            WeightsUnavailableError: The graph or the tokenizer is damaged.
        """
        with self._loading:
            graph, tokenizer = self._loaded
        order = sorted(range(len(texts)), key=lambda position: len(texts[position]))  # so that little is padded
        parts = []
        for positions in batches(order, _TEXTS_A_PASS):
            found = tokenizer.encode_batch([texts[position] for position in positions])
            tokens = {
                "input_ids": [one.ids for one in found],
                "attention_mask": [one.attention_mask for one in found],
                "token_type_ids": [one.type_ids for one in found],
            }
            parts.append(graph({name: np.array(tokens[name], np.int64) for name in graph.inputs})[0])
        vectors = np.concatenate(parts)
        return vectors[np.argsort(order)]

    @cached_property
    def _loaded(self) -> tuple[Graph, Any]:
        tokenizers = imported("tokenizers")
        content = self._folder.read(self._model.tokenizer, self._tokenizer)
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as exc:  # the library raises nothing more specific
            raise self._folder.damaged(f"{self._model.tokenizer} is no tokenizer ({exc})") from exc
        graph = _graph(self._folder, self._model.graph, opened=self._graph)
        if not graph.inputs.keys() <= {"input_ids", "attention_mask", "token_type_ids"}:
            raise self._folder.damaged(f"{self._model.graph} is no text model")
        self._close()
        return graph, tokenizer


def sources(spec: EncoderSpec) -> Sequence[ExportedSource | own_graphs.GraphSource]:
    """Where the weights are."""
    return own_graphs.sources(spec) if spec.is_graph else [ExportedSource(Path(spec.model))]


def load(
    name: str,
    spec: EncoderSpec,
    *,
    modalities: tuple[Modality, ...],
    device: Device,
    batch_size: int,
    shared: dict[Any, Any],
) -> BatchEncoder:
    """Load an exported encoder, or one of a graph of somebody's own.

    Args:
        name: Its name in the profile, and in the folder.
        spec: `EncoderSpec.model` is the folder, or the file of a graph.
        modalities: Which references it embeds.
        device: Where image models run, as `Graph`.
        batch_size: Texts that it takes at once.
        shared: What the encoders loaded so far have in common.

    Raises:
        InvalidInputError: The folder has no encoder of this name, or it does not embed these modalities.
        MissingExtraError: onnxruntime is not installed.
        WeightsUnavailableError: The folder is not there, or damaged.
    """
    if spec.is_graph:
        return _own(name, spec, modalities, device, batch_size)
    path = Path(spec.model)
    folder: ExportedFolder = shared.setdefault(path, None) or ExportedFolder(path)
    shared[path] = folder
    found = folder.manifest.encoders.get(name)
    if found is None or not set(modalities) <= set(found.modalities):
        there = "; ".join(f"{n} ({', '.join(e.modalities)})" for n, e in folder.manifest.encoders.items())
        raise InvalidInputError(
            f"no encoder {name!r} of {', '.join(modalities)} was exported to {folder.path}; there are {there}"
        )
    key = path, found.images
    if key not in shared:
        shared[key] = OnnxBackbone(folder, found.images, device)
    backbone: OnnxBackbone = shared[key]
    base: dict[str, Any] = {
        "fingerprint": found.fingerprint,
        "modalities": modalities,
        "backbone": backbone,
        "batch_size": batch_size,
    }
    dim = found.fingerprint.dim
    if found.texts is None:
        _check(folder, found.images.graph, backbone.width == dim)
        return VisionEncoder(name, **base)
    texts = OnnxTexts(folder, found.texts)
    if found.labels is None:
        _check(folder, found.images.graph, backbone.width == dim)
        return ClipEncoder(name, texts, **base)
    labels = folder.matrix(found.labels)
    _check(folder, found.labels, labels.shape == (backbone.classes, dim))
    return ConseEncoder(name, texts, labels, **base)


def _own(
    name: str, spec: EncoderSpec, modalities: tuple[Modality, ...], device: Device, batch_size: int
) -> BatchEncoder:
    images, texts, model, preprocessing = own_graphs.load(spec, device)
    base: dict[str, Any] = {
        "fingerprint": Fingerprint(model=model, revision=None, dim=images.dim, preprocessing=preprocessing),
        "backbone": images,
        "batch_size": batch_size,
    }
    if texts is None:
        return VisionEncoder(name, modalities=("image",), **base)
    return ClipEncoder(name, texts, modalities=modalities, **base)


def _graph(folder: ExportedFolder, file: str, device: Device = "cpu", opened: BinaryIO | None = None) -> Graph:
    return Graph(folder.read(file, opened), folder.path / file, folder.damaged, device)


def _check(folder: ExportedFolder, file: str, fits: bool) -> None:
    if not fits:
        raise folder.damaged(f"{file} has another shape than the fingerprint says")
