"""Your own ONNX graphs: CLIP, SigLIP, DINOv2 and DINOv3 from optimum or transformers, and models of timm.

``model = "./clip/vision_model.onnx"`` names the image graph, which takes float pixels (n, 3, height, width).
``text_model`` names the text graph, which may be the same file. Configuration files are read from the folder of a graph
or its parent folder:

- The preprocessing of images is read from ``preprocessor_config.json`` or ``processor_config.json`` (transformers) or
  ``config.json`` (timm), unless the spec contains the preprocessing.
- The tokenizer is read from ``tokenizer.json``, and its settings from ``tokenizer_config.json`` and ``config.json``.

A graph and its configuration files need the same trust as a weight file. Nothing is unpickled, and weights are only
read from the graph itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from zsvec.encoders.base import BatchEncoder, FeatureEncoder, ImageFeatures, Vectors, batches
from zsvec.encoders.loading import LoadContext
from zsvec.encoders.onnx.session import IMAGES_A_PASS, TEXT_INPUTS, Graph, embed_tokens
from zsvec.encoders.preprocessing import Pixels, of_timm, of_transformers, preprocess
from zsvec.encoders.spec import EncoderSpec, GraphPreprocessing
from zsvec.encoders.weights import at_home
from zsvec.errors import InvalidInputError, WeightsUnavailableError, ZSVecError
from zsvec.inputs.files import open_regular
from zsvec.types import Fingerprint, Modality

_MAX_TOKENS = 100_000  # tokenizers without a limit say 10³⁰
_MAX_CONFIG_BYTES = 2**26
_IMAGE_OUTPUTS = ("image_embeds", "pooler_output", "last_hidden_state")
_TEXT_OUTPUTS = ("text_embeds", "sentence_embedding", "pooler_output")
_PREPROCESSING: Mapping[str, Callable[[Mapping[str, Any]], GraphPreprocessing | None]] = {
    "preprocessor_config.json": of_transformers,
    "processor_config.json": of_transformers,
    "config.json": of_timm,
}
_WRITE_IT = (
    "it must scale, crop the centre or squash, and normalise; else write it in zsvec.toml, as preprocessing = "
    "{size = 224, scaled = 256, mean = […], std = […]}"
)


@dataclass(frozen=True, slots=True)
class GraphSource:
    """The file of a graph."""

    path: Path

    def missing(self) -> str | None:
        """Returns a description of a missing file, else ``None``."""
        return None if self.path.is_file() else f"no graph at {self.path}"


class CustomImages:
    """The image model of your own graph.

    Attributes:
        side: Length in pixels to which the shorter side of an image is scaled; ``None`` if the image is squashed.
        device: `Graph.device` of the graph.
        size: Side of the square input, in pixels.
        preprocessing: Description of preprocessing and output for a fingerprint.
        dim: Dimension of the vectors.

    Raises:
        InvalidInputError: The graph does not take images, has no known output, or has no supported preprocessing.
        WeightsUnavailableError: A configuration file is damaged.
    """

    def __init__(self, graph: Graph, spec: EncoderSpec) -> None:
        self._graph = graph
        self.device = graph.device
        self._name = _input_of(graph, "pixel_values", "tensor(float)", 4, or_only=True)
        self._output = spec.output or _known_output(graph, _IMAGE_OUTPUTS, "images")
        if self._output not in graph.outputs:
            raise InvalidInputError(_no_output(graph, f"output {self._output!r}"))
        self._preprocessing = spec.preprocessing or preprocessing_beside(graph.file)
        self.side, self.size = self._preprocessing.scaled, self._preprocessing.size
        self._mean = np.array(self._preprocessing.mean, np.float32) * 255
        self._std = np.array(self._preprocessing.std, np.float32) * 255
        self.preprocessing = f"{self._preprocessing}, {self._output}"
        self._rest = _placeholders(graph, {self._name}, self.size)
        self.dim = self.forward([np.zeros((self.size, self.size, 3), np.uint8)]).pooled.shape[-1]

    def preprocess(self, image: Image.Image) -> Pixels:
        """Returns the preprocessed pixels of one image, uint8 (size, size, 3)."""
        return preprocess(image, self._preprocessing)

    def forward(self, inputs: Sequence[Pixels]) -> ImageFeatures:
        """Returns the features of a batch, which is split into passes that fit the cache of a CPU."""
        vectors = np.concatenate([self._pass(np.stack(part)) for part in batches(inputs, IMAGES_A_PASS)])
        return ImageFeatures(vectors, vectors)

    def _pass(self, pixels: Pixels) -> Vectors:
        scaled = (pixels.astype(np.float32) - self._mean) / self._std
        inputs = {self._name: np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), **self._rest}
        return _rows(self._graph(inputs, [self._output])[0], self._graph)


class CustomTexts:
    """The text model of your own graph.

    Args:
        graph: The graph.
        size: Side of the image input in pixels, if the graph also takes images.

    Attributes:
        description: Description of output and tokenizer for a fingerprint.

    Raises:
        InvalidInputError: The graph does not take texts or has no known output, or no configuration file states the
            maximum number of tokens.
        WeightsUnavailableError: The tokenizer is missing or damaged.
    """

    def __init__(self, graph: Graph, size: int) -> None:
        self._graph = graph
        _input_of(graph, "input_ids", "tensor(int64)", 2)
        self._output = _known_output(graph, _TEXT_OUTPUTS, "texts")
        self._tokenizer, longest, digest = _tokenizer_beside(graph)
        self._rest = _placeholders(graph, set(TEXT_INPUTS), size)
        self.description = f"{self._output} of at most {longest} tokens of sha256:{digest}"

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Returns the vectors of texts in order, as float32 (n, dim) of any norm. Long texts are truncated."""
        return embed_tokens(self._tokenizer, texts, self._pass)

    def _pass(self, tokens: dict[str, Any]) -> Vectors:
        return _rows(self._graph({**tokens, **self._rest}, [self._output])[0], self._graph)


