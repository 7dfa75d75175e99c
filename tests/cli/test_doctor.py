"""What `zsvec doctor` asks other servers."""

from __future__ import annotations

import time

import pytest

from tests import endless
from zsvec.cli import doctor


@pytest.mark.parametrize("drip", endless.DRIPS)
def test_a_hub_that_drips_is_not_waited_for(drip: str) -> None:
    """Silence ends by the timeout between two bytes; a head that drips does not. A body is not asked for."""
    with endless.serving(endless.DRIPS[drip]) as server:
        begun = time.monotonic()
        problem = doctor._problem_of_hub(server.url)
        assert time.monotonic() - begun < 60
    assert (problem is None) == (drip in ("body", "chunks"))
