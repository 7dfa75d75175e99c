"""Where encoders run (`choose_device`) and in which number format (`choose_dtype`).

The number format ``auto`` is bfloat16 where that is faster: on CUDA devices that report so, and on a CPU for each model
of which it was measured (`zsvec.encoders.torch.image_model`). Autocast
(https://docs.pytorch.org/docs/stable/amp.html) rounds the inputs of matrix products and convolutions. Texts, classifier
heads, and ConSE with the image model it uses are always computed in float32: ConSE's softmax turns a rounding of 0.05
in a logit into 0.1 in a similarity.

bfloat16 changes a similarity by less than `BFLOAT16_TOLERANCE`. Over 360 × 240 pairs of photographs (Caltech-101) and
EfficientNet-Lite0, the largest change was 0.024 and the mean 0.002, and the nearest category changed for 1 image of
360. The number format is therefore no part of a fingerprint: one store may contain vectors of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from zsvec.encoders.spec import Device, Dtype
from zsvec.errors import InvalidInputError
from zsvec.types import counted

BFLOAT16_TOLERANCE = 0.03
"""Above the largest change that bfloat16 makes to a similarity (a cosine, -1 to 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The device and the number format of a model.

    Attributes:
        device: Where the weights are and the passes run.
        dtype: Number format of matrix products and convolutions: `torch.float32` or `torch.bfloat16`; ``None``: the one
            in which a model turns out faster.
        uploads: CUDA stream that copies inputs to the device while it computes; ``None`` on other devices.
    """

    device: torch.device
    dtype: torch.dtype | None
    uploads: torch.cuda.Stream | None = None

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Compute without gradients and in `dtype`, in the calling thread only."""
        with torch.inference_mode():
            if self.dtype != torch.bfloat16:
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
        dtype = str(self.dtype).removeprefix("torch.") if self.dtype else "float32 or bfloat16"
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


def choose_dtype(dtype: Dtype, device: torch.device) -> torch.dtype | None:
    """The number format for this setting, on this device; ``None``: the one in which each model turns out faster.

    Args:
        dtype: ``auto`` is bfloat16 on CUDA devices that compute in it, float32 on MPS, and measured on a CPU.
        device: Where the encoders run.
    """
    if dtype == "auto" and device.type == "cpu":
        return None
    bfloat16 = dtype == "bfloat16" or (
        dtype == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return torch.bfloat16 if bfloat16 else torch.float32


_DEVICES: Mapping[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
    "cpu": lambda: True,
}
