"""Encoders on torch → a folder that onnxruntime runs without torch; see `zsvec.encoders.onnx.exported`.

An export is refused where its vectors differ from those of torch: their cosine must be at least `LEAST_COSINE` for each
image and text that is compared. The fingerprint stays the same, so a store may contain vectors of both.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from zsvec.encoders import host
from zsvec.encoders.base import BatchEncoder
from zsvec.encoders.cache import Record, WeightFile, place, record_of, tidy
from zsvec.encoders.encoder_set import EncoderSet
from zsvec.encoders.heads import ClipEncoder, ConseEncoder
from zsvec.encoders.loading import load_encoders, weight_sources
from zsvec.encoders.onnx.exported import (
    FORMAT,
    MANIFEST,
    ExportedEncoder,
    ExportedFolder,
    ExportedImages,
    ExportedTexts,
    Manifest,
    other_files,
)
from zsvec.encoders.preprocessing import Preprocessing
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch.graphs import Texts, image_graph, tokenizer_of, write_graph
from zsvec.encoders.torch.sentence import SentenceModel
from zsvec.encoders.weights import at_home
from zsvec.errors import EncoderError, InvalidInputError, MissingExtraError
from zsvec.inputs.files import is_ours, read_regular, replacing, write_whole
from zsvec.types import Fingerprint

LEAST_COSINE = 0.9999
_MODULES = ("onnxruntime", "tokenizers", "onnxscript", "onnx")  # that an export needs, beside torch
_TURNS, _IMAGES_A_TURN = 4, 8
_COMPARED_SIZES = [(320, 240), (240, 320), (224, 224), (500, 375), (64, 48), (1000, 100), (333, 250), (397, 251)]
_COMPARED_TEXTS = ["a photo of a cat", "x", "  Two   DOGS, sleeping in the sun!\n", "小熊猫 é ß", "a long text " * 100]


def export_encoders(
    specs: Mapping[str, EncoderSpec], folder: Path, *, photographs: Sequence[Image.Image] | None = None
) -> dict[str, float]:
    """Export encoders to a folder.

    Args:
        specs: The encoders, by name.
        folder: Made, or replaced if it holds exported encoders and nothing else; whole or not at all.
        photographs: Image models are rounded to int8 by them, where that is faster; the encoders get fingerprints of
            their own then. Without, all is in float32.

    Returns:
        Of each encoder that was rounded, the mean cosine of its vectors with those of torch.

    Raises:
        InvalidInputError: The folder holds something else, or an encoder is of a kind that cannot be exported, as those
            that were exported already; or there are too few photographs.
        MissingExtraError: What exports is not installed.
        EncoderError: The exported encoder gives other vectors.
        WeightsUnavailableError: Weights cannot be loaded here.
    """
    _check_not_exported(specs)
    _check_packages()
    if photographs is not None:
        from zsvec.encoders.onnx.int8 import FEWEST_PHOTOGRAPHS  # takes onnx, which is checked before

        if len(photographs) < FEWEST_PHOTOGRAPHS:
            raise InvalidInputError(
                f"int8 takes at least {FEWEST_PHOTOGRAPHS} photographs that can be read, and these are "
                f"{len(photographs)}: give more, or export in float32, without any"
            )
    folder = at_home(folder).resolve()  # of a link, what it leads to is replaced
    _check_replaceable(folder)
    with _exported_beside(folder, specs, photographs or ()) as (work, cosines):
        _check_replaceable(folder)  # it took a minute
        _put_in_place(work, folder)
    return cosines


def export_to_cache(specs: Mapping[str, EncoderSpec]) -> Record:
    """Export encoders for this user and this machine, and measure whether that is faster.

    Raises:
        InvalidInputError: They are exported ones, or weights of the hub without a pinned revision, of which another
            may be the newest tomorrow; or others may write to the cache; or as `export_encoders`.
        MissingExtraError, EncoderError, WeightsUnavailableError: As `export_encoders`.
    """
    _check_not_exported(specs)
    folder = place(specs)
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not is_ours(folder.parent):
        raise InvalidInputError(
            f"others may write to {folder.parent}, so exports there are not used: make it yours alone (chmod go-w), or "
            "export to a folder"
        )
    sources = [source for spec in specs.values() for source in weight_sources(spec)]
    for source in sources:
        if getattr(source, "revision", "") is None:
            raise InvalidInputError(
                f"{source} cannot be exported to the cache: pin its revision, or export it to a folder"
            )
    _check_packages()
    record_of(folder).unlink(missing_ok=True)
    with _exported_beside(folder, specs) as (work, _):
        _put_in_place(work, folder)  # whatever is there is ours, and may be damaged
    folder.chmod(0o700)
    files = sorted({str(file.absolute()) for source in sources for file in source.load().files()})
    record = Record(weights=tuple(map(WeightFile.now, files)), rates=_rates(specs, ExportedFolder(folder).specs()))
    host.keep(record_of(folder), record.model_dump_json().encode())
    tidy()
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
def _exported_beside(
    folder: Path, specs: Mapping[str, EncoderSpec], photographs: Sequence[Image.Image] = ()
) -> Iterator[tuple[Path, dict[str, float]]]:
    """A new folder beside another, with the export of encoders, compared with them; removed in the end if still there.

    Yields:
        The folder, and the cosines of what is in int8.

    Raises:
        InvalidInputError, EncoderError, WeightsUnavailableError: As `export_encoders`.
    """
    encoders = load_encoders(specs, device="cpu", dtype="float32", runtime="torch")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _Exporter(work, photographs).write(encoders, specs)
        exported = load_encoders(ExportedFolder(work).specs(), device="cpu")
        cosines = _compare(encoders, exported, photographs)
        yield work, cosines
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

    def __init__(self, folder: Path, photographs: Sequence[Image.Image]) -> None:
        self._folder = folder
        self._photographs = photographs
        self._written: dict[int, Any] = {}
        self._rounded: dict[str, str] = {}
        self._numbers = count()

    def write(self, encoders: EncoderSet, specs: Mapping[str, EncoderSpec]) -> None:
        exported = {
            encoder.name: self._encoder(cast("BatchEncoder", encoder), specs[encoder.name]) for encoder in encoders
        }
        files = {file.name: _digest(file) for file in sorted(self._folder.iterdir())}
        manifest = Manifest(format=FORMAT, encoders=exported, files=files)
        write_whole(self._folder / MANIFEST, manifest.model_dump_json(indent=1).encode())

    def _encoder(self, encoder: BatchEncoder, spec: EncoderSpec) -> ExportedEncoder:
        images, labels = self._images(encoder.name, encoder.backbone), None
        if isinstance(encoder, ConseEncoder):
            labels = f"labels-{next(self._numbers)}.npy"
            with replacing(self._folder / labels) as file:
                np.save(file, encoder.labels, allow_pickle=False)
        texts = encoder.texts if isinstance(encoder, ClipEncoder | ConseEncoder) else None
        return ExportedEncoder(
            family=cast("Any", spec.family),
            fingerprint=self._fingerprint(encoder.fingerprint, images.graph),
            modalities=encoder.modalities,
            images=images,
            texts=self._texts(cast("SentenceModel", texts)) if texts else None,
            labels=labels,
            prompt=spec.prompt,
            temperature=spec.temperature,
        )

    def _images(self, name: str, backbone: Any) -> ExportedImages:
        if id(backbone) not in self._written:
            model, preprocessing = image_graph(name, backbone)
            graph = f"images-{next(self._numbers)}.onnx"
            example = torch.zeros((2, preprocessing.size, preprocessing.size, 3), dtype=torch.uint8)
            write_graph(model, {"pixels": example}, self._folder / graph)
            if self._photographs:
                self._round(graph, preprocessing)
            self._written[id(backbone)] = ExportedImages(graph=graph, preprocessing=preprocessing)
        return cast("ExportedImages", self._written[id(backbone)])

    def _round(self, graph: str, preprocessing: Preprocessing) -> None:
        from zsvec.encoders.onnx.int8 import quantize  # takes onnx, which is checked before

        form = quantize(self._folder / graph, [preprocessing(image) for image in self._photographs])
        if form:
            self._rounded[graph] = f"{form} int8 {_digest(self._folder / graph)}"

    def _fingerprint(self, fingerprint: Fingerprint, graph: str) -> Fingerprint:
        """Vectors of a rounded graph can be compared with those of the very same graph."""
        if graph not in self._rounded:
            return fingerprint
        return replace(fingerprint, preprocessing=f"{fingerprint.preprocessing}; {self._rounded[graph]}")

    def _texts(self, texts: SentenceModel) -> ExportedTexts:
        if id(texts) not in self._written:
            number = next(self._numbers)
            graph, tokenizer = f"texts-{number}.onnx", f"tokenizer-{number}.json"
            inputs = dict(texts.model.preprocess(["a cat", "two dogs that sleep in the sun"]))
            tokens = {name: inputs.pop(name) for name in list(inputs) if torch.is_tensor(inputs[name])}
            write_graph(Texts(texts.model, list(tokens), inputs), tokens, self._folder / graph)
            write_whole(self._folder / tokenizer, tokenizer_of(texts).encode())
            self._written[id(texts)] = ExportedTexts(graph=graph, tokenizer=tokenizer)
        return cast("ExportedTexts", self._written[id(texts)])


def _digest(file: Path) -> str:
    return hashlib.sha256(read_regular(file)).hexdigest()


def _compare(expected: EncoderSet, exported: EncoderSet, photographs: Sequence[Image.Image]) -> dict[str, float]:
    """The mean cosines of the encoders in int8.

    Raises:
        EncoderError: An encoder's vectors differ from those expected.
    """
    images = [_photograph(seed, size) for seed, size in enumerate(_COMPARED_SIZES)]
    cosines = {}
    for encoder in expected:
        other = exported[encoder.name]
        rounded = other.fingerprint != encoder.fingerprint
        compared = photographs[1::2] if rounded else images
        found = (encoder.encode_images(compared) * other.encode_images(compared)).sum(axis=1)
        if rounded:
            from zsvec.encoders.onnx.int8 import LEAST_COSINE as LEAST_IN_INT8

            cosines[encoder.name] = float(found.mean())
            _check_alike(encoder.name, "images", cosines[encoder.name], LEAST_IN_INT8)
        else:
            _check_alike(encoder.name, "images", float(found.min()), LEAST_COSINE)
        if "text" in encoder.modalities:
            texts = (encoder.encode_texts(_COMPARED_TEXTS) * other.encode_texts(_COMPARED_TEXTS)).sum(axis=1)
            _check_alike(encoder.name, "texts", float(texts.min()), LEAST_COSINE)
    return cosines


def _check_alike(name: str, what: str, cosine: float, least: float) -> None:
    if not cosine >= least:
        raise EncoderError(
            f"encoder {name!r} is not exported: vectors of {what} differ from those of torch (cosine {cosine:.5f}, and "
            f"{least} is asked); use it with torch (runtime='torch')"
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
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f'exporting encoders needs {", ".join(missing)}: pip install "zsvec[onnx]"')
