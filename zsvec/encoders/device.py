"""Where encoders run (`choose_device`) and in which number format (`choose_dtype`).

The number format ``auto`` is bfloat16 where the hardware is faster in it: CUDA devices that report so, and CPUs with
``amx_bf16`` or ``avx512_bf16`` on which a product does not take clearly longer in it than in float32, which is measured
in a tenth of a second. Weights stay float32, and autocast (https://docs.pytorch.org/docs/stable/amp.html) rounds the
inputs of matrix products and convolutions. Texts, classifier heads, and ConSE with the image model it uses are always
computed in float32: ConSE's softmax turns a rounding of 0.05 in a logit into 0.1 in a similarity.

bfloat16 changes a similarity by less than `BFLOAT16_TOLERANCE`. Over 360 × 240 pairs of photographs (Caltech-101) and
EfficientNet-Lite0, the largest change was 0.024 and the mean 0.002, and the nearest category changed for 1 image of
360. The number format is therefore no part of a fingerprint: one store may contain vectors of both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zsvec.encoders.spec import Device, Dtype
from zsvec.errors import InvalidInputError
from zsvec.types import counted

BFLOAT16_TOLERANCE = 0.03
"""Above the largest change that bfloat16 makes to a similarity (a cosine, -1 to 1)."""

# Where another process has the cores, products take as long in both formats.
_CLEARLY = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The device and the number format of a model.

    Attributes:
        device: Where the weights are and the passes run.
        dtype: Number format of matrix products and convolutions: `torch.float32` or `torch.bfloat16`.
        uploads: CUDA stream that copies inputs to the device while it computes; ``None`` on other devices.
    """

    device: torch.device
    dtype: torch.dtype
    uploads: torch.cuda.Stream | None = None

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Compute without gradients and in `dtype`, in the calling thread only."""
        with torch.inference_mode():
            if self.dtype == torch.float32:
                yield
                return
            with torch.autocast(self.device.type, dtype=self.dtype):
                yield

    def with_uploads(self) -> Runtime:
        """The same runtime with a stream for uploads, on a CUDA device."""
        if self.device.type != "cuda":
            return self
        return replace(self, uploads=torch.cuda.Stream())  # type: ignore[no-untyped-call]

    def upload(self, inputs: torch.Tensor) -> torch.Tensor:
        """Start to copy inputs to the device, from pinned memory. Without `uploads`, the inputs. Safe in any thread."""
        if self.uploads is None:
            return inputs
        with torch.cuda.stream(self.uploads):
            return inputs.pin_memory().to(self.device, non_blocking=True)

    def wait_for_uploads(self) -> None:
        """Let what the calling thread computes next wait until all earlier uploads have arrived.

        The caller must keep the inputs until it has the result: an upload may reuse their memory once they are freed.
        """
        if self.uploads is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.uploads)

    def __str__(self) -> str:
        name = (
            torch.cuda.get_device_name() if self.device.type == "cuda" else counted(torch.get_num_threads(), "thread")
        )
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.device.type} ({name}), {dtype}, torch {torch.__version__}"


def choose_runtime(device: Device, dtype: Dtype) -> Runtime:
    """The device and the number format for these settings.

    Args:
        device: As `choose_device`.
        dtype: As `choose_dtype`.

    Raises:
        InvalidInputError: The device is not available.
    """
    chosen = choose_device(device)
    return Runtime(device=chosen, dtype=choose_dtype(dtype, chosen))


def choose_device(device: Device) -> torch.device:
    """The device for this setting.

    Args:
        device: ``auto`` is the first of CUDA, MPS and the CPU that is available.

    Raises:
        InvalidInputError: The device is not available.
    """
    available = [name for name, is_available in _DEVICES.items() if is_available()]
    if device != "auto" and device not in available:
        raise InvalidInputError(
            f"device {device!r} is not available to torch {torch.__version__} here; choose 'auto' or one of: "
            f"{', '.join(available)}"
        )
    return torch.device(available[0] if device == "auto" else device)


def choose_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """The number format for this setting, on this device.

    Args:
        dtype: ``auto`` is bfloat16 where the hardware is faster in it, else float32.
        device: Where the encoders run.
    """
    bfloat16 = _FASTER_IN_BFLOAT16[device.type]() if dtype == "auto" else dtype == "bfloat16"
    return torch.bfloat16 if bfloat16 else torch.float32


def _cpu_is_faster_in_bfloat16() -> bool:
    if not _cpu_multiplies_bfloat16():
        return False
    seconds = product_seconds()
    return seconds[torch.bfloat16] < _CLEARLY * seconds[torch.float32]


def product_seconds() -> Mapping[torch.dtype, float]:
    """Seconds of a layer of ViT-B over two images on the CPU in each number format.

    The best of some turns, which both take: another busy process takes the cores from some of them.
    """
    layer, tokens = torch.nn.Linear(768, 3072), torch.ones(394, 768)
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    with torch.inference_mode():
        for _ in range(12):
            for dtype in seconds:
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                    begun = time.perf_counter()
                    layer(tokens)
                    seconds[dtype] = min(seconds[dtype], time.perf_counter() - begun)
    return seconds


def _cpu_multiplies_bfloat16() -> bool:
    instructions = {"amx_bf16", "avx512_bf16"}
    capabilities: Callable[[], Mapping[str, Any]] | None = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return any(found.get(name, False) for name in instructions)
    # older versions of torch do not report capabilities
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and not instructions.isdisjoint(cpuinfo.read_text(encoding="utf-8").split())


_DEVICES: Mapping[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
    "cpu": lambda: True,
}
_FASTER_IN_BFLOAT16: Mapping[str, Callable[[], bool]] = {
    "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
    "mps": lambda: False,
    "cpu": _cpu_is_faster_in_bfloat16,
}
