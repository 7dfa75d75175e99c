"""Exports encoders from torch to a folder that onnxruntime runs without torch; see `zsvec.encoders.onnx.exported`.

After an export, some images and texts are embedded on torch and on onnxruntime. For each of them, the cosine similarity
of the two vectors must be at least `LEAST_COSINE`. The fingerprint stays the same, so one store may mix vectors of the
two runtimes. Image models in int8 are less exact and change the fingerprint; see `zsvec.encoders.onnx.int8`.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image

from zsvec.encoders import hardware
from zsvec.encoders.base import ConseEncoder, FeatureEncoder
from zsvec.encoders.encoder_set import EncoderSet
from zsvec.encoders.hub import quiet_loading
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
from zsvec.encoders.preprocessing import preprocess
from zsvec.encoders.runtimes import (
    EXPORT_PACKAGES,
    Record,
    failure_of,
    file_state,
    place,
    read_record,
    record_of,
    tidy,
)
from zsvec.encoders.spec import EncoderSpec, Preprocessing
from zsvec.encoders.torch.clip import ClipBackbone
from zsvec.encoders.torch.sentence import SentenceModel
from zsvec.encoders.torch.vision import TimmBackbone
from zsvec.encoders.weights import at_home, sha256_of_file
from zsvec.errors import EncoderError, InvalidInputError, MissingExtraError, WeightsUnavailableError
from zsvec.inputs.files import is_ours, replacing, write_whole
from zsvec.types import Fingerprint

LEAST_COSINE = 0.9999
_LOCK_TIMEOUT_S = 600
_TURNS, _IMAGES_A_TURN = 4, 8
_COMPARED_SIZES = [(320, 240), (240, 320), (224, 224), (500, 375), (64, 48), (1000, 100), (333, 250), (397, 251)]
_COMPARED_TEXTS = ["a photo of a cat", "x", "  Two   DOGS, sleeping in the sun!\n", "小熊猫 é ß", "a long text " * 100]


def export_encoders(
    specs: Mapping[str, EncoderSpec],
    folder: Path,
    *,
    photographs: Sequence[Image.Image] | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> dict[str, float]:
    """Exports encoders to a folder. If the export fails, the folder stays unchanged.

    Args:
        specs: The encoders, by name.
        folder: A new or empty folder, or a folder that contains only exported encoders, which are replaced.
        photographs: Photographs that calibrate image models in int8. An int8 model replaces a slower float32 model, and
            changes the fingerprint of the encoder. Without photographs, all models are in float32.
        on_step: Called with a description of each step before it begins.

    Returns:
        Mean cosine similarity of int8 and torch vectors, by name of each encoder in int8.

    Raises:
        InvalidInputError: The folder contains other files, an encoder cannot be exported or is exported already, or
            there are too few photographs.
        MissingExtraError: A package for exports is not installed.
        EncoderError: Vectors of an exported encoder and of torch have a cosine similarity below the minimum.
        WeightsUnavailableError: Weights are neither on disk nor available from the hub.
    """
    _check_not_exported(specs)
    _check_packages()
    if photographs is not None:
        from zsvec.encoders.onnx.int8 import FEWEST_PHOTOGRAPHS  # imports onnx

        if len(photographs) < FEWEST_PHOTOGRAPHS:
            raise InvalidInputError(
                f"int8 takes at least {FEWEST_PHOTOGRAPHS} photographs that can be read, and these are "
                f"{len(photographs)}: give more, or export in float32, without any"
            )
    folder = at_home(folder).resolve()  # replaces the target of a link, not the link
    _check_replaceable(folder)
    with _exported_beside(folder, specs, photographs or (), on_step) as (work, cosines):
        _check_replaceable(folder)  # checked again, because the export takes a minute
        _put_in_place(work, folder)
    return cosines


def export_to_cache(specs: Mapping[str, EncoderSpec], *, on_step: Callable[[str], None] = lambda step: None) -> Record:
    """Exports encoders to the cache of this user, and measures their rates on torch and onnxruntime.

    If another process is exporting, waits for its export and uses it. If the encoders cannot be exported, remembers the
    reason (`zsvec.encoders.runtimes.lacks_export`).

    Args:
        specs: The encoders, by name.
        on_step: Called with a description of each step before it begins.

    Raises:
        InvalidInputError: `check_exportable` or `export_encoders` raises this error, or another process is exporting
            for more than 10 minutes.
        MissingExtraError: A package for exports is not installed.
        EncoderError: As `export_encoders`, or a model cannot be turned into a graph.
        WeightsUnavailableError: Weights are neither on disk nor available from the hub.
        OSError: The cache cannot be written.
    """
    check_exportable(specs)
    folder = place(specs)
    was_missing = read_record(folder) is None
    try:
        lock = FileLock(folder.parent / ".lock", timeout=_LOCK_TIMEOUT_S, mode=0o600).acquire()
    except Timeout as exc:
        raise InvalidInputError(
            f"another process has been exporting to {folder.parent} for {_LOCK_TIMEOUT_S} s: wait for it, or end it"
        ) from exc
    with lock:
        record = read_record(folder) if was_missing else None
        if record is None:
            record = _export_and_measure(specs, folder, on_step)
    return record


def check_exportable(specs: Mapping[str, EncoderSpec]) -> None:
    """Creates the cache, and raises an error if encoders certainly cannot be exported to it. Loads no weights.

    Raises:
        InvalidInputError: Other users may write to the cache, an encoder is exported already, or weights from the hub
            may change because no revision is pinned.
        MissingExtraError: A package for exports is not installed.
        OSError: The cache cannot be created.
    """
    _check_not_exported(specs)
    folder = place(specs)
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not is_ours(folder.parent):
        raise InvalidInputError(
            f"others may write to {folder.parent}, so exports there are not used: restrict the folder (chmod go-w), or "
            "export to a folder"
        )
    for source in _sources(specs):
        if getattr(source, "revision", "") is None:
            raise InvalidInputError(
                f"{source} cannot be exported to the cache: pin the revision, or export to a folder"
            )
    _check_packages()


def _sources(specs: Mapping[str, EncoderSpec]) -> list[Any]:
    return [source for spec in specs.values() for source in weight_sources(spec)]


def _export_and_measure(specs: Mapping[str, EncoderSpec], folder: Path, on_step: Callable[[str], None]) -> Record:
    record_of(folder).unlink(missing_ok=True)
    try:
        with _exported_beside(folder, specs, (), on_step) as (work, _):
            _put_in_place(work, folder)
    except (EncoderError, InvalidInputError) as exc:
        if not isinstance(exc, WeightsUnavailableError):
            with suppress(OSError):
                hardware.write_cached(failure_of(folder), f"{exc}\n".encode())
        raise
    failure_of(folder).unlink(missing_ok=True)
    folder.chmod(0o700)
    files = sorted({str(file.absolute()) for source in _sources(specs) for file in source.load().files()})
    weights = {file: file_state(file) for file in files}
    on_step("measuring")
    record = Record(weights=weights, rates=_rates(specs, ExportedFolder(folder).specs()))
    hardware.write_cached(record_of(folder), record.model_dump_json().encode())
    tidy()
    return record


def _check_not_exported(specs: Mapping[str, EncoderSpec]) -> None:
    exported = [name for name, spec in specs.items() if spec.family == "onnx"]
    if exported:
        raise InvalidInputError(
            f"{', '.join(exported)}: on onnxruntime already. Copy the folder of an export, or export another profile"
        )


def _check_packages() -> None:
    missing = [name for name in EXPORT_PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f'exporting encoders needs {", ".join(missing)}: pip install "zsvec[export]"')


def _check_replaceable(folder: Path) -> None:
    others = other_files(folder) if folder.is_dir() else [folder.name] if folder.exists() else []
    if others:
        named = ", ".join(others[:5]) + ", …" * (len(others) > 5)
        raise InvalidInputError(
            f"{folder} holds something else than exported encoders ({named}), which would be lost: give an empty or a "
            "new folder"
        )


@contextmanager
def _exported_beside(
    folder: Path,
    specs: Mapping[str, EncoderSpec],
    photographs: Sequence[Image.Image],
    on_step: Callable[[str], None],
) -> Iterator[tuple[Path, dict[str, float]]]:
    """Exports encoders to a temporary folder next to `folder`.

    Yields the temporary folder and the mean cosine similarities of encoders in int8. After the block, deletes the
    temporary folder, unless the block has renamed it.
    """
    on_step("loading the models")
    encoders = load_encoders(specs, device="cpu", dtype="float32", runtime="torch")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        on_step("writing the graphs")
        _Exporter(work, photographs).write(encoders, specs)
        on_step("comparing with torch")
        exported = load_encoders(ExportedFolder(work).specs(), device="cpu")
        cosines = _compare(encoders, exported, photographs)
        yield work, cosines
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put_in_place(work: Path, folder: Path) -> None:
    """Renames `work` to `folder` and deletes an older `folder`.

    The older folder is renamed first, because a rename cannot replace a folder that contains files.
    """
    work.chmod(0o755)
    if not folder.exists():
        work.rename(folder)
        return
    aside = work.with_name(f"{work.name}-before")
    folder.rename(aside)
    work.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


# ---- measured and compared


def _rates(specs: Mapping[str, EncoderSpec], exported: Mapping[str, EncoderSpec]) -> dict[str, float]:
    """Returns images per second, by runtime and number format. Only one set of encoders is in memory at a time."""
    rates = {
        f"torch {dtype}": _rate(load_encoders(specs, device="cpu", dtype=dtype, runtime="torch"))
        for dtype in ("float32", "bfloat16")
    }
    return rates | {"onnx": _rate(load_encoders(exported, device="cpu"))}


def _rate(encoders: EncoderSet) -> float:
    prepared = [encoders.preprocess(_photograph(0, (320, 240)))] * _IMAGES_A_TURN
    seconds = []
    for _ in range(_TURNS + 1):  # the first pass warms up
        begun = time.perf_counter()
        encoders.encode_images(prepared)
        seconds.append(time.perf_counter() - begun)
    return _IMAGES_A_TURN / min(seconds[1:])


def _compare(expected: EncoderSet, exported: EncoderSet, photographs: Sequence[Image.Image]) -> dict[str, float]:
    """Returns the mean cosine similarity of each encoder in int8. Raises EncoderError below the minimum."""
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
            _check_cosine(encoder.name, "images", cosines[encoder.name], LEAST_IN_INT8)
        else:
            _check_cosine(encoder.name, "images", float(found.min()), LEAST_COSINE)
        if "text" in encoder.modalities:
            texts = (encoder.encode_texts(_COMPARED_TEXTS) * other.encode_texts(_COMPARED_TEXTS)).sum(axis=1)
            _check_cosine(encoder.name, "texts", float(texts.min()), LEAST_COSINE)
    return cosines


def _check_cosine(name: str, modality: str, cosine: float, least: float) -> None:
    if not cosine >= least:
        raise EncoderError(
            f"encoder {name!r} is not exported: vectors of {modality} differ from torch (cosine "
            f"{cosine:.5f}, and {least} is asked); use the encoder with torch (runtime='torch')"
        )


def _photograph(seed: int, size: tuple[int, int]) -> Image.Image:
    """Returns noise with a spectrum like that of photographs: the amplitude is inversely proportional to frequency."""
    width, height = size
    noise = np.random.default_rng(seed).standard_normal((3, height, width))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    spectrum = np.fft.fft2(noise) / np.maximum(frequency, 1 / max(size))
    pixels: NDArray[np.float64] = np.fft.ifft2(spectrum).real
    low, high = np.percentile(pixels, [1, 99])
    return Image.fromarray((np.clip((pixels - low) / (high - low), 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))


# ---- files


class _Exporter:
    """Writes models to a folder. A model that several encoders share is written once."""

    def __init__(self, folder: Path, photographs: Sequence[Image.Image]) -> None:
        self._folder = folder
        self._photographs = photographs
        self._written: dict[int, Any] = {}
        self._rounded: dict[str, str] = {}
        self._numbers = count()

    def write(self, encoders: EncoderSet, specs: Mapping[str, EncoderSpec]) -> None:
        exported = {
            encoder.name: self._encoder(cast("FeatureEncoder", encoder), specs[encoder.name]) for encoder in encoders
        }
        files = {file.name: sha256_of_file(file) for file in sorted(self._folder.iterdir())}
        manifest = Manifest(format=FORMAT, encoders=exported, files=files)
        write_whole(self._folder / MANIFEST, manifest.model_dump_json(indent=1).encode())

    def _encoder(self, encoder: FeatureEncoder, spec: EncoderSpec) -> ExportedEncoder:
        images, labels = self._images(encoder.name, encoder.backbone), None
        if isinstance(encoder, ConseEncoder):
            labels = f"labels-{next(self._numbers)}.npy"
            with replacing(self._folder / labels) as file:
                np.save(file, encoder.labels, allow_pickle=False)
        return ExportedEncoder(
            fingerprint=self._fingerprint(encoder.fingerprint, images.graph),
            modalities=encoder.modalities,
            images=images,
            texts=self._texts(cast("SentenceModel", encoder.texts)) if encoder.texts else None,
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
            if self._photographs:
                self._round(graph, preprocessing)
            self._written[id(backbone)] = ExportedImages(graph=graph, preprocessing=preprocessing)
        return cast("ExportedImages", self._written[id(backbone)])

    def _round(self, graph: str, preprocessing: Preprocessing) -> None:
        from zsvec.encoders.onnx.int8 import quantize  # imports onnx

        form = quantize(self._folder / graph, [preprocess(image, preprocessing) for image in self._photographs])
        if form:
            self._rounded[graph] = f"{form} int8 {sha256_of_file(self._folder / graph)}"

    def _fingerprint(self, fingerprint: Fingerprint, graph: str) -> Fingerprint:
        if graph not in self._rounded:
            return fingerprint
        return replace(fingerprint, preprocessing=f"{fingerprint.preprocessing}; {self._rounded[graph]}")

    def _texts(self, texts: SentenceModel) -> ExportedTexts:
        if id(texts) not in self._written:
            number = next(self._numbers)
            graph, tokenizer = f"texts-{number}.onnx", f"tokenizer-{number}.json"
            inputs = dict(texts.model.preprocess(["a cat", "two dogs that sleep in the sun"]))
            tokens = {name: inputs.pop(name) for name in list(inputs) if torch.is_tensor(inputs[name])}
            _write_graph(_Texts(texts.model, list(tokens), inputs), tokens, self._folder / graph)
            write_whole(self._folder / tokenizer, _tokenizer_of(texts).encode())
            self._written[id(texts)] = ExportedTexts(graph=graph, tokenizer=tokenizer)
        return cast("ExportedTexts", self._written[id(texts)])


# ---- graphs


class _Images(torch.nn.Module):
    """Normalises uint8 pixels (n, height, width, channels) and returns the features that `run` computes."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: torch.nn.Module, run: Callable[[Any, torch.Tensor], Any], mean: Any, std: Any) -> None:
        super().__init__()
        self.model = model
        self._run = run
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels: torch.Tensor) -> Any:
        return self._run(self.model, (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std)


class _Texts(torch.nn.Module):
    """Computes vectors of texts. The positional arguments of `forward` become the inputs of the graph."""

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
    if not isinstance(backbone, TimmBackbone | ClipBackbone) or backbone.declared is None:
        raise InvalidInputError(
            f"encoder {name!r} cannot be exported: its preprocessing is not to scale the shorter side and crop a "
            "square out of the centre; use the encoder with torch (runtime='torch')"
        )
    if isinstance(backbone, TimmBackbone):
        return _Images(backbone.model, _timm_features, backbone.mean, backbone.std), backbone.declared
    inputs = backbone.preprocess(Image.new("RGB", (8, 8)))
    rest = {name: value for name, value in inputs.items() if not torch.is_tensor(value)}
    mean, std = (
        torch.tensor(values).mul(255).view(1, -1, 1, 1) for values in (backbone.declared.mean, backbone.declared.std)
    )
    run = partial(_clip_features, rest)
    return _Images(backbone.model, run, mean, std), backbone.declared


def _timm_features(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Returns pooled features and, with a classifier, logits."""
    features = model.forward_features(pixels)
    pooled = model.forward_head(features, pre_logits=True)
    return (pooled, model.forward_head(features)) if model.num_classes else (pooled,)


def _clip_features(rest: Mapping[str, Any], model: Any, pixels: torch.Tensor) -> Any:
    return model({**rest, "pixel_values": pixels})["sentence_embedding"]


def _tokenizer_of(texts: SentenceModel) -> str:
    """Returns the tokenizer, with the model's truncation and padding, in the format of the library `tokenizers`."""
    slow = texts.model.tokenizer
    fast = getattr(slow, "backend_tokenizer", None)
    if fast is None:
        raise InvalidInputError(f"{type(slow).__name__} cannot be exported, only fast tokenizers can; use torch")
    tokenizer = type(fast).from_str(fast.to_str())
    tokenizer.enable_truncation(texts.model.max_seq_length)
    tokenizer.enable_padding(
        pad_id=slow.pad_token_id, pad_token=slow.pad_token, pad_type_id=getattr(slow, "pad_token_type_id", 0)
    )
    return cast("str", tokenizer.to_str())


def _write_graph(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], file: Path) -> None:
    """Writes a model as a graph for any number of items and tokens. `inputs` are examples of two items each."""
    axes = {0: torch.export.Dim("items"), 1: torch.export.Dim("tokens")}
    dynamic = tuple({axis: axes[axis] for axis in range(1 if tensor.ndim > 2 else 2)} for tensor in inputs.values())
    variadic = isinstance(model, _Texts)
    with silent_export():
        try:
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
        except OSError:  # such as a full disk
            raise
        except Exception as exc:  # the exporter raises errors of many types
            raise EncoderError(
                f"torch cannot export {file.stem} ({type(exc).__name__}: {str(exc).partition(chr(10))[0]}); use the "
                "encoders with torch (runtime='torch')"
            ) from exc


@contextmanager
def silent_export() -> Iterator[None]:
    """Suppresses the logs and warnings of the exporters."""
    with quiet_loading("torch", "onnxscript", "onnx_ir"), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
