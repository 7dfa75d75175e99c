"""Operator endpoints: liveness, readiness, and metrics for Prometheus.

The labels of the metrics never contain the name of a category, a file or a key.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter as Counts
from collections.abc import Iterator, Sequence
from contextlib import suppress

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector
from starlette.responses import Response

from zsvec import Classifier
from zsvec.errors import ZSVecError
from zsvec.service.admission.queue import Work
from zsvec.service.problems import JSON, Problem
from zsvec.types import Category, encoder_and_modality

_log = logging.getLogger(__name__)

router = APIRouter(include_in_schema=False)

_STORE_TIMEOUT_S = 2.0
_PING_INTERVAL_S = 1.0
_LOAD_RETRY_S = 5.0
_COUNT_INTERVAL_S = 15.0
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Health:
    """Readiness of the service: the encoders are loaded and the store answers.

    Attributes:
        ending: Set at shutdown, before the listener is closed.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self.ending = asyncio.Event()
        self._loading: str | None = "the encoders are being loaded"
        self._pinged: tuple[float, str | None] = (float("-inf"), None)
        self._pinging = asyncio.Lock()

    async def load(self) -> None:
        """Loads the encoders; retries after any failure."""
        while True:
            try:
                await asyncio.to_thread(lambda: self._classifier.encoders)
            except Exception as exc:  # noqa: BLE001 - retried
                is_defect = not isinstance(exc, ZSVecError)
                _log.warning("the encoders cannot be loaded: %s", exc, exc_info=is_defect)
            else:
                self._loading = None
                return
            self._loading = "the encoders cannot be loaded: see the log of the service"
            await asyncio.sleep(_LOAD_RETRY_S)

    async def problem(self) -> str | None:
        """Returns the reason why the service is not ready, or ``None``."""
        if self.ending.is_set():
            return "the service is shutting down"
        if self._loading:
            return self._loading
        async with self._pinging:  # concurrent probes share one ping
            if time.monotonic() - self._pinged[0] > _PING_INTERVAL_S:
                found = await asyncio.to_thread(self._ping)
                self._pinged = (time.monotonic(), found)
            return self._pinged[1]

    def _ping(self) -> str | None:
        try:
            with self._classifier.within(_STORE_TIMEOUT_S):
                self._classifier.ping()
        except ZSVecError as exc:
            _log.warning("the store does not answer: %s", exc)
            return "the store does not answer"
        return None


class Metrics(Collector):
    """Totals of a service, for Prometheus and the page *Live*.

    Attributes:
        requests: Number of requests by route and status code.
        seconds: Histogram of the duration of requests in seconds, by route.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._counted_at = float("-inf")
        self._counted: tuple[dict[str, int] | None, int] = (None, 0)
        self._registry = CollectorRegistry()
        self.requests = Counter("zsvec_http_requests", "Requests", ["route", "code"], registry=self._registry)
        self.seconds = Histogram(
            "zsvec_http_request_seconds", "From a request to its answer", ["route"], registry=self._registry
        )
        self._registry.register(self)

    def text(self) -> bytes:
        """Returns all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)

    def codes(self) -> dict[str, int]:
        """Returns the number of responses by status code."""
        codes = Counts[str]()
        for sample in (sample for metric in self.requests.collect() for sample in metric.samples):
            if sample.name.endswith("_total"):
                codes[sample.labels["code"]] += int(sample.value)
        return dict(codes)

    def read_store(self) -> tuple[dict[str, int] | None, int]:
        """Returns the number of references by modality, and the revision of the newest commit.

        If the encoders have different numbers of references, the largest number counts. The store is read at most
        every 15 seconds, with a timeout of two seconds for each request. While the store is unavailable, the previous
        numbers are returned, or ``None`` before the first successful read.
        """
        if time.monotonic() - self._counted_at > _COUNT_INTERVAL_S:
            self._counted_at = time.monotonic()
            classifier = self._work.classifier
            with suppress(ZSVecError), classifier.within(_STORE_TIMEOUT_S):  # other requests report the failure
                self._counted = _counted(classifier.categories()), classifier.revision
        return self._counted

    def collect(
        self,
    ) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | SummaryMetricFamily]:
        """Yields the metrics that the classifier, the store and `Work` count."""
        work, stats = self._work, self._work.classifier.stats
        images = CounterMetricFamily("zsvec_images", "Classified images", labels=["outcome"])
        for outcome, number in work.outcomes.items():
            images.add_metric([outcome], number)
        yield images
        stages = SummaryMetricFamily("zsvec_stage_seconds", "Seconds of a stage, by image or batch", labels=["stage"])
        for stage, spent in stats.busy.items():
            stages.add_metric([stage], count_value=stats.runs[stage], sum_value=spent)
        yield stages
        settled = CounterMetricFamily(
            "zsvec_settled_images", "Images that an encoder settled alone", labels=["encoder"]
        )
        for encoder, number in stats.settled.items():
            settled.add_metric([encoder], number)
        yield settled
        yield GaugeMetricFamily("zsvec_queue_size", "Images that wait or are at work", work.queued)
        sizes = stats.batches
        counts = [(str(float(size)), sum(n for images, n in sizes.items() if images <= size)) for size in _BATCH_SIZES]
        counts.append(("+Inf", sum(sizes.values())))
        images_of_batches = sum(size * n for size, n in sizes.items())
        yield HistogramMetricFamily("zsvec_batch_size", "Images of an encoded batch", counts, images_of_batches)
        counts_by_modality, revision = self.read_store()
        if counts_by_modality is None:
            return
        references = GaugeMetricFamily("zsvec_references", "References of the categories", labels=["modality"])
        for modality, number in counts_by_modality.items():
            references.add_metric([modality], number)
        yield references
        yield GaugeMetricFamily("zsvec_store_revision", "Revision of the newest commit", revision)


def _counted(categories: Sequence[Category]) -> dict[str, int]:
    counts: dict[str, Counts[str]] = {"text": Counts(), "image": Counts()}
    for category in categories:
        for expert, number in category.references.items():
            encoder, modality = encoder_and_modality(expert)
            counts[modality][encoder] += number
    return {modality: max(found.values(), default=0) for modality, found in counts.items()}


@router.api_route("/health/live", methods=["GET", "HEAD"])
async def live() -> Response:
    """Liveness: the process answers."""
    return JSON({"status": "ok"})


@router.api_route("/health/ready", methods=["GET", "HEAD"])
async def ready(request: Request) -> Response:
    """Readiness: the encoders are loaded and the store answers."""
    if problem := await request.app.state.health.problem():
        raise Problem(503, problem)
    return JSON({"status": "ok"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Metrics in the text format of Prometheus."""
    found = await asyncio.to_thread(request.app.state.metrics.text)  # not in `Work`, whose queue may be full
    return Response(found, media_type=CONTENT_TYPE_LATEST)