def sources(spec: EncoderSpec) -> list[GraphSource]:
    """Returns the file of the image graph and, if the spec names one, the file of the text graph."""
    return [GraphSource(at_home(Path(file))) for file in (spec.model, spec.text_model) if file]


def load(name: str, spec: EncoderSpec, modalities: tuple[Modality, ...], context: LoadContext) -> BatchEncoder:
    """Loads the image graph and, if the spec names one, the text graph. Raises as `load_encoders` does."""
    paths = [source.path for source in sources(spec)]
    graphs: dict[Path, tuple[Graph, str]] = {}
    for path in set(paths):
        content = read_file(path)
        graphs[path] = Graph(content, path, _damaged, context.device), hashlib.sha256(content).hexdigest()
    graph, digest = graphs[paths[0]]
    images = CustomImages(graph, spec)
    preprocessing = f"images: {images.preprocessing}"
    texts = None
    if spec.text_model:
        text_graph, text_digest = graphs[paths[1]]
        texts = CustomTexts(text_graph, images.size)
        preprocessing += f"; texts: sha256:{text_digest}, {texts.description}"
    return FeatureEncoder(
        name,
        texts,
        fingerprint=Fingerprint(model=f"sha256:{digest}", revision=None, dim=images.dim, preprocessing=preprocessing),
        modalities=modalities if texts else ("image",),
        backbone=images,
        batch_size=context.batch_size,
    )


# ---- inputs and outputs of a graph


def _input_of(graph: Graph, name: str, kind: str, dimensions: int, *, or_only: bool = False) -> str:
    """Checks an input's type and rank and returns its name. With `or_only`, a graph's only input may have any name."""
    found = next(iter(graph.inputs)) if or_only and len(graph.inputs) == 1 else name
    if found not in graph.inputs or graph.inputs[found][0] != kind or len(graph.inputs[found][1]) != dimensions:
        there = ", ".join(f"{n} {kind} {shape}" for n, (kind, shape) in graph.inputs.items())
        raise InvalidInputError(
            f"{graph.file} takes no {name} as {kind} of {dimensions} dimensions. Its inputs: {there}; export it so, in "
            "float32"
        )
    return found


def _known_output(graph: Graph, names: Sequence[str], modality: str) -> str:
    known = next((name for name in names if name in graph.outputs), None)
    if known is None and len(graph.outputs) == 1:
        (known,) = graph.outputs
    if known is None:
        raise InvalidInputError(_no_output(graph, f"vectors of {modality} ({', '.join(names)})"))
    return known


def _no_output(graph: Graph, wanted: str) -> str:
    there = ", ".join(f"{name} {shape}" for name, shape in graph.outputs.items())
    return f"{graph.file} gives no {wanted}. Its outputs: {there}; name the one of images as output in zsvec.toml"


def _placeholders(graph: Graph, taken: set[str], size: int) -> dict[str, Any]:
    """Returns dummy values for the inputs that are not in `taken`.

    A graph for images and texts needs all inputs, even when only images or only texts are embedded. Raises
    InvalidInputError if the graph needs any other input.
    """
    empty = {
        "pixel_values": np.zeros((1, 3, size, size), np.float32),
        **dict.fromkeys(TEXT_INPUTS, np.ones((1, 1), np.int64)),
    }
    wanted = graph.inputs.keys() - taken
    if not wanted <= empty.keys():
        raise InvalidInputError(f"{graph.file} takes {', '.join(sorted(wanted - empty.keys()))} too: export it without")
    return {name: empty[name] for name in wanted}


def _rows(output: Any, graph: Graph) -> Vectors:
    """Returns an output as float32 (n, dim). From (n, tokens, dim), takes the first token of each item (CLS)."""
    if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiu":
        raise InvalidInputError(f"{graph.file} gives something else than an array of numbers: name another output")
    if output.ndim == 3:
        output = output[:, 0]
    if output.ndim != 2:
        raise InvalidInputError(f"{graph.file} gives an array of shape {output.shape}, and vectors are (n, dim)")
    return np.asarray(output, np.float32)


