"""The figures of the service, for Prometheus and for the page that shows them. No label has a name of a user's."""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Iterator, Sequence
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from zsvec.errors import ZSVecError
from zsvec.service.work import Work
from zsvec.types import Category, encoder_and_modality

PATIENCE = 2.0
"""Seconds that the store may take to be asked how it is."""
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of batches
_FRESH = 15.0  # seconds for which what was read of the store counts
_OUTCOMES = ("known", "unknown", "failed")


class Metrics(Collector):
    """What was done so far.

    Args:
        work: Does it.

    Attributes:
        requests: Requests by route and status.
        seconds: What they took, by route.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._asked = float("-inf")
        self._store: tuple[dict[str, int], int] | None = None
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "zsvec_http_requests", "Requests that were answered", ["route", "code"], registry=self._registry
        )
        self.seconds = Histogram(
            "zsvec_http_request_seconds", "From a request to its answer", ["route"], registry=self._registry
        )
        self._registry.register(self)

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry)

    def collect(
        self,
    ) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | SummaryMetricFamily]:
        """What is not counted here, but where it is done."""
        images = CounterMetricFamily("zsvec_images", "Images that were answered", labels=["outcome"])
        for outcome in _OUTCOMES:
            images.add_metric([outcome], self._work.outcomes[outcome])
        yield images
        stats = self._work.classifier.alone.stats
        stages = SummaryMetricFamily("zsvec_stage_seconds", "Work of a stage, by image or batch", labels=["stage"])
        for stage, spent in stats.busy.items():
            stages.add_metric([stage], count_value=stats.runs[stage], sum_value=spent)
        yield stages
        queue = GaugeMetricFamily("zsvec_queue_size", "Images that wait or are at work")
        queue.add_metric([], self._work.queued)
        yield queue
        batches = HistogramMetricFamily("zsvec_batch_size", "Images of a batch that was encoded")
        counts = [
            (str(float(size)), sum(n for images, n in stats.batches.items() if images <= size)) for size in _SIZES
        ]
        total = sum(stats.batches.values())
        batches.add_metric([], [*counts, ("+Inf", total)], sum(size * n for size, n in stats.batches.items()))
        yield batches
        yield from self._of_store()

    def _of_store(self) -> Iterator[GaugeMetricFamily]:
        """As it was when it was last read; nothing, if it never was."""
        if time.monotonic() - self._asked > _FRESH:
            self._asked = time.monotonic()
            store = self._work.classifier.store
            with suppress(ZSVecError), store.within(PATIENCE):  # the requests that need the store say that it is away
                self._store = _counted(store.categories())
        if self._store is None:
            return
        most, revision = self._store
        references = GaugeMetricFamily("zsvec_references", "References of the categories", labels=["modality"])
        for named, number in most.items():
            references.add_metric([named], number)
        yield references
        newest = GaugeMetricFamily("zsvec_store_revision", "Revision of the newest commit")
        newest.add_metric([], revision)
        yield newest


def _counted(categories: Sequence[Category]) -> tuple[dict[str, int], int]:
    """References by modality, of the encoder that has most, and the newest revision."""
    counts: dict[str, Counts[str]] = {"text": Counts(), "image": Counts()}
    for category in categories:
        for expert, number in category.references.items():
            encoder, modality = encoder_and_modality(expert)
            counts[modality][encoder] += number
    most = {modality: max(found.values(), default=0) for modality, found in counts.items()}
    return most, max((category.rev for category in categories), default=0)
