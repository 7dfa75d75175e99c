"""Calibrates a store: on request, and after each change if that is cheap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from zsvec.errors import InvalidInputError, StoreError, shown
from zsvec.ingest.embedding import Vectors
from zsvec.ingest.sampling import left_out_on_server, sample, searched_evidence
from zsvec.method.arrays import Doubles
from zsvec.method.calibrate.coefficients import fit_scale, scaled
from zsvec.method.calibrate.fit import (
    FALSE_UNKNOWN_RATE,
    CalibrationReport,
    LabelSettings,
    Quality,
    fit_calibration,
    fit_sample,
    holds,
    quality,
    quality_of,
)
from zsvec.method.calibrate.leave_one_out import LeftOut, largest_sample
from zsvec.method.calibration import Calibration, LogLinear, uncalibrated
from zsvec.method.predict.background import FEWEST
from zsvec.method.predict.cascade import CASCADED
from zsvec.method.predict.fusion import STRATEGIES, strategy_to_run
from zsvec.method.predict.logits import softmax
from zsvec.method.predict.opinion_pool import pooled_evidence
from zsvec.method.quality.label_errors import Suspect, Verdict, judge, suspects, verdicts
from zsvec.method.similarities import References, category_names, image_experts
from zsvec.search.searcher import Searcher
from zsvec.settings.settings import Settings
from zsvec.store import Census, Store
from zsvec.types import encoder_and_modality

_CHEAP = 2 * 10**10  # most multiplications of an automatic calibration: about half a second on two cores
_RARE = 5 * _CHEAP  # most multiplications for backgrounds, valid until the number of references changes by a tenth
_FITTING = 20_000  # multiplications that fitting takes per image, category and aggregation


class Calibrator:
    """Calibrates a store from its references, and stores the calibration.

    `temperatures` maps each expert in use to the default divisor of its similarities. The default applies if the
    references do not suffice to learn a divisor.
    """

    def __init__(self, store: Store, searcher: Searcher, settings: Settings, temperatures: Mapping[str, float]) -> None:
        self._store = store
        self._searcher = searcher
        self._census = Census(store)
        self._temperatures = temperatures
        self._aggregation = settings.aggregation
        self._top_m = settings.top_m
        self._strategy = settings.fusion
        self._fusion = STRATEGIES[settings.fusion]
        self._neighbors = settings.neighbors
        self._budget = math.inf if settings.index == "memory" else settings.index_budget
        self._automatic = settings.calibration == "auto"
        self._cascade = settings.fusion if settings.cascade == "auto" and settings.fusion in CASCADED else None
        self._wanted_rate = settings.false_unknown_rate
        self._label_rate = settings.label_false_positive_rate

    @property
    def false_unknown_rate(self) -> float:
        """The default target rate: the setting, else the rate of the stored calibration, else `FALSE_UNKNOWN_RATE`."""
        present = self.present()
        return self._wanted_rate or (present.false_unknown_rate if present else FALSE_UNKNOWN_RATE)

    def _labels(self) -> LabelSettings | None:
        """Returns how to learn labels; ``None`` if an image belongs to one category."""
        if self._store.labels() == "one":
            return None
        present = self.present()
        stored = present.plain.labels if present else None
        rate = self._label_rate if self._label_rate is not None else stored and stored.false_positive_rate
        return LabelSettings(rate or None)

    @property
    def exceeds_budget(self) -> bool:
        """Whether the store is too large to read, so that a sample of its references stands for all."""
        return sum(self._census.update()[1].values()) > self._budget

    @property
    def revision(self) -> int:
        """Largest ``rev`` of a commit, removals included; 0 without a commit."""
        return self._census.update()[2]

    def calibrate(
        self, false_unknown_rate: float | None = None, labelled: tuple[Sequence[str], Vectors] | None = None
    ) -> CalibrationReport:
        """Calibrates as `zsvec.classifier.Classifier.calibrate`; `labelled` is a pair of categories and image vectors.

        Labelled images set the scale of the evidence. A call without labelled images resets the scale to 1.
        `calibrate_if_cheap` does not change the scale.
        """
        rate = self.false_unknown_rate if false_unknown_rate is None else false_unknown_rate
        if not (isinstance(rate, Real) and 0 < rate < 1):
            raise InvalidInputError(f"false_unknown_rate must be between 0 and 1. Got {shown(rate)} instead")
        former = self.present()
        if self._aggregation != "prototype" and self.exceeds_budget:
            return self._calibrate_sample(rate, former, labelled)
        attached = self._store.attached_parts().digest
        references, revision = self._references()
        made = self._fit(references, revision, rate)
        if made is None:
            raise self._impossible()
        calibration, sample = replace(made[0], attached=attached), made[1]
        by_label: tuple[Quality, ...] = ()
        if labelled is not None:
            calibration, *by_label = self._scaled(references, calibration, *labelled)
        self._keep(calibration)
        before = uncalibrated({expert: self._temperatures[expert] for expert in sample.aggregations}, self._aggregation)
        if former is not None and former.fits(sample.aggregations, self._aggregation, self._top_m):
            comparable = former.backgrounds.keys() <= calibration.backgrounds.keys()
            before = self._pool(former) if comparable else former.aggregations
        after = self._pool(calibration)
        return CalibrationReport(
            calibration,
            quality(before, sample),
            quality(after, sample),
            self.suspects(references, verdicts(references, calibration, sample)),
            *by_label,
            notes=self._notes(calibration, former, references),
        )

    def _calibrate_sample(
        self, rate: float, former: Calibration | None, labelled: tuple[Sequence[str], Vectors] | None
    ) -> CalibrationReport:
        """Calibrates a store that is searched in Qdrant, from a sample of its images.

        The sample is scored by the search that classifies, so that similarities are distributed as those of new images.
        """
        _, counted, revision = self._census.update()
        categories = [category for category in self._store.all_categories() if category.rev <= revision]
        attached = self._store.attached_parts().digest
        chosen = sample(self._store, categories, self._temperatures, largest_sample(len(categories)))
        how = (self._aggregation, self._top_m)
        labels = self._labels()
        left_out = left_out_on_server(
            self._searcher, chosen, self._temperatures, *how, self._neighbors, multilabel=labels is not None
        )
        if left_out is None:
            raise self._impossible()
        calibration = fit_sample(
            left_out,
            self._temperatures,
            revision=revision,
            aggregation=self._aggregation,
            top_m=self._top_m,
            false_unknown_rate=rate,
            labels=labels,
            cascade=self._cascade and "log_linear",
        )
        calibration = replace(calibration, attached=attached)
        labelled_before = labelled_after = None
        if labelled is not None:
            names, vectors = labelled
            self.check_labels(names)
            pool = calibration.aggregations
            found, evidence = searched_evidence(self._searcher, vectors, self._temperatures, pool, self._top_m)
            truth = np.searchsorted(found, names)
            calibration, labelled_before, labelled_after = _scaled(calibration, evidence, truth)
        self._keep(calibration)
        experts = left_out.aggregations
        before = uncalibrated({expert: self._temperatures[expert] for expert in experts}, self._aggregation)
        if former is not None and former.fits(experts, *how):
            before = former.plain
        runs = strategy_to_run(self._strategy, exact=False)
        note = (
            f"learned from a sample, because the store has {sum(counted.values()):,} references and index_budget is "
            f"{self._budget:,}"
        )
        if runs != self._strategy:
            note += f"; {runs} runs, because {self._strategy} compares every reference"
        after = quality(calibration.plain, left_out)
        return CalibrationReport(
            calibration,
            quality(before, left_out),
            after,
            labelled_before=labelled_before,
            labelled_after=labelled_after,
            notes=[note, *self._notes(calibration, former, {})],
        )

    def _too_large(self, references: Mapping[str, int]) -> bool:
        """Returns whether Qdrant searches a store with these numbers of references, without reading all of them."""
        return self._aggregation != "prototype" and sum(references.values()) > self._budget

    def _impossible(self) -> StoreError:
        """Clears the stored calibration if the store can no longer be calibrated, and returns the error."""
        self._keep(None)
        return StoreError(
            f"{self._store.location} cannot be calibrated: that takes two categories and a reference image"
        )

    def _notes(self, made: Calibration, former: Calibration | None, references: Mapping[str, References]) -> list[str]:
        notes = []
        if self._fusion.classwise and made.multilabel:
            notes.append("log_linear_views runs: log_linear_gda assumes that an image belongs to one category")
        elif self._fusion.classwise and made.classwise is None and references:
            notes.append(
                "log_linear_views runs: log_linear_gda takes images of most categories, of one at least "
                f"{FEWEST} and of another 2 that are not one scene"
            )
        if former is not None and former.scale != 1 == made.scale:
            notes.append(
                f"the scale {former.scale:.2f} learned from labelled images was reset to 1: learn it again by "
                "clf.calibrate(labelled=…)"
            )
        if former is not None and _determinants(former) == _determinants(made):
            notes.append("the calibration was already current: nothing has changed")
        return notes

    def check_labels(self, names: Sequence[str], references: Mapping[str, References] | None = None) -> None:
        """Raises InvalidInputError for a label that is not a category of `references` or, by default, of the store."""
        if references is None:
            used = self._temperatures.keys()
            known = [category.name for category in self._store.all_categories() if used & category.references.keys()]
        else:
            known = category_names(references)
        if unknown := sorted(set(names) - set(known)):
            raise InvalidInputError(
                f"labelled images are of categories that {self._store.location} does not have: "
                f"{', '.join(map(repr, unknown[:5]))}{' …' if unknown[5:] else ''}; add these, or leave the images out"
            )

    def _scaled(
        self, references: Mapping[str, References], calibration: Calibration, names: Sequence[str], vectors: Vectors
    ) -> tuple[Calibration, Quality, Quality]:
        """Returns a calibration scaled to labelled images, and the quality on the images before and after scaling."""
        self.check_labels(names, references)
        pool = self._pool(calibration)
        categories, evidence = pooled_evidence(references, vectors, pool, calibration)
        return _scaled(calibration, evidence, np.searchsorted(categories, names))

    def _pool(self, calibration: Calibration) -> LogLinear:
        """Returns the opinion pool that applies if a query is compared with all references."""
        return (calibration.classwise if self._fusion.classwise else None) or calibration.aggregations

    def verdicts(self, references: Mapping[str, References]) -> list[Verdict] | None:
        """Returns a verdict on the category of each reference image; ``None`` if no fitting calibration is stored."""
        present = self.present()
        if present is None or not present.fits(references, self._aggregation, self._top_m):
            return None
        return judge(references, present)

    def suspects(self, references: Mapping[str, References], verdicts: Sequence[Verdict]) -> list[Suspect]:
        """Returns the probable label errors by these verdicts, without the ones that a user has kept."""
        is_kept = self._store.kept()
        return [one for one in suspects(references, verdicts) if not is_kept("label", one.category, one.hash)]

    def references(self) -> dict[str, References]:
        """Returns the references by expert in use, read from the store."""
        return self._references()[0]

    def calibrate_if_cheap(self) -> None:
        """Calibrates after a change if that is cheap; otherwise, the stored calibration becomes stale.

        The store calls this function once after each change. A stored calibration for another aggregation is not
        replaced.
        """
        if not self._automatic:
            return
        # The write is already committed. If calibration fails, the stored calibration only becomes stale.
        with suppress(StoreError):
            present = self.present()
            categories, counted, revision = self._census.update()
            references = {expert: n for expert, n in counted.items() if expert in self._temperatures}
            many = self._store.labels() == "many"
            for_others = present is not None and not present.fits((), self._aggregation, self._top_m)
            attached = self._store.attached_parts().digest
            of_these = present is not None and (present.attached, present.multilabel) == (attached, many)
            current = of_these and present is not None and present.revision >= revision
            if not for_others and not current and self._cheap(categories, references, present):
                scale = present.scale if present else 1.0  # learned from images that are not stored
                former = present and scaled(present, 1 / scale)
                made = self._fit(*self._references(), self.false_unknown_rate, former)
                now = self.present()
                newer = (
                    now is not None
                    and made is not None
                    and now.multilabel == made[0].multilabel
                    and (
                        now.revision > made[0].revision or (now.revision, now.attached) == (made[0].revision, attached)
                    )
                )
                if not newer:  # another process may have calibrated meanwhile
                    self._keep(made and replace(scaled(made[0], scale), attached=attached))

    def fitted(self) -> tuple[Calibration, LeftOut] | None:
        """Returns a calibration and its training data without storing them; ``None`` if calibration is impossible."""
        return self._fit(*self._references(), self.false_unknown_rate)

    def _references(self) -> tuple[dict[str, References], int]:
        references, revision = self._searcher.references()
        return {expert: found for expert, found in references.items() if expert in self._temperatures}, revision

    def _fit(
        self,
        references: Mapping[str, References],
        revision: int,
        false_unknown_rate: float,
        former: Calibration | None = None,
    ) -> tuple[Calibration, LeftOut] | None:
        return fit_calibration(
            references,
            self._temperatures,
            revision=revision,
            aggregation=self._aggregation,
            top_m=self._top_m,
            false_unknown_rate=false_unknown_rate,
            former=former,
            labels=self._labels(),
            cascade=self._cascade,
        )

    def _keep(self, calibration: Calibration | None) -> None:
        """Stores a calibration; ``None`` clears the stored calibration if the store can no longer be calibrated."""
        if calibration is not None:
            self._store.keep_calibration(calibration.to_dict())
        elif self._store.calibration():
            categories, references, _ = self._census.update()  # of all experts, not only those in use
            if categories < 2 or not image_experts(references):
                self._store.keep_calibration({})

    def has_settings(self) -> bool:
        """Returns whether the stored calibration was learned with these settings; False without one.

        The cascade does not count, because a store may be too small to learn one.
        """
        made, labels = self.present(), self._labels()
        if made is None or not made.fits((), self._aggregation, self._top_m):
            return False
        learned = made.plain.labels
        return (
            made.false_unknown_rate == self.false_unknown_rate
            and made.multilabel == (labels is not None)
            and (learned is None or labels is None or learned.false_positive_rate == labels.false_positive_rate)
        )

    def present(self) -> Calibration | None:
        """Returns the stored calibration; ``None`` without one, or if the record is damaged."""
        return Calibration.from_dict(self._store.calibration())

    def _cheap(self, categories: int, references: Mapping[str, int], former: Calibration | None) -> bool:
        """Returns whether calibration takes few multiplications. Backgrounds have a separate limit (`_RARE`)."""
        if self._too_large(references):
            return False
        dims = {name: fingerprint.dim for name, fingerprint in self._store.encoders().items()}
        dim = {expert: dims[encoder_and_modality(expert)[0]] for expert in references}
        images = min(max(references.values(), default=0), largest_sample(categories))
        products = sum(images * n * dim[expert] for expert, n in references.items())
        of_means = 0
        if not (former and holds(former, references)):
            of_means = sum(_background_cost(n, dim[e], images) for e, n in image_experts(references).items())
        return products + images * categories * 2 * len(references) * _FITTING <= _CHEAP and of_means <= _RARE


def _scaled(
    calibration: Calibration, evidence: Doubles, truth: NDArray[np.intp]
) -> tuple[Calibration, Quality, Quality]:
    """Returns a calibration scaled to labelled images, and the quality on the images before and after scaling."""
    factor = fit_scale(evidence, truth)
    before, after = (quality_of(softmax(times * evidence), truth) for times in (1.0, factor))
    return scaled(calibration, factor), before, after


def _determinants(made: Calibration) -> tuple[object, ...]:
    """Returns the values by which calibrations are compared. Fitted numbers are left out: the store rounds them."""
    labels = made.aggregations.labels
    return (
        made.revision,
        made.attached,
        made.multilabel,
        labels and labels.false_positive_rate,
        sorted(made.cascade),
        made.false_unknown_rate,
        made.aggregation,
        made.top_m,
        made.scale == 1,
        sorted(made.experts),
        sorted(made.backgrounds),
    )


def _background_cost(n: int, dim: int, images: int) -> int:
    """Returns the multiplications for a scatter matrix, its decomposition, and leaving images out."""
    rank = min(n, dim)
    return n * dim * rank + 10 * rank**3 + 3 * images * dim * rank
