"""Makes an image model on torch as fast as the settings allow.

- Batch normalisation is folded into the previous convolution, if the output stays the same. EfficientNet-Lite0 becomes
  1.5 times as fast.
- In bfloat16, weights of linear layers and convolutions are rounded once, instead of by autocast in each pass. The
  vectors stay the same, and ViT-B/32 becomes 1.4 times as fast.
- If the number format is ``auto`` on a CPU, passes in float32 and bfloat16 are timed. Processor flags do not predict
  the faster format: on one processor with avx512_bf16, matrix products took 1.8 times as long in bfloat16.
- With ``compile``, torch.compile compiles the model. Inductor keeps the compiled code in its own cache on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_weights

from zsvec.encoders.hardware import Rates, faster, keep_rates, read_rates
from zsvec.encoders.spec import EncoderSpec, NumberFormat
from zsvec.encoders.torch.device import TorchDevice
from zsvec.errors import EncoderError
from zsvec.inputs.files import is_ours

LEAST_COSINE = 0.99999
"""Minimum cosine similarity of the features with and without folded batch normalisation."""

# Number of timed passes in each format. The formats alternate, and the fastest pass of each format counts, because
# other processes may slow down some passes.
_MIN_TURNS, _MAX_TURNS = 2, 12
_MEASURE_S = 0.3
_MAX_SPREAD = 1.1  # ratio of the two fastest passes; from this ratio on, rates are not remembered

_IMAGES = 2
_FORMATS: Mapping[NumberFormat, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_KINDS = (nn.Linear, nn.Conv2d, nn.BatchNorm2d)

Pass = Callable[[Any, Any], torch.Tensor]
"""Takes a model and a batch, and returns the features of the batch."""


@dataclass(frozen=True, slots=True)
class ImageModel:
    """An image model and its forward pass. Thread-safe.

    Attributes:
        model: The model, in evaluation mode.
        torch_device: Device and number format.
        run: The forward pass, which may be compiled.
    """

    model: nn.Module
    torch_device: TorchDevice
    run: Pass

    def __call__(self, batch: Any) -> torch.Tensor:
        """Returns the features of a batch, computed without gradients."""
        with self.torch_device.inference():
            return self.run(self.model, batch)


def fast_model(
    model: nn.Module,
    run: Pass,
    example: Any,
    *,
    spec: EncoderSpec,
    torch_device: TorchDevice,
    compiled: bool = False,
    others: Callable[[], object] | None = None,
) -> ImageModel:
    """Returns the model in the fastest form that the settings allow.

    Args:
        model: The model, in evaluation mode, in float32, on the device. Its layers are changed in place.
        run: The forward pass.
        example: A batch of two images.
        spec: Spec of the encoder, under which measured rates are remembered.
        torch_device: Device and number format. Without a number format, the faster format is measured.
        compiled: Whether torch.compile compiles the model.
        others: Runs the other parts of the model, such as a text model. Their layers stay in float32.

    Raises:
        EncoderError: torch.compile cannot compile the model, or other users may write to the compiler's cache.
    """
    with torch.no_grad():
        _fold(model, lambda: run(model, example))
        layers = _layers(model, lambda: run(model, example)) - (_layers(model, others) if others else set())
    allowed = {name: dtype for name, dtype in _FORMATS.items() if torch_device.dtype in {None, dtype}}
    parameters = {
        name: [
            (layer, parameter, nn.Parameter(tensor.to(dtype), requires_grad=False))
            for layer in layers
            for parameter, tensor in layer.named_parameters(recurse=False)
        ]
        for name, dtype in allowed.items()
    }

    def use(name: NumberFormat) -> ImageModel:
        for layer, parameter, tensor in parameters[name]:
            setattr(layer, parameter, tensor)
        return ImageModel(model, replace(torch_device, dtype=allowed[name]), run)

    if len(allowed) > 1:
        passes = {name: partial(_pass, use, name, example) for name in allowed}
        chosen = use(faster(read_rates(spec) or _measured(passes, spec)))
    else:
        chosen = use(*allowed)
    return _compiled(chosen, example) if compiled else chosen


def _pass(use: Callable[[NumberFormat], ImageModel], name: NumberFormat, example: Any) -> float:
    model = use(name)
    begun = time.perf_counter()
    model(example)
    return time.perf_counter() - begun


def _measured(passes: Mapping[NumberFormat, Callable[[], float]], spec: EncoderSpec) -> Rates:
    """Returns images per second in each number format.

    The rates are remembered, unless the two fastest passes of a format differ by 10 % or more.
    """
    for run in passes.values():
        run()  # warms up
    seconds: dict[NumberFormat, list[float]] = {name: [] for name in passes}
    ends = time.perf_counter() + _MEASURE_S
    for turn in range(_MAX_TURNS):
        if turn >= _MIN_TURNS and time.perf_counter() > ends:
            break
        for name, run in passes.items():
            seconds[name].append(run())
    rates = {name: _IMAGES / min(taken) for name, taken in seconds.items()}
    if all(sorted(taken)[1] < _MAX_SPREAD * min(taken) for taken in seconds.values()):
        keep_rates(spec, rates)
    return rates


def _layers(model: nn.Module, run: Callable[[], object]) -> set[nn.Module]:
    """Returns the layers in a pass that autocast would round: linear layers and convolutions."""
    return {module for module, *_ in _calls(model, run) if type(module) in {nn.Linear, nn.Conv2d}}


def _fold(model: nn.Module, run: Callable[[], torch.Tensor]) -> None:
    """Folds each batch normalisation into the previous convolution, unless the output of the model would change."""
    names = {module: name for name, module in model.named_modules()}
    calls = _calls(model, run)
    outputs = {id(output): module for module, _, output in calls if isinstance(module, nn.Conv2d)}
    pairs: list[tuple[Any, Any]] = [
        (outputs[id(given)], module)
        for module, given, _ in calls
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and id(given) in outputs
    ]
    if not pairs:
        return
    expected = run().flatten(1)
    weights = [(convolution, convolution.weight, convolution.bias) for convolution, _ in pairs]
    for convolution, norm in pairs:
        convolution.weight, convolution.bias = _fused(convolution, norm)
        after = (getattr(norm, name, None) for name in ("drop", "act"))  # parts of timm's batch normalisation
        model.set_submodule(names[norm], nn.Sequential(*filter(None, after)))
    cosine = nn.functional.cosine_similarity(expected, run().flatten(1))
    if not cosine.min() >= LEAST_COSINE:
        for convolution, weight, bias in reversed(weights):
            convolution.weight, convolution.bias = weight, bias
        for _, norm in pairs:
            model.set_submodule(names[norm], norm)


def _fused(convolution: nn.Conv2d, norm: Any) -> tuple[nn.Parameter, nn.Parameter]:
    mean, variance = norm.running_mean, norm.running_var
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )
    packed = weight.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(packed, requires_grad=False), nn.Parameter(bias, requires_grad=False)


def _calls(model: nn.Module, run: Callable[[], object]) -> list[tuple[nn.Module, Any, Any]]:
    """Returns the layers of a pass in order, with input and output."""
    calls: list[tuple[nn.Module, Any, Any]] = []

    def record(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        calls.append((module, given[0] if given else None, output))

    hooks = [module.register_forward_hook(record) for module in model.modules() if isinstance(module, _KINDS)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _compiled(model: ImageModel, example: Any) -> ImageModel:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir())
    if folder.exists() and not is_ours(folder):
        raise EncoderError(
            f"torch.compile would run code that other users may have written to {folder}: set TORCHINDUCTOR_CACHE_DIR "
            "to a folder that only you can write to, or compile = false"
        )
    compiled = replace(model, run=torch.compile(model.run, options={"freezing": True}))
    for tensor in example.values() if isinstance(example, Mapping) else [example]:
        if torch.is_tensor(tensor):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)  # compiles once for batches of all sizes
    try:
        compiled(example)
    except Exception as exc:  # torch.compile raises errors of many types
        reason = " ".join(str(exc).splitlines()[:2])
        raise EncoderError(
            f"torch.compile cannot compile {type(model.model).__name__} ({reason}): install a C++ compiler such as g++ "
            "(CXX names it), or set compile = false"
        ) from exc
    return compiled