# ---- configuration files


class _TextConfig(BaseModel):
    max_position_embeddings: Annotated[float, Field(ge=1)] | None = None


class _ModelConfig(_TextConfig):
    """The configuration of a model of transformers."""

    text_config: _TextConfig | None = None


class _TokenizerConfig(BaseModel):
    """The configuration of a tokenizer of transformers. A token is a string or a table with a string in `content`."""

    model_max_length: Annotated[float, Field(ge=1)] | None = None
    pad_token: Annotated[
        str | None,
        BeforeValidator(lambda token: token["content"] if isinstance(token, dict) and "content" in token else token),
    ] = None


_Config = TypeVar("_Config", bound=BaseModel)


def preprocessing_beside(graph: Path) -> GraphPreprocessing:
    """Reads the image preprocessing from a configuration file in the graph's folder, or in the parent folder.

    Raises:
        InvalidInputError: No configuration file is found, or zsvec does not support the preprocessing.
        WeightsUnavailableError: A configuration file is damaged.
    """
    for folder in (graph.parent, graph.parent.parent):
        for name, read in _PREPROCESSING.items():
            config = _json(folder / name)
            try:
                found = read(config)
            except ValueError as exc:
                raise InvalidInputError(f"{folder / name} cannot be carried out ({_reason(exc)}): {_WRITE_IT}") from exc
            if found is not None:
                return found
    raise InvalidInputError(
        f"the preprocessing of {graph} is nowhere: no preprocessor_config.json of transformers, and no config.json of "
        f"timm, is beside it: {_WRITE_IT}"
    )


def _tokenizer_beside(graph: Graph) -> tuple[Any, int, str]:
    """Returns the tokenizer with truncation and padding, the maximum number of tokens, and the SHA-256 of its file."""
    folders = (graph.file.parent, graph.file.parent.parent)
    file = next((folder / "tokenizer.json" for folder in folders if (folder / "tokenizer.json").is_file()), None)
    if file is None:
        raise WeightsUnavailableError(f"no tokenizer.json beside {graph.file}: copy the tokenizer of the model there")
    from tokenizers import Tokenizer

    content = read_file(file)
    config = _config(_TokenizerConfig, file.with_name("tokenizer_config.json"))
    model = _config(_ModelConfig, file.with_name("config.json"))
    try:
        tokenizer = Tokenizer.from_buffer(content)
        longest = _max_tokens(
            graph,
            config.model_max_length,
            (model.text_config or model).max_position_embeddings,  # some tokenizers do not know this limit
            (tokenizer.truncation or {}).get("max_length"),
        )
        tokenizer.enable_truncation(longest)
        token = config.pad_token or (tokenizer.padding or {}).get("pad_token") or "[PAD]"
        # A model without an attention mask was trained on texts that are padded to the maximum length.
        length = {} if "attention_mask" in graph.inputs else {"length": longest}
        tokenizer.enable_padding(pad_id=tokenizer.token_to_id(token) or 0, pad_token=token, **length)
    except ZSVecError:
        raise
    except Exception as exc:  # the library raises nothing more specific
        raise _damaged(f"{file} is no tokenizer ({exc})") from exc
    return tokenizer, longest, hashlib.sha256(content).hexdigest()


def _max_tokens(graph: Graph, *limits: float | None) -> int:
    longest = min((int(limit) for limit in limits if limit and limit < _MAX_TOKENS), default=None)
    if longest is None:
        raise InvalidInputError(
            f"nothing beside {graph.file} says how long texts are: give model_max_length in tokenizer_config.json"
        )
    return longest


def read_file(file: Path, most: int = -1) -> bytes:
    """Returns the content of a file, or the first `most` bytes.

    Raises:
        WeightsUnavailableError: The file cannot be read.
    """
    try:
        with open_regular(file) as opened:
            return opened.read(most)
    except (OSError, ValueError) as exc:  # missing, or a NUL in the name
        raise WeightsUnavailableError(f"{file} cannot be read ({exc}); give the path of a graph") from exc


def _config(model: type[_Config], file: Path) -> _Config:
    try:
        return model.model_validate(_json(file))
    except ValueError as exc:
        raise _damaged(f"{file} is not understood ({_reason(exc)})") from exc


def _json(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file, or an empty dictionary if the file does not exist."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(read_file(file, _MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as exc:
        raise _damaged(f"{file} is no JSON ({exc})") from exc
    if not isinstance(found, dict):
        raise _damaged(f"{file} is no table")
    return found


def _damaged(problem: str) -> WeightsUnavailableError:
    return WeightsUnavailableError(
        f"{problem}; give a whole graph in one file, with all weights: export or download the graph again"
    )


def _reason(exc: ValueError) -> str:
    if not isinstance(exc, ValidationError):
        return str(exc)
    problem = exc.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
