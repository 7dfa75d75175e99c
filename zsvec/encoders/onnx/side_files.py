"""What lies beside a graph: the preprocessing of images, by transformers or timm, and the tokenizer of texts.

Somebody else has written these files, and each is checked before use. What a configuration says is carried out as it
is, or refused with the reason: pixels that are only similar would make other vectors without a word.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from PIL import Image
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from zsvec.encoders.onnx.session import Graph, imported
from zsvec.encoders.spec import GraphPreprocessing
from zsvec.errors import InvalidInputError, WeightsUnavailableError, ZSVecError
from zsvec.inputs.files import open_regular

_LONGEST = 100_000  # tokens; tokenizers that know no limit say 10³⁰
_LARGEST = 2**26  # bytes

_Channels = tuple[float, float, float]
_Length = Annotated[float, Field(ge=1)]
_Part = TypeVar("_Part", bound=BaseModel)


class _Size(BaseModel):
    shortest_edge: int | None = None
    longest_edge: None = None
    height: int | None = None
    width: int | None = None


class _OfTransformers(BaseModel):
    """An image processor of transformers."""

    do_resize: Literal[True] = True
    do_rescale: Literal[True] = True
    do_normalize: Literal[True] = True
    do_center_crop: bool | None
    size: _Size
    crop_size: _Size | None = None
    crop_pct: None = None
    rescale_factor: float = Field(default=1 / 255, ge=(1 - 1e-6) / 255, le=(1 + 1e-6) / 255)
    resample: Image.Resampling = Image.Resampling.BICUBIC
    image_mean: _Channels
    image_std: _Channels

    def preprocessing(self) -> GraphPreprocessing:
        """What it does to an image.

        Raises:
            ValueError: It cannot be carried out.
        """
        square, scaled = self.size, None
        if self.do_center_crop:
            square, scaled = self.crop_size or _Size(), self.size.shortest_edge
            if scaled is None:
                raise ValueError("the centre is cropped, and size has no shortest_edge")
        if square.height is None or square.height != square.width:
            raise ValueError("no height and width, which are equal")
        return GraphPreprocessing(
            size=square.height,
            scaled=scaled,
            interpolation=cast("Any", self.resample.name.lower()),
            mean=self.image_mean,
            std=self.image_std,
            half="down",
        )


class _OfTimm(BaseModel):
    """The configuration of a timm model; `timm.data.resolve_data_config` has the same defaults."""

    input_size: tuple[Literal[3], int, int]
    crop_pct: float = Field(default=0.875, ge=0.01, le=100)
    crop_mode: Literal["center", "squash"] = "center"
    interpolation: str = "bicubic"
    mean: _Channels
    std: _Channels

    def preprocessing(self) -> GraphPreprocessing:
        """As `_OfTransformers.preprocessing`."""
        _, size, width = self.input_size
        scaled = math.floor(size / self.crop_pct)
        if size != width or (self.crop_mode == "squash" and scaled != size):
            raise ValueError("no square that an image is squashed to, or that is cropped from its centre")
        return GraphPreprocessing(
            size=size,
            scaled=None if self.crop_mode == "squash" else scaled,
            interpolation=cast("Any", self.interpolation),
            mean=self.mean,
            std=self.std,
        )


class _Texts(BaseModel):
    max_position_embeddings: _Length | None = None


class _Model(_Texts):
    """The configuration of a model of transformers."""

    text_config: _Texts | None = None


class _Tokenizer(BaseModel):
    """The configuration of a tokenizer of transformers, which says tokens as text or as a table."""

    model_max_length: _Length | None = None
    pad_token: Annotated[
        str | None,
        BeforeValidator(lambda token: token["content"] if isinstance(token, dict) and "content" in token else token),
    ] = None


def preprocessing_beside(graph: Path) -> GraphPreprocessing:
    """The preprocessing of images that is beside a graph, or in the folder above.

    Raises:
        InvalidInputError: There is none, or it cannot be carried out.
        WeightsUnavailableError: A file is damaged.
    """
    for folder in (graph.parent, graph.parent.parent):
        for name, read in _CONFIGURATIONS.items():
            found = read(_json(folder / name))
            if found is None:
                continue
            model, values = found
            try:
                return model.model_validate(values).preprocessing()
            except ValueError as exc:
                raise InvalidInputError(f"{folder / name} cannot be carried out ({_reason(exc)}): {_WRITE_IT}") from exc
    raise InvalidInputError(
        f"the preprocessing of {graph} is nowhere: no preprocessor_config.json of transformers, and no config.json of "
        f"timm, is beside it: {_WRITE_IT}"
    )


def tokenizer_beside(graph: Graph) -> tuple[Any, int, str]:
    """The tokenizer beside a graph with its truncation and padding, the tokens that it gives at most, and its digest.

    Raises:
        InvalidInputError: Nothing says how long texts are.
        MissingExtraError: tokenizers is not installed.
        WeightsUnavailableError: It is not there, or damaged.
    """
    folders = (graph.file.parent, graph.file.parent.parent)
    file = next((folder / "tokenizer.json" for folder in folders if (folder / "tokenizer.json").is_file()), None)
    if file is None:
        raise WeightsUnavailableError(f"no tokenizer.json beside {graph.file}: copy that of the model there")
    content = read_file(file)
    config = _part(_Tokenizer, file.with_name("tokenizer_config.json"))
    model = _part(_Model, file.with_name("config.json"))
    try:
        tokenizer = imported("tokenizers").Tokenizer.from_buffer(content)
        longest = _longest(
            graph,
            config.model_max_length,
            (model.text_config or model).max_position_embeddings,  # which some tokenizers do not know
            (tokenizer.truncation or {}).get("max_length"),
        )
        tokenizer.enable_truncation(longest)
        token = config.pad_token or (tokenizer.padding or {}).get("pad_token") or "[PAD]"
        # Without a mask, the model has learnt from texts that are padded to the end.
        length = {} if "attention_mask" in graph.inputs else {"length": longest}
        tokenizer.enable_padding(pad_id=tokenizer.token_to_id(token) or 0, pad_token=token, **length)
    except ZSVecError:
        raise
    except Exception as exc:  # the library raises nothing more specific
        raise damaged(f"{file} is no tokenizer ({exc})") from exc
    return tokenizer, longest, f"sha256:{hashlib.sha256(content).hexdigest()}"


def read_file(file: Path, most: int = -1) -> bytes:
    """The content of a file.

    Raises:
        WeightsUnavailableError: It cannot be read.
    """
    try:
        with open_regular(file) as opened:
            return opened.read(most)
    except (OSError, ValueError) as exc:  # not there, or a NUL in its name
        raise WeightsUnavailableError(f"{file} cannot be read ({exc}); give the path of a graph") from exc


def damaged(what: str) -> WeightsUnavailableError:
    """The error for something wrong with a graph or what is beside it."""
    return WeightsUnavailableError(
        f"{what}; it must be a whole graph in one file, with its weights: export or download it again"
    )


_WRITE_IT = (
    "it must scale, crop the centre or squash, and normalise; else write it in zsvec.toml, as preprocessing = "
    "{size = 224, scaled = 256, mean = […], std = […]}"
)

_Found = tuple[type[_OfTransformers | _OfTimm], Mapping[str, Any]]


def _of_transformers(config: Mapping[str, Any]) -> _Found | None:
    values = config.get("image_processor", config)
    if isinstance(values, dict):
        if "size" not in values:  # of a tokenizer, or of sounds
            return None
        crop, size = values.get("crop_size"), values["size"]
        values = {"do_center_crop": bool(crop), **values}
        if isinstance(crop, int):
            values["crop_size"] = {"height": crop, "width": crop}
        # Other processors of that time squash to a number.
        kind = values.get("image_processor_type") or values.get("feature_extractor_type")
        if isinstance(size, int) and str(kind).startswith("CLIP"):
            values["size"] = {"shortest_edge": size}
    return _OfTransformers, values


def _of_timm(config: Mapping[str, Any]) -> _Found | None:
    values = config.get("pretrained_cfg", config)
    if isinstance(values, dict):
        if "input_size" not in values:  # of transformers
            return None
        values = {name: value for name, value in values.items() if value is not None}
    return _OfTimm, values


_CONFIGURATIONS: Mapping[str, Callable[[Mapping[str, Any]], _Found | None]] = {
    "preprocessor_config.json": _of_transformers,
    "processor_config.json": _of_transformers,
    "config.json": _of_timm,
}


def _longest(graph: Graph, *limits: float | None) -> int:
    """The least of the tokens that a text may have."""
    longest = min((int(limit) for limit in limits if limit and limit < _LONGEST), default=None)
    if longest is None:
        raise InvalidInputError(
            f"nothing beside {graph.file} says how long texts are: give model_max_length in tokenizer_config.json"
        )
    return longest


def _part(model: type[_Part], file: Path) -> _Part:
    try:
        return model.model_validate(_json(file))
    except ValueError as exc:
        raise damaged(f"{file} is not understood ({_reason(exc)})") from exc


def _json(file: Path) -> dict[str, Any]:
    """The table in a file, empty if there is no file."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(read_file(file, _LARGEST))
    except (ValueError, RecursionError) as exc:
        raise damaged(f"{file} is no JSON ({exc})") from exc
    if not isinstance(found, dict):
        raise damaged(f"{file} is no table")
    return found


def _reason(exc: ValueError) -> str:
    if not isinstance(exc, ValidationError):
        return str(exc)
    problem = exc.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
