"""What every test of generation starts from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.main


@pytest.fixture(scope="module", autouse=True)
def quick_clients(one_certificate: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(one_certificate))
        yield


@pytest.fixture(scope="module", autouse=True)
def one_command_line() -> Iterator[None]:
    """The command line is made once from its functions, not for each command that is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield
