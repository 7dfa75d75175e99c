"""Clients that ask again as soon as they have an answer: whoever leads the next batch waits for them a little.

Without that, eight clients with an image each fall into two groups that take turns, in batches of half the size, which
take a quarter more time an image. Threads in one process announce their next images in time; a client's is on its way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from threading import Lock
from time import monotonic

from zsvec.classifier import Classifier

_SOON = 0.05  # seconds: whoever comes later comes by itself
_MARGIN = 2.0  # times as long as a client took to ask again is it waited for
_MOST = 1024  # clients that are remembered


class Regulars:
    """Knows which clients come again, and how soon. Safe in several threads.

    Args:
        classifier: Its encoders take the batches.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._answered: OrderedDict[Hashable, float] = OrderedDict()
        self._lock = Lock()

    @contextmanager
    def asking(self, client: Hashable) -> Iterator[None]:
        """Around the only image of a request; `client` names its connection."""
        with self._lock:
            answered = self._answered.pop(client, None)
        gap = _SOON if answered is None else monotonic() - answered
        if answered is not None:
            self._classifier.encoders.shared.came(client)
        yield
        if gap < _SOON:
            self._classifier.encoders.shared.expect(client, _MARGIN * gap)
        with self._lock:
            self._answered[client] = monotonic()
            if len(self._answered) > _MOST:
                self._answered.popitem(last=False)
