"""Encoders on torch → a folder that onnxruntime runs without torch; see `zsvec.encoders.exported`.

An export is refused where its vectors differ from those of torch: their cosine must be at least `LEAST_COSINE` for each
image and text that is compared. The fingerprint stays the same, so a store may contain vectors of both.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from zsvec.encoders.base import BatchEncoder
from zsvec.encoders.cache import EXPORTING, Record, WeightFile, claim_of, place, record_of, tidy
from zsvec.encoders.clip import ClipBackbone
from zsvec.encoders.encoder_set import EncoderSet
from zsvec.encoders.exported import (
    FORMAT,
    MANIFEST,
    ExportedEncoder,
    ExportedFolder,
    ExportedImages,
    ExportedTexts,
    Manifest,
    other_files,
)
from zsvec.encoders.heads import ClipEncoder, ConseEncoder
from zsvec.encoders.loading import load_encoders, weight_sources
from zsvec.encoders.preprocessing import Preprocessing
from zsvec.encoders.quiet import quiet_loading
from zsvec.encoders.sentence import SentenceModel
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.vision import TimmBackbone
from zsvec.encoders.weights import at_home
from zsvec.errors import EncoderError, InvalidInputError, MissingExtraError, WeightsUnavailableError

LEAST_COSINE = 0.9999
_TURNS, _IMAGES_A_TURN = 4, 8
_COMPARED_SIZES = [(320, 240), (240, 320), (224, 224), (500, 375), (64, 48), (1000, 100), (333, 250), (397, 251)]
_COMPARED_TEXTS = ["a photo of a cat", "x", "  Two   DOGS, sleeping in the sun!\n", "小熊猫 é ß", "a long text " * 100]


def export_encoders(specs: Mapping[str, EncoderSpec], folder: Path) -> None:
    """Export encoders to a folder.

    Args:
        specs: The encoders, by name.
        folder: Made, or replaced if it holds exported encoders and nothing else; whole or not at all.

    Raises:
        InvalidInputError: The folder holds something else, or an encoder is of a kind that cannot be exported, as those
            that were exported already.
        MissingExtraError: What exports is not installed.
        EncoderError: The exported encoder gives other vectors.
        WeightsUnavailableError: Weights cannot be loaded here.
    """
    _check_not_exported(specs)
    _check_packages()
    folder = at_home(folder).resolve()  # of a link, what it leads to is replaced
    _check_replaceable(folder)
    with _exported_beside(folder, specs) as work:
        _check_replaceable(folder)  # it took a minute
        _put_in_place(work, folder)


def export_to_cache(specs: Mapping[str, EncoderSpec]) -> Record:
    """Export encoders for this user and this machine, and measure whether that is faster.

    Raises:
        InvalidInputError: They are exported ones, or weights of the hub without a pinned revision, of which another
            may be the newest tomorrow; or as `export_encoders`.
        MissingExtraError, EncoderError, WeightsUnavailableError: As `export_encoders`.
    """
    _check_not_exported(specs)
    folder = place(specs)
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        record = _exported_to_cache(specs, folder)
    except WeightsUnavailableError:  # they may be there an hour later
        raise
    except (InvalidInputError, EncoderError) as exc:
        claim_of(folder).write_text(f"{exc}\n", encoding="utf-8")
        raise
    claim_of(folder).unlink(missing_ok=True)
    tidy()
    return record


def _exported_to_cache(specs: Mapping[str, EncoderSpec], folder: Path) -> Record:
    sources = [source for spec in specs.values() for source in weight_sources(spec)]
    for source in sources:
        if getattr(source, "revision", "") is None:
            raise InvalidInputError(
                f"{source} cannot be exported to the cache: pin its revision, or export it to a folder"
            )
    _check_packages()
    record_of(folder).unlink(missing_ok=True)
    with _exported_beside(folder, specs) as work:
        _put_in_place(work, folder)  # whatever is there is ours, and may be damaged
    folder.chmod(0o700)
    files = sorted({str(file.absolute()) for source in sources for file in source.load().files()})
    record = Record(weights=tuple(map(WeightFile.now, files)), rates=_rates(specs, ExportedFolder(folder).specs()))
    partial = record_of(folder).with_suffix(".partial")
    partial.write_text(record.model_dump_json(), encoding="utf-8")
    partial.replace(record_of(folder))
    return record


def _check_replaceable(folder: Path) -> None:
    """Refuse a folder in which files would be lost.

    Raises:
        InvalidInputError: It holds something else than exported encoders, or is no folder.
    """
    others = other_files(folder) if folder.is_dir() else [folder.name] if folder.exists() else []
    if others:
        named = ", ".join(others[:5]) + ", …" * (len(others) > 5)
        raise InvalidInputError(
            f"{folder} holds something else than exported encoders ({named}), which would be lost: give an empty or a "
            "new folder"
        )


@contextmanager
def _exported_beside(folder: Path, specs: Mapping[str, EncoderSpec]) -> Iterator[Path]:
    """A new folder beside another, with the export of encoders, compared with them; removed in the end if still there.

    Raises:
        InvalidInputError, EncoderError, WeightsUnavailableError: As `export_encoders`.
    """
    encoders = load_encoders(specs, device="cpu", dtype="float32", runtime="torch")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _Exporter(work).write(encoders, specs)
        _compare(encoders, load_encoders(ExportedFolder(work).specs(), device="cpu"))
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _rates(specs: Mapping[str, EncoderSpec], exported: Mapping[str, EncoderSpec]) -> dict[str, float]:
    """Images a second of the candidates."""
    # One after the other: they need not be in memory together.
    rates = {
        f"torch {dtype}": _rate(load_encoders(specs, device="cpu", dtype=dtype, runtime="torch"))
        for dtype in ("float32", "bfloat16")
    }
    return rates | {"onnx": _rate(load_encoders(exported, device="cpu"))}


def _rate(encoders: EncoderSet) -> float:
    """Images a second, the best of a few turns."""
    prepared = [encoders.preprocess(_photograph(0, (320, 240)))] * _IMAGES_A_TURN
    seconds = []
    for _ in range(_TURNS + 1):  # the first one warms up
        begun = time.perf_counter()
        encoders.encode_images(prepared)
        seconds.append(time.perf_counter() - begun)
    return _IMAGES_A_TURN / min(seconds[1:])


class _Exporter:
    """Writes models, those that encoders share once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[int, Any] = {}
        self._numbers = count()

    def write(self, encoders: EncoderSet, specs: Mapping[str, EncoderSpec]) -> None:
        exported = {
            encoder.name: self._encoder(cast("BatchEncoder", encoder), specs[encoder.name]) for encoder in encoders
        }
        files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(self._folder.iterdir())}
        manifest = Manifest(format=FORMAT, encoders=exported, files=files)
        (self._folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")

    def _encoder(self, encoder: BatchEncoder, spec: EncoderSpec) -> ExportedEncoder:
        labels = None
        if isinstance(encoder, ConseEncoder):
            labels = f"labels-{next(self._numbers)}.npy"
            np.save(self._folder / labels, encoder.labels, allow_pickle=False)
        texts = encoder.texts if isinstance(encoder, ClipEncoder | ConseEncoder) else None
        return ExportedEncoder(
            family=cast("Any", spec.family),
            fingerprint=encoder.fingerprint,
            modalities=encoder.modalities,
            images=self._images(encoder.name, encoder.backbone),
            texts=self._texts(cast("SentenceModel", texts)) if texts else None,
            labels=labels,
            prompt=spec.prompt,
            temperature=spec.temperature,
        )

    def _images(self, name: str, backbone: Any) -> ExportedImages:
        if id(backbone) not in self._written:
            model, preprocessing = _image_graph(name, backbone)
            graph = f"images-{next(self._numbers)}.onnx"
            example = torch.zeros((2, preprocessing.size, preprocessing.size, 3), dtype=torch.uint8)
            _write_graph(model, {"pixels": example}, self._folder / graph)
            self._written[id(backbone)] = ExportedImages(graph=graph, preprocessing=preprocessing)
        return cast("ExportedImages", self._written[id(backbone)])

    def _texts(self, texts: SentenceModel) -> ExportedTexts:
        if id(texts) not in self._written:
            number = next(self._numbers)
            graph, tokenizer = f"texts-{number}.onnx", f"tokenizer-{number}.json"
            inputs = dict(texts.model.preprocess(["a cat", "two dogs that sleep in the sun"]))
            tokens = {name: inputs.pop(name) for name in list(inputs) if torch.is_tensor(inputs[name])}
            _write_graph(_Texts(texts.model, list(tokens), inputs), tokens, self._folder / graph)
            (self._folder / tokenizer).write_text(_tokenizer(texts), encoding="utf-8")
            self._written[id(texts)] = ExportedTexts(graph=graph, tokenizer=tokenizer)
        return cast("ExportedTexts", self._written[id(texts)])


class _TimmImages(torch.nn.Module):
    """A timm model from uint8 pixels (n, height, width, channels) on."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: TimmBackbone) -> None:
        super().__init__()
        self.model = backbone.model
        self.register_buffer("mean", backbone.mean)
        self.register_buffer("std", backbone.std)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.model.forward_features((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std)
        pooled = self.model.forward_head(features, pre_logits=True)
        return (pooled, self.model.forward_head(features)) if self.model.num_classes else (pooled,)


class _ClipImages(torch.nn.Module):
    """The image tower of a CLIP-like model from uint8 pixels on."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: ClipBackbone, processor: Mapping[str, Any], rest: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = backbone.model
        self._rest = rest
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(processor[f"image_{name}"]).mul(255).view(1, -1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        scaled = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        vectors: torch.Tensor = self.model({**self._rest, "pixel_values": scaled})["sentence_embedding"]
        return vectors


class _Texts(torch.nn.Module):
    """A text model from tokens to vectors."""

    def __init__(self, model: torch.nn.Module, names: Sequence[str], rest: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._names = names
        self._rest = rest

    def forward(self, *tokens: torch.Tensor) -> torch.Tensor:
        inputs = {**self._rest, **dict(zip(self._names, tokens, strict=True))}
        vectors: torch.Tensor = self.model(inputs)["sentence_embedding"]
        return vectors


def _image_graph(name: str, backbone: Any) -> tuple[torch.nn.Module, Preprocessing]:
    if isinstance(backbone, TimmBackbone) and backbone.declared is not None:
        return _TimmImages(backbone), backbone.declared
    if isinstance(backbone, ClipBackbone):
        processor = backbone.model.processor.image_processor.to_dict()
        preprocessing = _of_processor(processor)
        inputs = {k: v for k, v in backbone.preprocess(Image.new("RGB", (8, 8))).items() if not torch.is_tensor(v)}
        if preprocessing is not None:
            return _ClipImages(backbone, processor, inputs), preprocessing
    raise InvalidInputError(
        f"encoder {name!r} cannot be exported: its preprocessing is not to scale the shorter side and crop a square "
        "out of the centre; use it with torch (runtime='torch')"
    )


def _of_processor(processor: Mapping[str, Any]) -> Preprocessing | None:
    """What an image processor of transformers does, if it is to scale, crop and normalise."""
    size, crop = processor.get("size") or {}, processor.get("crop_size") or {}
    does = all(processor.get(f"do_{step}", True) for step in ("resize", "center_crop", "rescale", "normalize"))
    scale = processor.get("rescale_factor", 1 / 255)
    if (
        not does
        or abs(scale * 255 - 1) > 1e-6
        or not size.get("shortest_edge")
        or crop.get("height") != crop.get("width")
    ):
        return None
    interpolation = Image.Resampling(processor["resample"]).name.lower()
    try:
        return Preprocessing(
            size=crop["height"], scaled=size["shortest_edge"], interpolation=cast("Any", interpolation), half="down"
        )
    except (KeyError, ValueError):
        return None


def _tokenizer(texts: SentenceModel) -> str:
    """A tokenizer with the truncation and padding that the model uses, in the format of the library `tokenizers`."""
    slow = texts.model.tokenizer
    fast = getattr(slow, "backend_tokenizer", None)
    if fast is None:
        raise InvalidInputError(f"{type(slow).__name__} cannot be exported: it is no fast tokenizer; use torch")
    tokenizer = type(fast).from_str(fast.to_str())
    tokenizer.enable_truncation(texts.model.max_seq_length)
    tokenizer.enable_padding(
        pad_id=slow.pad_token_id, pad_token=slow.pad_token, pad_type_id=getattr(slow, "pad_token_type_id", 0)
    )
    return cast("str", tokenizer.to_str())


def _write_graph(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], file: Path) -> None:
    axes = {0: torch.export.Dim("items"), 1: torch.export.Dim("tokens")}
    dynamic = tuple({axis: axes[axis] for axis in range(1 if tensor.ndim > 2 else 2)} for tensor in inputs.values())
    variadic = isinstance(model, _Texts)
    with _silence():
        torch.onnx.export(
            model.eval(),
            tuple(inputs.values()),
            str(file),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=list(inputs),
            dynamic_shapes=(dynamic,) if variadic else dynamic,
        )


@contextmanager
def _silence() -> Iterator[None]:
    """Keep exporters from speaking of their own inner life."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with quiet_loading(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _compare(expected: EncoderSet, exported: EncoderSet) -> None:
    images = [_photograph(seed, size) for seed, size in enumerate(_COMPARED_SIZES)]
    for encoder in expected:
        other = exported[encoder.name]
        pairs = {"images": (encoder.encode_images(images), other.encode_images(images))}
        if "text" in encoder.modalities:
            pairs["texts"] = encoder.encode_texts(_COMPARED_TEXTS), other.encode_texts(_COMPARED_TEXTS)
        for what, (right, got) in pairs.items():
            cosine = float((right * got).sum(axis=1).min())
            if not cosine >= LEAST_COSINE:
                raise EncoderError(
                    f"encoder {encoder.name!r} is not exported: vectors of {what} differ from those of torch (cosine "
                    f"{cosine:.5f}, and {LEAST_COSINE} is asked); use it with torch (runtime='torch')"
                )


def _photograph(seed: int, size: tuple[int, int]) -> Image.Image:
    """Noise with the spectrum of photographs, whose amplitudes fall with the frequency."""
    width, height = size
    noise = np.random.default_rng(seed).standard_normal((3, height, width))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    spectrum = np.fft.fft2(noise) / np.maximum(frequency, 1 / max(size))
    pixels: NDArray[np.float64] = np.fft.ifft2(spectrum).real
    low, high = np.percentile(pixels, [1, 99])
    return Image.fromarray((np.clip((pixels - low) / (high - low), 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))


def _put_in_place(work: Path, folder: Path) -> None:
    """Rename; a folder that is there goes aside first, under a new name, and then away."""
    work.chmod(0o755)
    if not folder.exists():
        work.rename(folder)
        return
    aside = work.with_name(f"{work.name}-before")
    folder.rename(aside)
    work.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _check_not_exported(specs: Mapping[str, EncoderSpec]) -> None:
    exported = [name for name, spec in specs.items() if spec.family == "onnx"]
    if exported:
        raise InvalidInputError(
            f"{', '.join(exported)}: exported encoders already; copy their folder, or export the profile they come from"
        )


def _check_packages() -> None:
    missing = [name for name in EXPORTING if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f'exporting encoders needs {", ".join(missing)}: pip install "zsvec[onnx]"')
