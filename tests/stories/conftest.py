"""What a new user has: a folder of photographs, and the commands with the profile `offline`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.support import Cli, cli, colours, filled, hash_encoders, imported, new, stocked
from tests.store.support import ServerDeployment
from tests.support import isolated
from zsvec.encoders import EncoderSet

__all__ = ["cli", "colours", "filled", "hash_encoders", "imported", "isolated", "new", "stocked"]

DATA = Path(os.environ.get("ZSVEC_DATA") or Path(__file__).parents[3] / "shared" / "data") / "caltech24"
SUBJECTS = ("airplanes", "bonsai", "dalmatian", "sunflower")


@pytest.fixture
def real(cli: Cli, load_once: Callable[..., EncoderSet], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli` with the encoders of `offline`.

    Six photographs of each subject are in ``photos/``, four others of each in ``new/``, eight of something else in
    ``strange/``, and eight of starfish in ``starfish/``.
    """
    if not DATA.is_dir():
        pytest.skip(f"there is no {DATA}: set ZSVEC_DATA to the folder of the research data")
    for subject in SUBJECTS:
        copied(DATA / "references" / subject, Path("photos", subject), 6)
        copied(DATA / "photos" / subject, Path("new", subject), 4)
    copied(DATA / "unknown", Path("strange"), 8)
    copied(DATA / "photos" / "starfish", Path("starfish"), 8)
    monkeypatch.setattr("zsvec.encoders.load_encoders", load_once)
    return cli


@pytest.fixture
def shop(real: Cli) -> Cli:
    """`real`, with a store of ``photos/``."""
    assert real("--profile offline import photos").code == 0
    return real


@pytest.fixture
def on_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the store of the test is on a server: where the program is there. Else the store is a folder."""
    if not shutil.which("qdrant"):
        return False
    server: ServerDeployment = request.getfixturevalue("server")
    monkeypatch.setenv("ZSVEC_STORE", server.url)
    monkeypatch.setenv("ZSVEC_NAMESPACE", server.namespace)
    return True


def copied(source: Path, target: Path, number: int) -> None:
    target.mkdir(parents=True)
    for photo in sorted(source.iterdir())[:number]:
        shutil.copy(photo, target)
