"""Image models on torch: faster forms give the same vectors, and the faster number format is found and remembered."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from tests.encoders.support import Specs, load_one
from tests.encoders.tiny_checkpoints import photo
from zsvec.encoders import BatchEncoder, describe_device, hardware
from zsvec.encoders.hardware import Rates, keep_rates, read_rates
from zsvec.encoders.runtimes import measured, tidy
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch import image_model
from zsvec.encoders.torch.device import TorchDevice
from zsvec.encoders.torch.image_model import ImageModel, fast_model
from zsvec.errors import EncoderError

SPEC = EncoderSpec(family="vision", model="mine")
IMAGES = [photo(seed, (60, 50)) for seed in range(5)]
RATES: Rates = {"float32": 1.0, "bfloat16": 2.0}
EXACT = TorchDevice(device=torch.device("cpu"), dtype=torch.float32)
ROUNDED = TorchDevice(device=torch.device("cpu"), dtype=torch.bfloat16)
FOUND = TorchDevice(device=torch.device("cpu"), dtype=None)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hardware, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


class Network(nn.Module):
    """Convolutions with batch normalisations, of torch and of timm, and a residual connection."""

    def __init__(self, branch: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm, self.timm_norm = nn.BatchNorm2d(8), BatchNormAct2d(8)
        self.head = nn.Linear(8, 6)
        self.unused = nn.Linear(8, 6)
        self.branch = branch
        for norm in (self.norm, self.timm_norm):
            for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
                assert tensor is not None
                tensor.uniform_(0.5, 2, generator=generator)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found = self.first(pixels)
        kept = self.norm(found).relu()
        kept = kept + self.timm_norm(self.second(kept))
        features: torch.Tensor = self.head((kept + found if self.branch else kept).mean((2, 3)))
        return features


def run(model: Any, batch: torch.Tensor) -> torch.Tensor:
    return model(batch)  # type: ignore[no-any-return]


def made(network: nn.Module, torch_device: TorchDevice, **options: Any) -> ImageModel:
    return fast_model(network.eval(), run, example(), spec=SPEC, torch_device=torch_device, **options)


def example(seed: int = 0) -> torch.Tensor:
    return torch.randn((2, 3, 12, 12), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("branch", [False, True])
def test_batch_normalisation_is_folded_where_nothing_else_takes_its_input(branch: bool) -> None:
    network = Network(branch).eval()
    with torch.no_grad():
        expected = network(example(1))
    model = made(network, EXACT)
    assert any(isinstance(part, nn.BatchNorm2d) for part in network.modules()) is branch
    torch.testing.assert_close(model(example(1)), expected, rtol=1e-4, atol=1e-5)


def test_rounded_weights_give_the_vectors_of_autocast() -> None:
    with_folded = made(Network(), EXACT)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = with_folded.model(example(1))
    model = made(Network(), ROUNDED)
    network: Any = model.model
    assert {network.first.weight.dtype, network.head.weight.dtype} == {torch.bfloat16}
    assert network.unused.weight.dtype == torch.float32  # not part of the pass
    assert torch.equal(model(example(1)), expected)


def test_layers_of_other_passes_stay_in_float32() -> None:
    network = Network()
    made(network, ROUNDED, others=lambda: network.head(torch.zeros(1, 8)))
    assert (network.first.weight.dtype, network.head.weight.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("name", ["clip", "vit"])
def test_texts_and_logits_stay_in_float32(
    name: str, specs: Specs, encoder_named: Callable[[str], BatchEncoder]
) -> None:
    exact, rounded = encoder_named(name), load_one(specs[name], name, dtype="bfloat16")
    assert (exact.encode_images(IMAGES) * rounded.encode_images(IMAGES)).sum(axis=1).min() > 0.999
    if "text" in exact.modalities:
        np.testing.assert_array_equal(exact.encode_texts(["a cat"]), rounded.encode_texts(["a cat"]))


# ---- which number format


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Returns a function that fakes the seconds of passes, and returns the formats that ran."""

    def let(**seconds: list[float]) -> list[str]:
        ran: list[str] = []

        def timed(use: Callable[[str], ImageModel], name: str, _: Any) -> float:
            assert use(name).torch_device.dtype == getattr(torch, name)
            ran.append(name)
            return seconds[name][(ran.count(name) - 1) % len(seconds[name])]

        monkeypatch.setattr(image_model, "_pass", timed)
        return ran

    return let


@pytest.mark.parametrize(
    ("float32", "bfloat16", "expected"),
    [(1.0, 0.9, torch.bfloat16), (1.0, 0.99, torch.float32)],
)
def test_the_faster_format_is_found_and_kept(
    float32: float, bfloat16: float, expected: torch.dtype, takes: Callable[..., list[str]]
) -> None:
    ran = takes(float32=[float32], bfloat16=[bfloat16])
    assert describe_device("cpu", specs={"it": SPEC}).endswith("it by torch: not measured yet")
    model = made(Network(), FOUND)
    assert model.torch_device.dtype == expected
    assert model.model.first.weight.dtype == expected  # type: ignore[union-attr]
    words = f"(float32 {2 / float32:.1f}, bfloat16 {2 / bfloat16:.1f} images/s)"
    assert measured({"it": SPEC})["it by torch"] == f"{str(expected).removeprefix('torch.')} {words}"
    ran.clear()
    assert made(Network(), FOUND).torch_device.dtype == expected
    assert ran == []
    assert made(Network(), EXACT).torch_device.dtype == torch.float32  # as asked


def test_image_models_shared_with_conse_are_never_measured() -> None:
    conse = SPEC.model_copy(update={"family": "conse", "text_model": "x"})
    said = measured({"conse": conse, "shares": SPEC, "other": SPEC.model_copy(update={"image_size": 96})})
    assert said == {
        "all together": "no export yet (`zsvec encoders export`)",
        "conse by torch": "float32, which ConSE needs of its image model",
        "shares by torch": "float32, which ConSE needs of its image model",
        "other by torch": "not measured yet",
    }


def test_a_disturbed_measurement_is_not_kept(takes: Callable[..., list[str]], cache_folder: Path) -> None:
    takes(float32=[9.0, 1.0, *[7.0] * 20], bfloat16=[0.9])
    made(Network(), FOUND)
    assert not cache_folder.exists()


def test_passes_are_timed() -> None:
    model = made(Network(), FOUND)
    assert model.torch_device.dtype in {torch.float32, torch.bfloat16}


CHANGES: dict[str, Callable[[Path], object]] = {
    "damaged": lambda file: file.write_bytes(b"\x80\x04."),
    "a list": lambda file: file.write_text("[1]"),
    "other formats": lambda file: file.write_text('{"float8": 1}'),
    "one format": lambda file: file.write_text('{"bfloat16": 5}'),
    "no rates": lambda file: file.write_text("{}"),
    "not a rate": lambda file: file.write_text('{"float32": 1e999, "bfloat16": -1}'),
    "gone": lambda file: file.unlink(),
    "others may write": lambda file: file.parent.chmod(0o777),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.skipif(os.name != "posix", reason="no modes here")
def test_rates_that_are_damaged_or_open_to_others_are_measured_again(
    change: str, cache_folder: Path, takes: Callable[..., list[str]]
) -> None:
    keep_rates(SPEC, RATES)
    (file,) = cache_folder.iterdir()
    CHANGES[change](file)
    assert read_rates(SPEC) is None
    takes(float32=[0.5], bfloat16=[1.0])
    assert made(Network(), FOUND).torch_device.dtype == torch.float32


def test_rates_depend_on_host_and_model() -> None:
    keep_rates(SPEC, RATES)
    assert read_rates(SPEC.model_copy(update={"image_size": 96})) is None
    for name in ("thread_count", "processor", "installed_version"):
        assert read_rates(SPEC) == RATES
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hardware, name, lambda *_: "another")
            assert read_rates(SPEC) is None


@pytest.mark.skipif(os.name != "posix", reason="no modes here")
def test_rates_are_kept_only_in_a_folder_of_the_user(cache_folder: Path) -> None:
    cache_folder.write_text("no folder")
    keep_rates(SPEC, RATES)
    assert read_rates(SPEC) is None
    cache_folder.unlink()
    cache_folder.mkdir()
    cache_folder.chmod(0o777)
    keep_rates(SPEC, RATES)
    assert list(cache_folder.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs rights for links elsewhere")
def test_links_in_the_cache_are_replaced_and_not_followed(cache_folder: Path, tmp_path: Path) -> None:
    keep_rates(SPEC, RATES)
    (file,) = cache_folder.iterdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for link in (file, file.with_suffix(".partial")):
        link.unlink(missing_ok=True)
        link.symlink_to(victim)
    keep_rates(SPEC, RATES)
    assert victim.read_text() == "precious"
    assert read_rates(SPEC) == RATES


def test_old_rates_are_deleted(cache_folder: Path) -> None:
    keep_rates(SPEC, RATES)
    tidy()
    (file,) = cache_folder.iterdir()
    unfinished = cache_folder / f".zsvec-{'0' * 32}.new"  # by a process that was killed
    unfinished.touch()
    for old in (file, unfinished):
        os.utime(old, (0, 0))
    tidy()
    assert list(cache_folder.iterdir()) == []


# ---- torch.compile


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "inductor"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    return folder


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")  # torch's, of that alone
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # raised by torch 2.10 itself
def test_a_compiled_model_gives_the_same(compiles: Path) -> None:
    expected, model = made(Network(), EXACT), made(Network(), EXACT, compiled=True)
    assert any(compiles.iterdir())
    for count in (1, 2, 5):
        batch = torch.cat([example(seed) for seed in range(3)])[:count]
        torch.testing.assert_close(model(batch), expected(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # raised by torch 2.10 itself
def test_a_missing_compiler_is_named(compiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    with pytest.raises(EncoderError, match=r"cannot compile Network .*install a C\+\+ compiler .* compile = false"):
        made(Network(), EXACT, compiled=True)


@pytest.mark.skipif(os.name != "posix", reason="no modes here")
def test_a_compiled_model_is_not_taken_from_others(compiles: Path) -> None:
    compiles.chmod(0o777)
    with pytest.raises(EncoderError, match=r"other users may have written to .*TORCHINDUCTOR_CACHE_DIR"):
        made(Network(), EXACT, compiled=True)
