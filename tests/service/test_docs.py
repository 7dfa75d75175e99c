"""The examples and routes on the page of the service."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.blocks import blocks
from tests.service.test_server import ROOT, running
from tests.support import coloured

PAGE = ROOT / "zsvec" / "docs" / "service.md"
ASKED = [
    line.removeprefix("$ ")
    for block in blocks(PAGE)
    for line in block.code.splitlines()
    if re.match(r"\$ curl .*localhost:8000", line)
]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_curl_examples_succeed(tmp_path: Path) -> None:
    for number, name in enumerate(("photo", "other", "panda")):
        coloured("red", number).save(tmp_path / f"{name}.jpg")
    assert len(ASKED) == 6
    with running(tmp_path / "store") as (_, port):
        for line in ASKED:
            command = line.replace("localhost:8000", f"127.0.0.1:{port}").replace(
                "curl", "curl --fail-with-body -sS", 1
            )
            done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, (line, done.stdout, done.stderr)


def test_every_route_is_on_the_page() -> None:
    from zsvec.service import api

    described = PAGE.read_text().replace("NAME", "{name}").replace("HASH", "{hash}")
    for part in (api.categories, api.images, api.store):
        for route in part.router.routes:
            assert getattr(route, "path") in described  # noqa: B009 - of no class that mypy knows
