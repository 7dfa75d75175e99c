"""Encoders that zsvec has exported to a folder. onnxruntime runs them without torch and the model libraries.

The folder contains a manifest (``encoders.json``), graphs (``*.onnx``), tokenizers (``*.json``) and matrices
(``*.npy``). The folder of the profile `offline` is part of zsvec, and its weights are files of installed packages
(``package:NAME``). Nothing is unpickled. A folder needs the same trust as a weight file: the digests in the manifest
detect damage but not forgery, because an attacker who changes a file can also change the manifest.
"""

from __future__ import annotations

import hashlib
import io
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from zsvec.encoders.base import BatchEncoder, ConseEncoder, FeatureEncoder, ImageFeatures, Vectors, batches
from zsvec.encoders.loading import LoadContext
from zsvec.encoders.onnx.session import IMAGES_A_PASS, TEXT_INPUTS, Graph, embed_tokens
from zsvec.encoders.preprocessing import Pixels, preprocess
from zsvec.encoders.spec import Device, EncoderSpec, Preprocessing, Prompt, Temperature
from zsvec.encoders.weights import OFFLINE, is_package, package_path
from zsvec.errors import InvalidInputError, MissingExtraError, WeightsUnavailableError
from zsvec.inputs.files import open_regular
from zsvec.types import Fingerprint, Modality

MANIFEST = "encoders.json"
FORMAT: Literal[1] = 1
_MAX_MANIFEST_BYTES = 2**20
_EXPORT_AGAIN = (
    "run `zsvec encoders export` again, where torch is, or take the profile that was exported, with runtime='torch'"
)

_INSTALL_AGAIN = 'install them again: pip install --force-reinstall --no-deps "zsvec[offline]"'
_MAX_FILE_BYTES = 2**31  # a graph cannot be larger

