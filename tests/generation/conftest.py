"""What every test of generation starts from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import certifi
import pytest
import typer.main


@pytest.fixture(scope="module", autouse=True)
def one_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Clients read one certificate in the place of all: none is needed on the loopback, and each client reads them."""
    end = "-----END CERTIFICATE-----\n"
    file = tmp_path_factory.mktemp("certificates") / "one.pem"
    file.write_text(Path(certifi.where()).read_text(encoding="utf-8").partition(end)[0] + end, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture(scope="module", autouse=True)
def one_command_line() -> Iterator[None]:
    """The command line is made once from its functions, not for each command that is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield
