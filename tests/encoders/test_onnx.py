"""Exported encoders: the vectors of torch without torch, and changed files are refused."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.encoders.support import Specs, load_one
from tests.encoders.tiny_checkpoints import photo
from zsvec.encoders import Encoder, EncoderSet, load_encoders, missing_weights
from zsvec.encoders.base import ImageFeatures
from zsvec.encoders.onnx.exported import MANIFEST, ExportedFolder
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch import export
from zsvec.encoders.torch.export import export_encoders
from zsvec.errors import EncoderError, InvalidInputError, WeightsUnavailableError
from zsvec.settings.profiles import encoders_of

pytest.importorskip("onnxscript", reason='pip install "zsvec[export]"')

IMAGES = [photo(seed, (60 + 10 * seed, 50)) for seed in range(9)]
TEXTS = ["a cat", "a red panda on a tree", "a long text " * 40, "小熊猫", "  TWO   dogs\n"]
NAMES = ("older-sentence-clip", "vit", "tiny-conse")


@pytest.fixture(scope="module")
def folder(specs: Specs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with an exported tiny encoder of each family."""
    to = tmp_path_factory.mktemp("exported") / "encoders"
    chosen = {name: specs[name].model_copy(update={"prompt": f"{name}: {{name}}"}) for name in NAMES}
    export_encoders(chosen, to)
    return to


@pytest.fixture(scope="module")
def exported(folder: Path) -> EncoderSet:
    return load_encoders(ExportedFolder(folder).specs(), device="cpu")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("name", NAMES)
def test_vectors_and_fingerprints_are_those_of_torch(
    name: str, exported: EncoderSet, encoder_named: Callable[[str], Encoder]
) -> None:
    expected, got = encoder_named(name), exported[name]
    assert got.fingerprint == expected.fingerprint
    assert got.backbone.side == expected.backbone.side
    assert ((expected.encode_images(IMAGES) * got.encode_images(IMAGES)).sum(axis=1) > 0.99999).all()
    if "text" in expected.modalities:
        assert ((expected.encode_texts(TEXTS) * got.encode_texts(TEXTS)).sum(axis=1) > 0.99999).all()


def test_a_shared_image_model_runs_once(exported: EncoderSet) -> None:
    assert exported["vit"].backbone is exported["tiny-conse"].backbone
    assert exported["vit"].backbone is not exported["older-sentence-clip"].backbone
    assert [len(inputs) for inputs in map(exported.preprocess, IMAGES)] == [2] * len(IMAGES)
    vectors = exported.encode_images([exported.preprocess(image) for image in IMAGES])
    for name, rows in vectors.items():
        np.testing.assert_allclose(rows, exported[name].encode_images(IMAGES), atol=1e-6)
    assert (exported.device, exported.on_torch) == ("cpu", False)


def test_a_folder_is_a_profile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for path in (str(folder), f"./{folder.name}"):
        found = encoders_of(path, {}, Path.cwd())
        assert {name: (spec.family, spec.prompt) for name, spec in found.items()} == {
            name: ("onnx", f"{name}: {{name}}") for name in NAMES
        }
        assert missing_weights(found) == {}


def test_an_encoder_beside_one_of_torch(folder: Path, specs: Specs) -> None:
    both = load_encoders({"vit": ExportedFolder(folder).specs()["vit"], "other": specs["vit"]}, device="cpu")
    assert both.on_torch
    assert both.fingerprints["vit"] == both.fingerprints["other"]


def test_other_files_are_never_lost(copy: Path, specs: Specs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "load_encoders", None)  # refused before anything is loaded
    no_export, no_manifest = copy.parent / "mine", copy.parent / "other"
    no_manifest.mkdir()
    (no_manifest / MANIFEST).write_text("{}")
    for folder in (copy, no_export, no_manifest):
        (folder / "photos").mkdir(parents=True)
        (folder / "letter.txt").write_text("dear")
        before = sorted(folder.rglob("*"))
        named = r"encoders\.json, letter\.txt, photos" if folder == no_manifest else "letter.txt, photos"
        with pytest.raises(InvalidInputError, match=rf"holds something else than exported encoders \({named}\)"):
            export_encoders({"vit": specs["vit"]}, folder)
        assert sorted(folder.rglob("*")) == before
        assert (folder / "letter.txt").read_text() == "dear"


def test_a_folder_with_the_name_of_an_exported_file_is_kept(copy: Path, specs: Specs) -> None:
    graph = next(copy.glob("*.onnx"))
    graph.unlink()
    graph.mkdir()
    (graph / "letter.txt").write_text("dear")
    with pytest.raises(InvalidInputError, match=graph.name):
        export_encoders({"vit": specs["vit"]}, copy)
    assert (graph / "letter.txt").read_text() == "dear"


