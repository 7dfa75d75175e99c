"""Runs graphs on onnxruntime, on a CPU or on CUDA. On a CPU, threads sleep instead of spinning while they wait."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zsvec.encoders.base import Vectors, batches
from zsvec.encoders.hardware import thread_count
from zsvec.encoders.spec import Device
from zsvec.errors import EncoderError, WeightsUnavailableError
from zsvec.types import counted

IMAGES_A_PASS = 8  # so that activations stay in the cache
_TEXTS_A_PASS = 64
# Not a folder, so that a graph cannot read weights from other files, whose digests are not checked.
_NOWHERE = os.devnull

_CUDA = "CUDAExecutionProvider"

WEIGHTS = "weights"
"""Name by which a graph refers to the file with its weights."""

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Graph:
    """A graph that onnxruntime runs. Thread-safe.

    Args:
        content: Content of the file.
        file: Path of the file, for messages.
        damaged: Turns a message into the error that is raised if the graph cannot be loaded.
        device: ``cuda`` and ``auto`` use CUDA where onnxruntime supports it, and the CPU for operators without CUDA.
        weights: Content of the file that the graph refers to as `WEIGHTS`, if it does not hold its weights itself.

    Attributes:
        device: Device that onnxruntime has chosen: ``cpu`` also if CUDA could not be initialised.
        inputs: Type and shape of each input, by name.
        outputs: Shape of each output, by name.

    Raises:
        WeightsUnavailableError: onnxruntime cannot be imported here.
    """

    def __init__(
        self,
        content: bytes,
        file: Path,
        damaged: Callable[[str], Exception],
        device: Device = "cpu",
        weights: bytes | None = None,
    ) -> None:
        runtime = _imported()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = thread_count()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # prints no warnings
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
        if weights is not None:  # copied when the session is created
            options.add_external_initializers_from_files_in_memory([WEIGHTS], [weights], [len(weights)])
        try:
            self._session = runtime.InferenceSession(content, options, providers=_providers(device))
        except Exception as exc:  # onnxruntime raises errors of many types
            raise damaged(f"{file.name} cannot be loaded ({exc})") from exc
        self.file = file
        self.device: Device = "cuda" if _CUDA in self._session.get_providers() else "cpu"
        self.inputs = {one.name: (one.type, list(one.shape)) for one in self._session.get_inputs()}
        self.outputs = {one.name: list(one.shape) for one in self._session.get_outputs()}

    def __call__(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> list[Vectors]:
        """Runs the graph and returns the named outputs, or all outputs. Ignores `inputs` that the graph does not have.

        Raises:
            EncoderError: onnxruntime cannot run the graph with these inputs.
        """
        try:
            found: list[Vectors] = self._session.run(outputs, {name: inputs[name] for name in self.inputs})
        except Exception as exc:  # as above
            raise EncoderError(f"the graph {self.file} cannot be computed: {exc}") from exc
        return found


def embed_tokens(tokenizer: Any, texts: Sequence[str], run: Callable[[dict[str, Any]], Vectors]) -> Vectors:
    """Returns the vectors of texts in order, (n, dim).

    Args:
        tokenizer: A tokenizer of the library `tokenizers`, with truncation and padding.
        texts: The texts.
        run: Computes vectors from a dictionary of `TEXT_INPUTS`, each int64 (n, tokens).
    """
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))  # similar lengths need little padding
    parts = []
    for positions in batches(order, _TEXTS_A_PASS):
        found = tokenizer.encode_batch([texts[position] for position in positions])
        tokens = [(one.ids, one.attention_mask, one.type_ids) for one in found]
        columns = zip(TEXT_INPUTS, zip(*tokens, strict=True), strict=True)
        parts.append(run({name: np.array(rows, np.int64) for name, rows in columns}))
    return np.concatenate(parts)[np.argsort(order)]


def describe(device: Device) -> str:
    """Returns a description of the device, the number format and the version of onnxruntime.

    Raises:
        WeightsUnavailableError: onnxruntime cannot be imported here.
    """
    threads = f"cpu ({counted(thread_count(), 'thread')})"
    where = f"cuda, and {threads} for the rest" if len(_providers(device)) > 1 else threads
    return f"{where}, float32, onnxruntime {_imported().__version__}"


def _imported() -> Any:
    try:
        import onnxruntime  # slow to import
    except ImportError as exc:  # such as a missing library of the system
        raise WeightsUnavailableError(f"onnxruntime must be importable, got: {exc}. Install it again") from exc
    return onnxruntime


def _providers(device: Device) -> list[str]:
    available = _imported().get_available_providers()
    wanted = [_CUDA] if device in {"auto", "cuda"} else []
    return [name for name in wanted if name in available] + ["CPUExecutionProvider"]