# A name has no path separator, because every file is in the folder itself, or is the only one of a package of weights.
FileName = Annotated[str, StringConstraints(pattern=r"^(package:)?[a-z0-9][a-z0-9._-]{0,99}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


# ---- the manifest


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExportedImages(_Part):
    """An image model. Its graph turns uint8 pixels (n, size, size, 3) into pooled features and, if any, logits.

    Attributes:
        graph: File of the graph.
        weights: File in which the graph finds its weights, if they are not in the graph.
        preprocessing: Preprocessing of the pixels.
    """

    graph: FileName
    weights: FileName | None = None
    preprocessing: Preprocessing


class ExportedTexts(_Part):
    """A text model.

    Attributes:
        graph: File of the graph, which turns token ids (n, tokens) into vectors (n, dim).
        weights: As in `ExportedImages`.
        tokenizer: File for the library `tokenizers`.
    """

    graph: FileName
    weights: FileName | None = None
    tokenizer: FileName


class ExportedEncoder(_Part):
    """An encoder in the manifest.

    Attributes:
        fingerprint: Fingerprint of the encoder on torch. The digest of an image graph in int8 is appended.
        modalities: Modalities of the references that the encoder embeds.
        images: The image model. Encoders with equal image models share one backbone.
        texts: The text model, if the encoder has one.
        labels: File with the vectors of the labels, if the encoder is ConSE.
        prompt: As in `EncoderSpec`.
        temperature: As in `EncoderSpec`.
    """

    fingerprint: Fingerprint
    modalities: tuple[Modality, ...] = Field(min_length=1)
    images: ExportedImages
    texts: ExportedTexts | None = None
    labels: FileName | None = None
    prompt: Prompt
    temperature: Mapping[Modality, Temperature]

    @model_validator(mode="after")
    def _check_texts(self) -> ExportedEncoder:
        if self.texts is None and ("text" in self.modalities or self.labels is not None):
            raise ValueError("there is no text model")
        return self


class Manifest(_Part):
    """The encoders of a folder by name, and the SHA-256 of each file by name."""

    format: Literal[1]
    encoders: Mapping[str, ExportedEncoder] = Field(min_length=1)
    files: Mapping[FileName, Digest]


# ---- the folder


class ExportedFolder:
    """A folder of exported encoders. The constructor checks that the manifest is valid and that all files exist.

    Args:
        path: The folder.

    Raises:
        WeightsUnavailableError: The folder or a file is missing, or the manifest is damaged.
        MissingExtraError: A package of weights is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.path = path.expanduser().absolute()
        except (RuntimeError, ValueError) as exc:  # the home of an unknown user, or a NUL in a name
            raise _absent(path, exc) from exc
        self.manifest = _read_manifest(self.path)
        for name in self.manifest.files:
            if not self._file(name).is_file():
                raise self.damaged(f"{name} is not there")

    def open(self, name: str) -> BinaryIO:
        """Opens a file for a later `read`. On POSIX, `read` works even if the folder is deleted or replaced meanwhile.

        Raises:
            WeightsUnavailableError: The file cannot be opened.
        """
        try:
            return open_regular(self._file(name))
        except OSError as exc:
            raise self.damaged(f"{name} cannot be read ({exc})") from exc

    def read(self, name: str, opened: BinaryIO | None = None) -> bytes:
        """Returns the content of a file, after a comparison with the digest in the manifest.

        Args:
            name: Name of the file.
            opened: The file, if `open` opened it before.

        Raises:
            WeightsUnavailableError: The file cannot be read, has changed since the export, or is not in the manifest.
        """
        with nullcontext(opened) if opened else self.open(name) as file:
            try:
                if file.seek(0, io.SEEK_END) > _MAX_FILE_BYTES:
                    raise self.damaged(f"{name} is larger than {_MAX_FILE_BYTES} bytes")
                file.seek(0)
                content = file.read()
            except OSError as exc:
                raise self.damaged(f"{name} cannot be read ({exc})") from exc
        if hashlib.sha256(content).hexdigest() != self.manifest.files.get(name):
            raise self.damaged(f"{name} has changed, or {MANIFEST} does not list it")
        return content

    def matrix(self, name: str) -> NDArray[np.float32]:
        """Returns the float32 matrix in a file.

        Raises:
            WeightsUnavailableError: `read` fails, or the file does not contain a float32 matrix.
        """
        try:
            matrix = np.load(io.BytesIO(self.read(name)), allow_pickle=False)
        except (ValueError, OSError, EOFError) as exc:
            raise self.damaged(f"{name} is no matrix ({exc})") from exc
        if not isinstance(matrix, np.ndarray) or matrix.dtype != np.float32 or matrix.ndim != 2:
            raise self.damaged(f"{name} is no float32 matrix")
        return matrix

    def graph(
        self, name: str, device: Device = "cpu", opened: BinaryIO | None = None, weights: str | None = None
    ) -> Graph:
        """Returns the graph in a file. `weights` is the file of its weights. For the rest, see `read` and `Graph`."""
        content = self.read(name, opened)
        return Graph(content, self._file(name), self.damaged, device, self.read(weights) if weights else None)

    def damaged(self, problem: str) -> WeightsUnavailableError:
        """Returns the error for a problem with the folder."""
        again = _INSTALL_AGAIN if self.path == OFFLINE else _EXPORT_AGAIN
        return WeightsUnavailableError(f"the exported encoders in {self.path} are damaged: {problem}; {again}")

    def _file(self, name: str) -> Path:
        return package_path(name) if is_package(name) else self.path / name

    def specs(self) -> dict[str, EncoderSpec]:
        """Returns the specs from which `load_encoders` loads the encoders of the folder, by name."""
        return {
            name: EncoderSpec(
                family="onnx",
                model=str(self.path),
                modalities=encoder.modalities,
                prompt=encoder.prompt,
                temperature=encoder.temperature,
            )
            for name, encoder in self.manifest.encoders.items()
        }


def other_files(folder: Path) -> list[str]:
    """Returns the names of all entries of a folder that are not files of exported encoders.

    Returns the names of all entries if the folder has no valid manifest.
    """
    try:
        exported = {MANIFEST, *_read_manifest(folder).files}
    except WeightsUnavailableError:
        exported = set()
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in exported or not entry.is_file())


def _absent(folder: Path, why: Exception) -> WeightsUnavailableError:
    return WeightsUnavailableError(
        f"no exported encoders in {folder} ({why}); give a folder that `zsvec encoders export` has written"
    )


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    try:
        with open_regular(file) as opened:
            content = opened.read(_MAX_MANIFEST_BYTES + 1)
    except (OSError, ValueError) as exc:  # missing, or a NUL in the name
        raise _absent(folder, exc) from exc
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as exc:
        problem = exc.errors()[0]
        raise WeightsUnavailableError(
            f"{file} is damaged or of another version of zsvec ({'.'.join(map(str, problem['loc']))}: "
            f"{problem['msg']}); {_EXPORT_AGAIN}"
        ) from exc


# ---- the models


@dataclass(frozen=True, slots=True)
class ExportedSource:
    """The folder from which an exported encoder is loaded."""

    folder: Path

    def missing(self) -> str | None:
        """Returns a description of the problem with the folder, or ``None`` if the encoders can be loaded."""
        try:
            ExportedFolder(self.folder)
        except (MissingExtraError, WeightsUnavailableError) as exc:
            return str(exc)
        return None


class OnnxBackbone:
    """An exported image model. The constructor raises as `ExportedFolder.graph` does.

    Attributes:
        side: Length in pixels to which the shorter side of an image is scaled.
        device: `Graph.device` of the image model.
        width: Dimension of the pooled features.
        classes: Dimension of the logits; of the pooled features, if the model has no classifier.
    """

    def __init__(self, folder: ExportedFolder, model: ExportedImages, device: Device) -> None:
        self._graph = folder.graph(model.graph, device, weights=model.weights)
        self.device = self._graph.device
        self._preprocessing = model.preprocessing
        self.side = model.preprocessing.scaled
        size = model.preprocessing.size
        shapes = [(kind, shape[1:]) for kind, shape in self._graph.inputs.values()]
        if shapes != [("tensor(uint8)", [size, size, 3])] or len(self._graph.outputs) not in {1, 2}:
            raise folder.damaged(f"{model.graph} is no image model of {size} × {size} pixels")
        (self._input,) = self._graph.inputs
        widths = [shape[-1] for shape in self._graph.outputs.values()]
        self.width, self.classes = widths[0], widths[-1]

    def preprocess(self, image: Image.Image) -> Pixels:
        """Returns the preprocessed pixels of one image, uint8 (size, size, 3)."""
        return preprocess(image, self._preprocessing)

    def forward(self, inputs: Sequence[Pixels]) -> ImageFeatures:
        """Returns the features of a batch, which is split into passes that fit the cache of a CPU."""
        passes = [self._graph({self._input: np.stack(part)}) for part in batches(inputs, IMAGES_A_PASS)]
        outputs = [np.concatenate(parts) for parts in zip(*passes, strict=True)]
        return ImageFeatures(pooled=outputs[0], logits=outputs[-1])


class OnnxTexts:
    """An exported text model, loaded when the first text is embedded, because classifying images does not need it.

    Until then, the model's files stay open, so that a new export may replace the folder.

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
        """Returns the vectors of texts in order, as float32 (n, dim) of any norm. Long texts are truncated.

        Raises:
            WeightsUnavailableError: The graph or the tokenizer is damaged.
        """
        with self._loading:
            graph, tokenizer = self._loaded
        return embed_tokens(tokenizer, texts, lambda tokens: graph(tokens)[0])

    @cached_property
    def _loaded(self) -> tuple[Graph, Any]:
        from tokenizers import Tokenizer

        content = self._folder.read(self._model.tokenizer, self._tokenizer)
        try:
            tokenizer = Tokenizer.from_buffer(content)
        except Exception as exc:  # the library raises nothing more specific
            raise self._folder.damaged(f"{self._model.tokenizer} is no tokenizer ({exc})") from exc
        graph = self._folder.graph(self._model.graph, opened=self._graph, weights=self._model.weights)
        if not graph.inputs.keys() <= set(TEXT_INPUTS):
            raise self._folder.damaged(f"{self._model.graph} is no text model")
        self._close()
        return graph, tokenizer


def sources(spec: EncoderSpec) -> list[ExportedSource]:
    """Returns the folder of the exported encoder as the only source."""
    return [ExportedSource(Path(spec.model))]


def load(name: str, spec: EncoderSpec, modalities: tuple[Modality, ...], context: LoadContext) -> BatchEncoder:
    """Loads the encoder of this name from the folder in the spec. Raises as `load_encoders` does."""
    path, shared = Path(spec.model), context.shared
    if path not in shared:
        shared[path] = ExportedFolder(path)
    folder: ExportedFolder = shared[path]
    found = folder.manifest.encoders.get(name)
    if found is None or not set(modalities) <= set(found.modalities):
        there = "; ".join(f"{n} ({', '.join(e.modalities)})" for n, e in folder.manifest.encoders.items())
        raise InvalidInputError(
            f"no encoder {name!r} of {', '.join(modalities)} was exported to {folder.path}; there are {there}"
        )
    key = path, found.images
    if key not in shared:
        shared[key] = OnnxBackbone(folder, found.images, context.device)
    backbone: OnnxBackbone = shared[key]
    base: dict[str, Any] = {
        "fingerprint": found.fingerprint,
        "modalities": modalities,
        "backbone": backbone,
        "batch_size": context.batch_size,
    }
    dim = found.fingerprint.dim
    texts = OnnxTexts(folder, found.texts) if found.texts else None
    if found.labels is not None and texts is not None:
        labels = folder.matrix(found.labels)
        _check_shape(folder, found.labels, labels.shape == (backbone.classes, dim))
        return ConseEncoder(name, texts, labels, **base)
    _check_shape(folder, found.images.graph, backbone.width == dim)
    return FeatureEncoder(name, texts, **base)


def _check_shape(folder: ExportedFolder, file: str, fits: bool) -> None:
    if not fits:
        raise folder.damaged(f"{file} has another shape than the fingerprint says")