def test_files_added_during_the_export_are_kept(copy: Path, specs: Specs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_compare", lambda *_: (copy / "letter.txt").write_text("dear"))
    with pytest.raises(InvalidInputError, match=r"letter\.txt"):
        export_encoders({"vit": specs["vit"]}, copy)
    assert (copy / "letter.txt").read_text() == "dear"
    assert list(copy.parent.iterdir()) == [copy]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_an_export_replaces_another_through_a_link(
    copy: Path, specs: Specs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def rename_as_windows(path: Path, target: Path) -> Path:
        assert not Path(target).exists()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_as_windows)
    monkeypatch.setattr(Path, "replace", rename_as_windows)
    before = ExportedFolder(copy).manifest.files
    link = tmp_path / "link"
    link.symlink_to(copy, target_is_directory=True)
    export_encoders({"vit": specs["vit"]}, link)
    manifest = ExportedFolder(copy).manifest
    assert list(manifest.encoders) == ["vit"]
    assert not any((copy / name).exists() for name in before.keys() - manifest.files)
    assert sorted(tmp_path.iterdir()) == [copy, link]  # nothing else is left
    assert link.is_symlink()


def test_an_export_that_differs_is_refused(specs: Specs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = export._timm_features

    def wrong(model: Any, pixels: Any) -> Any:
        pooled, logits = features(model, pixels)
        return pooled + 0.1 * pooled.std(), logits

    monkeypatch.setattr(export, "_timm_features", wrong)
    with pytest.raises(EncoderError, match=r"'vit' is not exported: vectors of images differ .* \(cosine 0\.9"):
        export_encoders({"vit": specs["vit"]}, tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


def test_other_preprocessing_is_not_exported(specs: Specs, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(specs["clip"].model, tmp_path / "clip"))
    file = folder / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"]["do_center_crop"] = False
    config["image_processor"]["size"] = {"height": 32, "width": 32}
    file.write_text(json.dumps(config))
    with pytest.raises(InvalidInputError, match="'it' cannot be exported: its preprocessing"):
        export_encoders({"it": EncoderSpec(family="clip", model=str(folder))}, tmp_path / "to")


# ---- long-running processes


@pytest.mark.skipif(os.name != "posix", reason="open files cannot be deleted here")
@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_may_be_deleted_or_replaced_before_the_first_text(
    replaced: bool, copy: Path, exported: EncoderSet, specs: Specs
) -> None:
    encoders = load_encoders(ExportedFolder(copy).specs(), device="cpu")
    if replaced:
        export_encoders({"vit": specs["vit"]}, copy)
    else:
        shutil.rmtree(copy)
    for name in ("older-sentence-clip", "tiny-conse"):
        np.testing.assert_array_equal(encoders[name].encode_texts(TEXTS), exported[name].encode_texts(TEXTS))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are not listed here")
def test_files_are_closed_after_the_first_text_or_with_the_encoders(copy: Path) -> None:
    def opened() -> set[str]:
        links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        return {Path(link).name for link in links if Path(link).parent == copy}

    encoders = load_encoders(ExportedFolder(copy).specs(), device="cpu")
    texts = [found.texts for found in ExportedFolder(copy).manifest.encoders.values()]
    assert opened() == {name for model in texts if model for name in (model.graph, model.tokenizer)}
    encoders["tiny-conse"].encode_texts(["a cat"])
    assert len(opened()) == 2
    del encoders
    gc.collect()
    assert opened() == set()


# ---- damage


@pytest.mark.parametrize("kind", ["*.onnx", "tokenizer*", "*.npy"])
def test_damaged_files_are_refused(kind: str, folder: Path, tmp_path: Path) -> None:
    for damage in ("flipped", "cut", "gone", "folder"):
        copy = Path(shutil.copytree(folder, tmp_path / damage))
        for file in copy.glob(kind):
            content = bytearray(file.read_bytes())
            file.unlink()
            if damage == "flipped":
                content[len(content) // 2] ^= 1
                file.write_bytes(content)
            elif damage == "cut":
                file.write_bytes(content[:-1])
            elif damage == "folder":
                file.mkdir()
        with pytest.raises(WeightsUnavailableError, match=r"damaged: .*zsvec encoders export"):
            load_encoders(ExportedFolder(copy).specs(), device="cpu")["tiny-conse"].encode_texts(["a"])


def test_a_damaged_manifest_is_refused(copy: Path) -> None:
    other_version = b'{"format": 2, "encoders": {}, "files": {}}'
    for content in (b"", b"{", b"[]", b"\xff\xfe", b"{" * 100_000, b" " * 2**21, other_version):
        (copy / MANIFEST).write_bytes(content)
        with pytest.raises(WeightsUnavailableError, match="damaged or of another version"):
            ExportedFolder(copy)


def changed(folder: Path, change: Callable[[Any], None]) -> None:
    """Forges the manifest."""
    values = json.loads((folder / MANIFEST).read_text())
    change(values)
    (folder / MANIFEST).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"prompt": "a photo"}, r"encoders.vit.prompt: .*must contain \{name\}"),
        ({"modalities": ["text", "image"]}, "encoders.vit: .*no text model"),
        ({"labels": "labels-0.npy"}, "encoders.vit: .*no text model"),
    ],
)
def test_impossible_encoders_are_refused(change: dict[str, Any], problem: str, copy: Path) -> None:
    changed(copy, lambda values: values["encoders"]["vit"].update(change))
    with pytest.raises(WeightsUnavailableError, match=f"damaged or of another version of zsvec \\({problem}"):
        encoders_of(str(copy), {}, Path.cwd())


