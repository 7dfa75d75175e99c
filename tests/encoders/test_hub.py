"""The Hugging Face hub: files are fetched once, then read from the cache; without a hub, a clear error comes soon.

The hub is a local server that answers the four requests of the client.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
from safetensors.torch import save_file

from tests.encoders import tiny_checkpoints as tiny
from tests.encoders.support import load_one
from tests.encoders.tiny_checkpoints import photo
from zsvec.encoders import Encoder, load_encoders, missing_weights
from zsvec.encoders.hub import HubSource
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch.vision import sources
from zsvec.encoders.weights import checkpoint_files, located, weight_files
from zsvec.errors import WeightsUnavailableError
from zsvec.settings.profiles import PROFILES

COMMIT = "0123456789abcdef0123456789abcdef01234567"
IMAGES = [photo(1), photo(2)]
NO_HUB = "http://127.0.0.1:9"  # where nothing answers


class Hub:
    """Repositories, each a folder ``root/owner/name`` at one commit.

    Attributes:
        requests: Paths of the requests, in order.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Returns status, headers and content: of a repository's listing, or of a file."""
        self.requests.append(path)
        parts = path.partition("?")[0].strip("/").split("/")
        if parts[:2] != ["api", "models"]:
            assert parts[3] == COMMIT
            content = self.root.joinpath(*parts[:2], *parts[4:]).read_bytes()
            return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, content
        folder = self.root.joinpath(*parts[2:4])
        if not folder.is_dir() or not {"main", COMMIT}.issuperset(parts[5:6]):
            return 404, {"X-Error-Code": "RevisionNotFound" if folder.is_dir() else "RepoNotFound"}, b"{}"
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        info = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()


class Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: Hub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def do_GET(self) -> None:
        status, headers, content = self.hub.answer(self.path)
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass


def ask(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the address of the hub, as ``HF_ENDPOINT`` does before the client is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "hub").mkdir()
    hub = Hub(tmp_path / "hub")
    ask(hub.url, monkeypatch)
    yield hub
    hub.stop()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    ask(NO_HUB, monkeypatch)


def load(spec: EncoderSpec) -> Encoder:
    encoder: Encoder = load_one(spec)
    return encoder


def clip_on(hub: Hub, save: Callable[[Path], Path] = tiny.save_older_sentence_clip) -> EncoderSpec:
    repository = save(hub.root / "someone" / "clip")
    (repository / "open_clip_model.safetensors").write_bytes(b"for another library")
    (repository / "onnx").mkdir()
    (repository / "onnx" / "model.onnx").write_bytes(b"for another library")
    return EncoderSpec(family="clip", model="someone/clip", revision=COMMIT)


def vit_on(hub: Hub) -> EncoderSpec:
    repository = hub.root / timm.get_pretrained_cfg(tiny.VIT).hf_hub_id
    repository.mkdir(parents=True)
    save_file(timm.create_model(tiny.VIT).state_dict(), repository / "model.safetensors")
    (repository / "pytorch_model.bin").write_bytes(b"the same once more")
    (repository / "config.json").write_text("{}")
    return EncoderSpec(family="vision", model=tiny.VIT, revision=COMMIT, modalities=("image",))


@pytest.mark.parametrize(
    ("put", "repository", "field", "file"),
    [
        (clip_on, "someone/clip", "model", ""),
        (partial(clip_on, save=tiny.save_clip), "someone/clip", "model", ""),
        (vit_on, "timm/test_vit.r160_in1k", "weights", "model.safetensors"),
    ],
    ids=["older clip", "clip", "timm"],
)
def test_weights_are_fetched_once(
    put: Callable[[Hub], EncoderSpec],
    repository: str,
    field: str,
    file: str,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = put(hub)
    assert missing_weights({"it": spec}) == {"it": f"{repository}@{COMMIT} from the Hugging Face hub"}
    encoder = load(spec)
    assert (encoder.fingerprint.model, encoder.fingerprint.revision) == (repository, COMMIT)
    local = load(spec.model_copy(update={field: str(hub.root / repository / file)}))
    np.testing.assert_array_equal(encoder.encode_images(IMAGES), local.encode_images(IMAGES))
    unneeded = ("onnx", "open_clip", "pytorch_model.bin")
    assert not any(name in asked for asked in hub.requests for name in unneeded)
    assert missing_weights({"it": spec}) == {}

    asked = len(hub.requests)
    assert load(spec).fingerprint == encoder.fingerprint
    assert len(hub.requests) == asked + 1  # for the repository
    ask(NO_HUB, monkeypatch)
    for offline in (True, False):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        again = load(spec)
        assert again.fingerprint == encoder.fingerprint
        np.testing.assert_array_equal(again.encode_images(IMAGES), encoder.encode_images(IMAGES))


def test_no_folder_of_the_working_folder_replaces_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.chdir(tmp_path)
    for profile in ("base", "plus"):
        for spec in PROFILES[profile].encoders.values():
            tiny.save_clip(tmp_path / spec.model)
            assert located(spec) == {}
            with pytest.raises(WeightsUnavailableError):
                load(spec)
        assert missing_weights(PROFILES[profile].encoders).keys() == {"clip", "dino"}


def test_a_local_path_begins_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "expanduser", lambda path: Path(str(path).replace("~", str(tmp_path))))
    monkeypatch.chdir(tmp_path)
    folder = tiny.save_clip(tmp_path / "mine")
    for reference in ("./mine", "../" + tmp_path.name + "/mine", "~/mine", str(folder)):
        spec = EncoderSpec(family="clip", model=reference)
        assert missing_weights({"it": spec}) == {}
        assert located(spec) == {"model": str(folder.resolve())}


def test_impossible_names_of_repositories() -> None:
    for name in ("models/clip/v2", "models\\clip", "x" * 300):
        spec = EncoderSpec(family="clip", model=name)
        assert name in missing_weights({"it": spec})["it"]
        with pytest.raises(WeightsUnavailableError, match=r"\./"):
            load(spec)


def test_without_a_revision_the_newest_commit_is_taken_and_remembered(hub: Hub) -> None:
    encoder = load(clip_on(hub).model_copy(update={"revision": None}))
    assert encoder.fingerprint.revision == COMMIT


def test_an_incomplete_cache_is_not_enough(hub: Hub, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = clip_on(hub)
    load(spec)
    (weights,) = empty_cache.rglob("model.safetensors")
    weights.unlink()
    assert missing_weights({"it": spec}) != {}
    ask(NO_HUB, monkeypatch)
    with pytest.raises(WeightsUnavailableError, match="neither in the cache nor available"):
        load(spec)


def test_unknown_repositories_and_revisions(hub: Hub) -> None:
    known = clip_on(hub)
    for change in ({"model": "someone/else"}, {"revision": "f" * 40}):
        spec = known.model_copy(update=change)
        with pytest.raises(WeightsUnavailableError, match=rf"the weights {spec.model}@{spec.revision} are neither"):
            load(spec)


def test_a_repository_without_weights(hub: Hub) -> None:
    repository = hub.root / "someone" / "words"
    repository.mkdir(parents=True)
    (repository / "config.json").write_text("{}")
    with pytest.raises(WeightsUnavailableError, match="holds no weights in a known format"):
        load(EncoderSpec(family="clip", model="someone/words"))


@pytest.mark.parametrize(("profile", "name"), [("base", "clip"), ("plus", "dino")])
def test_without_a_network_the_ways_out_are_named_at_once(
    profile: str, name: str, no_network: None, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = PROFILES[profile].encoders[name]
    start = time.monotonic()
    with pytest.raises(WeightsUnavailableError) as raised:
        load_encoders({name: spec})
    assert time.monotonic() - start < 60  # and not minutes, as with the retries of the hub's client
    wanted = f"{spec.model if name == 'clip' else f'timm/{spec.model}'}@{spec.revision}"
    for words in (f"the weights {wanted} are", "--profile offline", "zsvec.toml", "hf download", "HF_HOME"):
        assert words in str(raised.value)
    assert raised.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")


def test_the_hub_can_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailableError, match="OfflineModeIsEnabled"):
        load(PROFILES["base"].encoders["clip"])


def test_models_of_timm_are_found_by_name_and_tag() -> None:
    dino = PROFILES["base"].encoders["dino"]
    repository = "timm/vit_base_patch14_dinov2.lvd142m"
    assert sources(dino) == [HubSource(repository, "4685c99dabffe5affac90bd99dbffd25801ae58d", weight_files)]


def test_files_are_chosen_once_for_each_folder() -> None:
    names = [
        "0_Transformer/model.safetensors",
        "0_Transformer/pytorch_model.bin",
        "2_Dense/pytorch_model.bin",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "modules.json",
        "onnx/model.onnx",
        "open_clip_pytorch_model.bin",
        "flax_model.msgpack",
        "vocab.txt",
    ]
    assert weight_files(names) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "0_Transformer/model.safetensors",
        "2_Dense/pytorch_model.bin",
    ]
    assert checkpoint_files(names) == [*weight_files(names), "modules.json", "vocab.txt"]
    assert checkpoint_files(["config.json", "vocab.txt"]) == []


def test_an_address_of_the_hub_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:port")
    source = HubSource("owner/name", None, checkpoint_files)
    for call in (source.missing, source.load):
        with pytest.raises(WeightsUnavailableError, match=r"HF_ENDPOINT is no URL"):
            call()
