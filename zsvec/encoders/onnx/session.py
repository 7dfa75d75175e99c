"""Graphs as onnxruntime runs them: on the CPU with threads that do not spin, or on CUDA where it is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from zsvec.encoders.base import Vectors
from zsvec.encoders.host import thread_count
from zsvec.encoders.spec import Device
from zsvec.errors import EncoderError, MissingExtraError
from zsvec.types import counted

# This is no folder: a graph is whole, and weights outside of it are of no file that was checked.
_NOWHERE = os.devnull


class Graph:
    """A graph. Safe in any thread.

    Args:
        content: Of its file.
        file: Where that is, for messages.
        damaged: Makes the error for what is wrong with it.
        device: ``cuda`` and ``auto`` take CUDA where onnxruntime has it, and the CPU for what that cannot compute.

    Attributes:
        file: Its file.
        inputs: Type and shape, by name.
        outputs: Shape, by name.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, content: bytes, file: Path, damaged: Callable[[str], Exception], device: Device = "cpu") -> None:
        runtime = imported("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = thread_count()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # its warnings are not ours to print
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
        try:
            self._session = runtime.InferenceSession(content, options, providers=providers(device))
        except Exception as exc:  # whatever is wrong with a graph has errors of its own
            raise damaged(f"{file.name} cannot be loaded ({exc})") from exc
        self.file = file
        self.inputs = {one.name: (one.type, list(one.shape)) for one in self._session.get_inputs()}
        self.outputs = {one.name: list(one.shape) for one in self._session.get_outputs()}

    def __call__(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> list[Vectors]:
        """The outputs, float32: all of them, or those that are named.

        Raises:
            EncoderError: The graph refuses the inputs.
        """
        try:
            found: list[Vectors] = self._session.run(outputs, dict(inputs))
        except Exception as exc:  # likewise
            raise EncoderError(f"the graph {self.file} cannot be computed: {exc}") from exc
        return found


def providers(device: Device) -> list[str]:
    """What computes graphs, the preferred one first.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    available = imported("onnxruntime").get_available_providers()
    wanted = ["CUDAExecutionProvider"] if device in {"auto", "cuda"} else []
    return [name for name in wanted if name in available] + ["CPUExecutionProvider"]


def describe(device: Device) -> str:
    """Device, number format and version, in words.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    threads = f"cpu ({counted(thread_count(), 'thread')})"
    where = f"cuda, and {threads} for the rest" if len(providers(device)) > 1 else threads
    return f"{where}, float32, onnxruntime {imported('onnxruntime').__version__}"


def imported(package: str) -> Any:
    """onnxruntime, or tokenizers.

    Raises:
        MissingExtraError: It is not installed, or its installation is damaged.
    """
    try:
        return import_module(package)
    except ImportError as exc:
        raise MissingExtraError(
            f'exported encoders need {package}: pip install "zsvec[onnx]", or repair what cannot be imported ({exc})'
        ) from exc