def test_files_outside_of_the_folder_are_refused(copy: Path) -> None:
    manifest = (copy / MANIFEST).read_text()
    for name in ("../x.onnx", "/etc/passwd", "a/b", "..", ".hidden", "", "A.onnx", "a\0", "a\n"):
        values = json.loads(manifest)
        values["encoders"]["vit"]["images"]["graph"] = name
        values["files"][name] = "0" * 64
        (copy / MANIFEST).write_text(json.dumps(values))
        with pytest.raises(WeightsUnavailableError, match="damaged or of another version"):
            ExportedFolder(copy)


SEVEN = {"fingerprint": {"model": "x", "revision": None, "dim": 7, "preprocessing": ""}}
BOX = {"images": {"graph": "images-0.onnx", "preprocessing": {"size": 8, "scaled": 8, "interpolation": "box"}}}


@pytest.mark.parametrize(
    ("encoder", "change"), [("vit", SEVEN), ("tiny-conse", SEVEN), ("older-sentence-clip", SEVEN), ("vit", BOX)]
)
def test_other_shapes_than_in_the_manifest_are_refused(encoder: str, change: Any, copy: Path) -> None:
    changed(copy, lambda values: values["encoders"][encoder].update(change))
    with pytest.raises(WeightsUnavailableError, match="damaged"):
        load_encoders(ExportedFolder(copy).specs(), device="cpu")


