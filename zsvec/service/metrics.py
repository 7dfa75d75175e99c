"""The figures of the service, for Prometheus and for the page that shows them. No label has a name of a user's."""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from zsvec import StreamStats
from zsvec.errors import ZSVecError
from zsvec.service.admission.work import Work
from zsvec.types import Category, encoder_and_modality

PATIENCE = 2.0
"""Seconds that the store may take to be asked how it is."""
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of batches
_FRESH = 15.0  # seconds for which what was read of the store counts
_OUTCOMES = ("known", "unknown", "failed")


@dataclass(frozen=True, slots=True)
class Figures:
    """What was done so far, as all who show it have it.

    Attributes:
        outcomes: Images by what became of them: known, unknown, failed.
        stats: Of the stages and batches.
        queued: Images that wait or are at work.
        codes: Requests that were answered, by status.
        references: By modality, of the encoder that has most; ``None`` while the store was never read.
        revision: Of the newest commit; likewise.
    """

    outcomes: Mapping[str, int]
    stats: StreamStats
    queued: int
    codes: Mapping[str, int]
    references: Mapping[str, int] | None
    revision: int | None


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

    def figures(self) -> Figures:
        """All figures but times of requests. May wait for the store, `PATIENCE` at most."""
        work, codes = self._work, Counts[str]()
        for sample in (sample for metric in self.requests.collect() for sample in metric.samples):
            if sample.name.endswith("_total"):
                codes[sample.labels["code"]] += int(sample.value)
        references, revision = self._of_store() or (None, None)
        outcomes = {outcome: work.outcomes[outcome] for outcome in _OUTCOMES}
        return Figures(outcomes, work.classifier.stats, work.queued, dict(codes), references, revision)

    def collect(
        self,
    ) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | SummaryMetricFamily]:
        """What is not counted here, but where it is done."""
        found = self.figures()
        images = CounterMetricFamily("zsvec_images", "Images that were answered", labels=["outcome"])
        for outcome, number in found.outcomes.items():
            images.add_metric([outcome], number)
        yield images
        stages = SummaryMetricFamily("zsvec_stage_seconds", "Work of a stage, by image or batch", labels=["stage"])
        for stage, spent in found.stats.busy.items():
            stages.add_metric([stage], count_value=found.stats.runs[stage], sum_value=spent)
        yield stages
        queue = GaugeMetricFamily("zsvec_queue_size", "Images that wait or are at work")
        queue.add_metric([], found.queued)
        yield queue
        sizes = found.stats.batches
        batches = HistogramMetricFamily("zsvec_batch_size", "Images of a batch that was encoded")
        counts = [(str(float(size)), sum(n for images, n in sizes.items() if images <= size)) for size in _SIZES]
        batches.add_metric([], [*counts, ("+Inf", sum(sizes.values()))], sum(size * n for size, n in sizes.items()))
        yield batches
        if found.references is None or found.revision is None:
            return
        references = GaugeMetricFamily("zsvec_references", "References of the categories", labels=["modality"])
        for modality, number in found.references.items():
            references.add_metric([modality], number)
        yield references
        newest = GaugeMetricFamily("zsvec_store_revision", "Revision of the newest commit")
        newest.add_metric([], found.revision)
        yield newest

    def _of_store(self) -> tuple[dict[str, int], int] | None:
        """References by modality and the revision, as they were when they were last read, if they ever were."""
        if time.monotonic() - self._asked > _FRESH:
            self._asked = time.monotonic()
            classifier = self._work.classifier
            with suppress(ZSVecError), classifier.within(PATIENCE):  # requests that need the store say that it is away
                self._store = _counted(classifier.categories())
        return self._store


def _counted(categories: Sequence[Category]) -> tuple[dict[str, int], int]:
    """References by modality, of the encoder that has most, and the newest revision."""
    counts: dict[str, Counts[str]] = {"text": Counts(), "image": Counts()}
    for category in categories:
        for expert, number in category.references.items():
            encoder, modality = encoder_and_modality(expert)
            counts[modality][encoder] += number
    most = {modality: max(found.values(), default=0) for modality, found in counts.items()}
    return most, max((category.rev for category in categories), default=0)
