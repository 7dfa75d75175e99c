"""Where the encoders run and in which number format.

``auto`` takes bfloat16 where the hardware multiplies in it: CUDA devices that say so, and CPUs with
``amx_bf16`` or ``avx512_bf16``, of which `torch.cpu.get_capabilities` tells. Weights stay float32 and
autocast (https://docs.pytorch.org/docs/stable/amp.html) rounds what is multiplied. In float32 remain,
whatever the format: texts, classifier heads, and ConSE with the image model it uses, whose softmax
turns a rounding of 0.05 in a logit into 0.1 of a similarity.

Tolerance: bfloat16 moves a similarity by less than `BFLOAT16_TOLERANCE`. The largest change over
360 × 240 pairs of photographs (Caltech-101) was 0.024 with EfficientNet-Lite0, 0.002 on average, and
one nearest category in 360 was another. The number format is therefore no part of a fingerprint:
vectors of both may stand in one store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zsvec.encoders.spec import Device, Dtype
from zsvec.errors import InvalidInputError

BFLOAT16_TOLERANCE = 0.03
"""Above the largest change that bfloat16 makes to a similarity (a cosine, -1 to 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A device and a number format.

    Attributes:
        device: Where the weights are and the passes run.
        bfloat16: Whether matrix products and convolutions are made in bfloat16.
        uploads: The stream of a CUDA device in which inputs are copied to it, beside what it computes.
    """

    device: torch.device
    bfloat16: bool
    uploads: torch.cuda.Stream | None = None

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and the number format; both hold for the calling thread only."""
        with torch.inference_mode():
            if not self.bfloat16:
                yield
                return
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                yield

    def with_uploads(self) -> Runtime:
        """The same, which uploads beside what it computes, where it can."""
        if self.device.type != "cuda":
            return self
        return replace(self, uploads=torch.cuda.Stream())  # type: ignore[no-untyped-call]

    def upload(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs on their way to a CUDA device, from pinned memory; on others, where they are. For any thread."""
        if self.uploads is None:
            return inputs
        with torch.cuda.stream(self.uploads):
            return inputs.pin_memory().to(self.device, non_blocking=True)

    def wait_for_uploads(self) -> None:
        """Let what the calling thread computes from now on wait until all that was uploaded is there.

        Who computes keeps the inputs until it has the result: only then may an upload take their memory.
        """
        if self.uploads is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.uploads)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else f"{torch.get_num_threads()} threads"
        return f"{self.device.type} ({name}), {'bfloat16' if self.bfloat16 else 'float32'}, torch {torch.__version__}"


def choose_runtime(device: Device, dtype: Dtype) -> Runtime:
    """The device and the number format for what the settings say.

    Args:
        device: ``auto`` is the first of CUDA, MPS and the CPU that is there.
        dtype: ``auto`` is bfloat16 where the hardware multiplies in it, else float32.

    Raises:
        InvalidInputError: The device is not there.
    """
    available = [name for name, is_there in _DEVICES.items() if is_there()]
    if device != "auto" and device not in available:
        raise InvalidInputError(
            f"device {device!r} is not available to torch {torch.__version__} here; choose 'auto' or one of: "
            f"{', '.join(available)}"
        )
    chosen = available[0] if device == "auto" else device
    bfloat16 = _MULTIPLIES_BFLOAT16[chosen]() if dtype == "auto" else dtype == "bfloat16"
    return Runtime(device=torch.device(chosen), bfloat16=bfloat16)


def _cpu_multiplies_bfloat16() -> bool:
    instructions = {"amx_bf16", "avx512_bf16"}
    capabilities: Callable[[], Mapping[str, Any]] | None = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return any(found.get(name, False) for name in instructions)
    # a torch that is too old to tell
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and not instructions.isdisjoint(cpuinfo.read_text(encoding="utf-8").split())


_DEVICES: Mapping[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
    "cpu": lambda: True,
}
_MULTIPLIES_BFLOAT16: Mapping[str, Callable[[], bool]] = {
    "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
    "mps": lambda: False,
    "cpu": _cpu_multiplies_bfloat16,
}