def test_a_matrix_is_never_unpickled(copy: Path) -> None:
    (file,) = copy.glob("*.npy")
    np.save(file, np.array([[object()]]), allow_pickle=True)
    changed(copy, lambda values: values["files"].update({file.name: digest(file)}))
    with pytest.raises(WeightsUnavailableError, match="is no matrix"):
        load_encoders(ExportedFolder(copy).specs(), device="cpu")


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_graph_takes_no_weights_from_other_files(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    graph = next(file for file in copy.glob("images*.onnx"))
    model = onnx.load(graph)
    tensor = max(model.graph.initializer, key=lambda one: one.ByteSize())
    monkeypatch.chdir(copy)
    for place in (copy, copy.parent):
        (place / "outside.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for location in ("outside.bin", "../outside.bin", f"{copy}/outside.bin"):
        tensor.ClearField("external_data")
        tensor.external_data.add(key="location", value=location)
        graph.write_bytes(model.SerializeToString())
        changed(copy, lambda values: values["files"].update({graph.name: digest(graph)}))
        with pytest.raises(WeightsUnavailableError, match="cannot be loaded"):
            load_encoders(ExportedFolder(copy).specs(), device="cpu")


def test_a_graph_that_refuses_its_input_raises(exported: EncoderSet) -> None:
    with pytest.raises(EncoderError, match="cannot be computed"):
        exported["vit"].backbone.forward([np.zeros((3, 3, 3), np.uint8)])
    assert isinstance(exported["vit"].backbone.forward([exported["vit"].backbone.preprocess(IMAGES[0])]), ImageFeatures)


# ---- specs that do not fit


def test_encoders_that_were_not_exported(folder: Path) -> None:
    spec = EncoderSpec(family="onnx", model=str(folder))
    with pytest.raises(InvalidInputError, match=r"no encoder 'dino' .* there are older-sentence-clip"):
        load_one(spec, "dino")
    with pytest.raises(InvalidInputError, match="no encoder 'vit' of text, image"):
        load_one(spec, "vit")


def test_settings_that_exclude_onnxruntime(folder: Path) -> None:
    excluding: list[Any] = [{"device": "cuda"}, {"dtype": "bfloat16"}, {"runtime": "torch"}]
    for options in excluding:
        with pytest.raises(InvalidInputError, match="exported encoders run on onnxruntime"):
            load_encoders(ExportedFolder(folder).specs(), **options)


def test_missing_folders(tmp_path: Path) -> None:
    for name in ("./nothing", "~nobody-of-this-name/x", "./\0", "~\0/x", "./" + "x" * 300):
        with pytest.raises(WeightsUnavailableError, match="no exported encoders in"):
            encoders_of(name, {}, tmp_path)
        named = EncoderSpec(family="onnx", model=name)
        assert "no exported encoders" in missing_weights({"it": named})["it"]
        with pytest.raises(WeightsUnavailableError, match="no exported encoders in"):
            load_one(named)


def test_a_folder_in_the_home_of_the_user(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(folder.parent))
    assert list(encoders_of(f"~/{folder.name}", {}, tmp_path)) == list(NAMES)


def test_neither_folder_nor_name_of_a_profile(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no profile is named 'nothing'"):
        encoders_of("nothing", {}, tmp_path)
    spec = EncoderSpec(family="onnx", model=str(tmp_path))
    assert "no exported encoders" in missing_weights({"it": spec})["it"]


# ---- without torch

WITHOUT_TORCH = """
import sys
from importlib import metadata

ABSENT = {"torch", "torchvision", "timm", "sentence_transformers", "transformers", "huggingface_hub",
          "sklearn", "openai", "onnx", "onnxscript"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
version = metadata.version

def version_if_present(package):
    if package.replace("-", "_") in ABSENT:
        raise metadata.PackageNotFoundError(package)
    return version(package)

metadata.version = version_if_present
"""
USE = """
import zsvec
from PIL import Image
images = {colour: [Image.new("RGB", (40 + i, 50), colour) for i in range(6)] for colour in ("red", "green", "blue")}
with zsvec.open(sys.argv[1], profile=sys.argv[2]) as clf:
    for colour, examples in images.items():
        clf.add_category(colour, texts=[f"something {colour}"], images=examples)
    clf.calibrate()
    print(clf.classify(images["green"][0]).nearest)
    with clf.classify_stream([examples[1] for examples in images.values()]) as stream:
        print(*[prediction.nearest for prediction in stream])
from pathlib import Path
from zsvec.cli import main
for colour, examples in images.items():
    folder = Path(sys.argv[1]).with_name("photos") / f"dark {colour}"
    folder.mkdir(parents=True)
    for number, image in enumerate(examples):
        image.point(lambda value: value // 2).save(folder / f"{number}.png")
zsvec_here = ["zsvec", "--store", sys.argv[1], "--profile", sys.argv[2]]
for command in (["import", str(folder.parent)], ["doctor", "--json"]):
    sys.argv = [*zsvec_here, *command]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code
assert not [name for name in sys.modules if name.partition(".")[0] in ABSENT]
"""
MISUSE = """
import zsvec
from zsvec.cli import main
from zsvec.errors import MissingExtraError
with zsvec.open(":memory:", profile="base") as clf:
    try:
        clf.add_category("cat")
    except MissingExtraError as exc:
        print(exc)
sys.argv = ["zsvec", "--store", sys.argv[1], "--profile", "base", "doctor", "--json"]
try:
    main()
except SystemExit as stop:
    assert stop.code == 1, stop.code
"""


def lines_without_torch(program: str, store: Path, *arguments: object) -> list[str]:
    """Returns the output of a program with a cache of its own, since the user's may have exported encoders."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + program, str(store), *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "XDG_CACHE_HOME": str(store.with_name("cache"))},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_missing_torch_is_named(tmp_path: Path) -> None:
    said, *findings = lines_without_torch(MISUSE, tmp_path / "store")
    words = 'pip install "zsvec[torch]"'
    assert words in said
    advice = {finding["what"]: finding["advice"] for finding in map(json.loads, findings)}
    assert advice["packages"] == words
    assert not advice.keys() & {"device", "weights"}  # they would say the same again


def test_everything_works_where_torch_is_not_installed(folder: Path, tmp_path: Path) -> None:
    answers, stream, *findings = lines_without_torch(USE, tmp_path / "store", folder)
    assert (answers, stream) == ("green", "red green blue")
    assert all(json.loads(finding)["ok"] for finding in findings)
    packages = json.loads(findings[0])["detail"]
    assert "onnxruntime" in packages
    assert "torch" not in packages
    assert "6 categories" in json.loads(findings[-1])["detail"]  # three were imported from a folder
