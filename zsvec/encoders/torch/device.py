"""Device and number format of models on torch.

The number format ``auto`` selects bfloat16 on CUDA devices that compute in bfloat16 natively. On a CPU, each model is
timed in bfloat16 and in float32 (`zsvec.encoders.torch.image_model`). Autocast
(https://docs.pytorch.org/docs/stable/amp.html) rounds the inputs of matrix products and convolutions to bfloat16. Text
models, classifier heads, and the image model of ConSE always run in float32: ConSE's softmax turns a rounding error of
0.05 in a logit into an error of 0.1 in a similarity.

bfloat16 changes a similarity by less than 0.03. With EfficientNet-Lite0, over 360 × 240 pairs of photographs
(Caltech-101), the largest change was 0.024 and the mean change 0.002. The nearest category changed for 1 of 360 images.
A fingerprint therefore does not contain the number format, and one store may mix vectors of the two formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from zsvec.encoders.spec import Device, Dtype
from zsvec.errors import InvalidInputError
from zsvec.types import counted

_DEVICES: Mapping[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
    "cpu": lambda: True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchDevice:
    """A device, and the number format in which models run on it.

    Attributes:
        device: Device that holds the weights and runs the passes.
        dtype: Number format of matrix products and convolutions: `torch.float32` or `torch.bfloat16`. ``None`` selects
            the faster format, which is measured for each model.
        uploads: CUDA stream that copies inputs to the device during passes; ``None`` on other devices.
    """

    device: torch.device
    dtype: torch.dtype | None
    uploads: torch.cuda.Stream | None = None

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Disables gradients and selects `dtype` for computations of the calling thread in this block."""
        with torch.inference_mode():
            if self.dtype != torch.bfloat16:
                yield
                return
            with torch.autocast(self.device.type, dtype=self.dtype):
                yield

    def with_uploads(self) -> TorchDevice:
        """Returns a copy with a stream for uploads on CUDA. On other devices, returns this object."""
        if self.device.type != "cuda":
            return self
        return replace(self, uploads=torch.cuda.Stream())  # type: ignore[no-untyped-call]

    def upload(self, inputs: torch.Tensor) -> torch.Tensor:
        """Starts to copy inputs to the device and returns the copy. Thread-safe.

        Without an `uploads` stream, returns the inputs unchanged.
        """
        if self.uploads is None:
            return inputs
        with torch.cuda.stream(self.uploads):
            return inputs.pin_memory().to(self.device, non_blocking=True)

    def wait_for_uploads(self) -> None:
        """Makes further computations of the calling thread wait for all earlier uploads.

        The caller must hold the inputs until the result is ready, because a new upload may reuse the memory of freed
        inputs.
        """
        if self.uploads is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.uploads)

    def __str__(self) -> str:
        name = (
            torch.cuda.get_device_name() if self.device.type == "cuda" else counted(torch.get_num_threads(), "thread")
        )
        dtype = str(self.dtype).removeprefix("torch.") if self.dtype else "float32 or bfloat16"
        return f"{self.device.type} ({name}), {dtype}, torch {torch.__version__}"


def choose_device(device: Device, dtype: Dtype) -> TorchDevice:
    """Returns the device and the number format for these settings.

    Args:
        device: ``auto`` selects the first available device of CUDA, MPS and CPU.
        dtype: ``auto`` selects bfloat16 on CUDA devices that compute in bfloat16 natively, else float32. On a CPU, the
            faster format is measured for each model.

    Raises:
        InvalidInputError: The device is not available.
    """
    available = [name for name, is_available in _DEVICES.items() if is_available()]
    if device != "auto" and device not in available:
        raise InvalidInputError(
            f"device {device!r} is not available to torch {torch.__version__} here; choose 'auto' or one of: "
            f"{', '.join(available)}"
        )
    chosen = available[0] if device == "auto" else device
    if dtype == "auto" and chosen == "cpu":
        return TorchDevice(device=torch.device(chosen), dtype=None)
    bfloat16 = dtype == "bfloat16" or (
        dtype == "auto" and chosen == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return TorchDevice(device=torch.device(chosen), dtype=torch.bfloat16 if bfloat16 else torch.float32)
