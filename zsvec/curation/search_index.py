"""The index that a Qdrant server has of the references: builds it, and measures how well searches find references."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from zsvec.errors import InvalidInputError, StoreError, StoreUnavailableError, shown
from zsvec.ingest.embedding import Vectors
from zsvec.ingest.sampling import Sample, in_use, sample
from zsvec.method.arrays import Key
from zsvec.method.calibrate.leave_one_out import LeftOut, left_out_of_search
from zsvec.method.calibration import Calibration, LogLinear, uncalibrated
from zsvec.method.predict.opinion_pool import expert_evidence, log_linear
from zsvec.method.similarities import SearchResult
from zsvec.search.base import Change, Incomplete
from zsvec.search.qdrant_index import QdrantSnapshot
from zsvec.settings.settings import Settings
from zsvec.store import EXACT, Store
from zsvec.types import (
    MAX_EF,
    MAX_OVERSAMPLING,
    Neighbor,
    SearchMeasurement,
    SearchParams,
    SearchQuality,
)

GRAPH_FROM = 1_000_000
"""Number of references of one expert from which `SearchIndex.optimize` builds an HNSW graph by itself."""
OVERSAMPLING = 2.0
"""Default oversampling. Scans of int8 vectors with this oversampling found every reference in our measurements."""
EF = 512
"""Default `SearchParams.ef` of a graph: `OVERSAMPLING` times the default `Settings.neighbors`."""

_OVERSAMPLINGS = (1.0, 2.0, 4.0)
_EFS = (1, 2, 4)  # times the number of references that a query returns
_ROUNDING = 1e-6  # of a cosine


class SearchIndex:
    """The index of a store on a Qdrant server, used for stores with more than `Settings.index_budget` references.

    Args:
        store: The store.
        settings: Settings of the search.
        temperatures: By expert in use, the temperature that divides similarities without a calibration.
    """

    def __init__(self, store: Store, settings: Settings, temperatures: Mapping[str, float]) -> None:
        self._store = store
        self._settings = settings
        self._temperatures = temperatures

    @property
    def params(self) -> SearchParams:
        """How the server searches now. Every process reads this before each batch."""
        return self._store.search_params()

    @property
    def measurement(self) -> SearchMeasurement | None:
        """The last measurement, of any process, or ``None``."""
        return self._store.search_measurement()

    def optimize(
        self,
        *,
        exact: bool = False,
        oversampling: float | None = None,
        ef: int | None = None,
        on_progress: Callable[[str, float], None] = lambda encoder, share: None,
    ) -> SearchParams:
        """Builds the index of the references on the server, and makes every process search it from the next batch on.

        The server keeps the float32 vectors, and adds int8 copies. An HNSW graph is added from a million references
        of one expert on, or if `ef` is given. Readers and writers go on meanwhile. A repeated call continues an
        interrupted one, or changes the given parameters only.

        Args:
            exact: Whether to remove the index, so that the server compares every reference in float32 again.
            oversampling: Candidates for each returned reference, 1 to 64; by default as now, or 2.
            ef: Candidates that the search of the graph keeps, 1 to 65,536; by default as now, or 512 for a new graph.
                Qdrant keeps at least ``oversampling`` times `Settings.neighbors`.
            on_progress: Called about once a second with an encoder, and the finished share of its index, 0 to 1.

        Returns:
            The parameters of searches from now on.

        Raises:
            InvalidInputError: The store is not on a server, or a number is out of its range.
            StoreError: There is no store, or the server cannot build the index.
        """
        params = self._chosen(exact=exact, oversampling=oversampling, ef=ef)
        for encoder, share in self._store.optimize(params):
            on_progress(encoder, share)
        return params

    def _chosen(self, *, exact: bool, oversampling: float | None, ef: int | None) -> SearchParams:
        if exact:
            if oversampling is not None or ef is not None:
                raise InvalidInputError("exact must be alone. Got oversampling or ef, too")
            return EXACT
        for name, value, most in (("oversampling", oversampling, MAX_OVERSAMPLING), ("ef", ef, MAX_EF)):
            fits = value is None or (isinstance(value, int if name == "ef" else int | float) and 1 <= value <= most)
            if not fits or isinstance(value, bool):
                raise InvalidInputError(f"{name} must be a number from 1 to {most:,}. Got {shown(value)} instead")
        now = self.params
        sizes: Counter[str] = Counter()
        for category in self._store.categories():
            sizes.update(category.references)
        by_size = EF if max(sizes.values(), default=0) >= GRAPH_FROM else None
        return SearchParams(
            oversampling=round(float(oversampling or now.oversampling or OVERSAMPLING), 3), ef=ef or now.ef or by_size
        )

    def measure(
        self, images: int = 512, *, on_progress: Callable[[int, int], None] = lambda done, images: None
    ) -> SearchMeasurement:
        """Measures recall, labels and speed of searches with several parameters, and stores the result.

        Stored reference images are searched, each without itself. If the index has a graph, several values of `ef` are
        tried. Labels are those of log-linear fusion.

        Args:
            images: Number of reference images, evenly from the categories; at least 1.
            on_progress: Called at the start and after each batch with the number of searched images, and of all images.

        Raises:
            InvalidInputError: `images` is not a positive integer.
            StoreError: There is no index, or no image has a vector of every image expert and a second category to be
                compared with.
            StoreUnavailableError: The store changed too much during the measurement.
        """
        if not isinstance(images, int) or isinstance(images, bool) or images < 1:
            raise InvalidInputError(f"images must be a positive integer. Got {shown(images)} instead")
        now, categories = self.params, self._store.categories()
        if now.exact:  # a server without an index answers every setting by an exact search
            raise StoreError(f"there is no index of {self._store.location} to measure: build one with `zsvec optimize`")
        chosen = sample(self._store, categories, self._temperatures, images)
        if not chosen.images or len(categories) < 2:
            raise StoreError(
                f"the search of {self._store.location} cannot be measured: that takes two categories and reference "
                "images"
            )
        k = self._settings.neighbors
        snapshot, _ = QdrantSnapshot(self._store, k + 1, False).updated(  # one more, since an image finds itself
            {category.name: category for category in categories}, [Change(None, category) for category in categories]
        )
        grid = _grid(now, k)
        try:
            return self._measured(chosen, {params: replace(snapshot, params=params) for params in grid}, k, on_progress)
        except Incomplete as exc:
            raise StoreUnavailableError(
                f"categories of {self._store.location} were replaced during the measurement: try again when it is less "
                "busy"
            ) from exc

    def _measured(
        self,
        chosen: Sample,
        snapshots: Mapping[SearchParams, QdrantSnapshot],
        k: int,
        on_progress: Callable[[int, int], None],
    ) -> SearchMeasurement:
        recall: dict[SearchParams, list[float]] = {params: [] for params in snapshots}
        same: dict[SearchParams, list[bool]] = {params: [] for params in snapshots}
        ms: dict[SearchParams, list[float]] = {params: [] for params in snapshots}
        calibration, done = Calibration.from_dict(self._store.calibration()), 0
        on_progress(done, len(chosen.images))
        for number, (images, vectors) in enumerate(chosen.blocks()):
            exact: tuple[SearchResult, NDArray[np.intp]] | None = None
            for params, snapshot in snapshots.items():
                if number == 0:  # reads vectors from the disk, and opens connections
                    self._search(snapshot, vectors)
                begun = time.perf_counter()
                found = self._search(snapshot, vectors)
                ms[params].append(1000 * (time.perf_counter() - begun) / len(images))
                labels = self._labels(found, images, chosen, calibration)
                exact = exact or (found, labels)
                recall[params] += _recalls(found, exact[0], images, k)
                known = (labels >= 0) & (exact[1] >= 0)
                same[params] += (labels == exact[1])[known].tolist()
            done += len(images)
            on_progress(done, len(chosen.images))
        rows = [
            SearchQuality(
                params=params,
                recall=round(float(np.mean(recall[params] or 1.0)), 6),
                same_label=round(float(np.mean(same[params] or 1.0)), 6),
                ms=round(float(np.median(ms[params])), 4),
            )
            for params in snapshots
        ]
        measured = datetime.now(UTC).replace(microsecond=0)
        measurement = SearchMeasurement(measured=measured, images=done, k=k, rows=tuple(rows))
        self._store.keep_search_measurement(measurement)
        return measurement

    def _search(self, snapshot: QdrantSnapshot, vectors: Vectors) -> SearchResult:
        names, experts = snapshot.search(vectors, snapshot.limit, lambda: snapshot)
        return in_use(SearchResult(names, experts, vectors), self._temperatures)

    def _labels(
        self, found: SearchResult, images: Sequence[Key], chosen: Sample, calibration: Calibration | None
    ) -> NDArray[np.intp]:
        """Returns the most probable category of each image without itself; -1 if no other reference is there."""
        aggregation, top_m = self._settings.aggregation, self._settings.top_m
        how = "max" if aggregation == "prototype" else aggregation
        left_out = left_out_of_search(found, images, chosen.groups, how, top_m)
        pool = _pool(calibration, left_out, how, top_m, self._temperatures)
        evidence = expert_evidence(pool.coefficients, left_out.aggregations)
        complete = left_out.complete(evidence)
        labels = np.full(len(images), -1, dtype=np.intp)
        if complete.any():
            labels[complete] = log_linear(evidence[:, complete], list(left_out.aggregations), pool.neutral).argmax(
                axis=1
            )
        return labels


def _grid(now: SearchParams, k: int) -> list[SearchParams]:
    """Returns the settings to try: exact search, those around the index that is there, and the present ones."""
    efs = [None] if now.ef is None else sorted({now.ef, *(min(times * k, MAX_EF) for times in _EFS)})
    some = {SearchParams(oversampling=times, ef=ef) for times in _OVERSAMPLINGS for ef in efs}
    ordered = sorted({*some, now}, key=lambda params: (params.ef or 0, params.oversampling))
    return [EXACT, *ordered]


def _pool(
    calibration: Calibration | None, left_out: LeftOut, aggregation: str, top_m: int, temperatures: Mapping[str, float]
) -> LogLinear:
    experts = left_out.aggregations
    if calibration is not None and calibration.fits(experts, aggregation, top_m):
        return calibration.plain
    return uncalibrated({expert: temperatures[expert] for expert in experts}, aggregation)


def _recalls(found: SearchResult, exact: SearchResult, images: Sequence[Key], k: int) -> list[float]:
    """Returns, for each image and expert, the share of the `k` nearest other references that a search has found.

    A reference counts if it is as similar as the k-th by exact search, so the order of equal ones does not matter.
    Experts with so few references that every search compares all of them are left out.
    """
    recalls = []
    for some, every in zip(found.experts, exact.experts, strict=True):
        if int(some.similarities.counts.sum()) <= k + 1:
            continue
        for key, near, nearest in zip(images, some.nearest, every.nearest, strict=True):
            least = _others(nearest, key)[:k][-1] - _ROUNDING
            recalls.append(sum(similarity >= least for similarity in _others(near, key)[:k]) / k)
    return recalls


def _others(nearest: Sequence[Neighbor], key: Key) -> list[float]:
    """Returns the similarities of an image to references, without the image itself."""
    return [one.similarity for one in nearest if (one.category, one.hash) != key]
