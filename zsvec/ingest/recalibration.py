"""When a store is calibrated again: after a change while that is cheap, and when somebody asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from numbers import Real

import numpy as np

from zsvec.errors import InvalidInputError, StoreError, shown
from zsvec.ingest.embedding import Vectors
from zsvec.method.calibrate.fit import (
    FALSE_UNKNOWN_RATE,
    CalibrationReport,
    Quality,
    fit_calibration,
    holds,
    largest_sample,
    quality,
    quality_of,
)
from zsvec.method.calibrate.leave_one_out import LeftOut
from zsvec.method.calibrate.scale import fit_scale, scaled
from zsvec.method.calibration import Calibration, LogLinear, uncalibrated
from zsvec.method.predict.background import FEWEST
from zsvec.method.predict.fusion import STRATEGIES
from zsvec.method.predict.logits import softmax
from zsvec.method.predict.pooled import pooled_evidence
from zsvec.method.quality.judgement import judge
from zsvec.method.quality.suspects import Suspect, Verdict, suspects, verdicts
from zsvec.method.similarities import References, category_names, image_experts
from zsvec.search.searcher import Searcher
from zsvec.settings.settings import Settings
from zsvec.store import Census, Store
from zsvec.types import encoder_and_modality

_CHEAP = 2 * 10**10  # multiplications: some half a second on two cores
_RARE = 5 * _CHEAP  # that the backgrounds may cost, since they are learned once a tenth of the references is new
_FITTING = 20_000  # multiplications that fitting costs for each image, category and aggregation


class Calibrator:
    """Calibrates a store from its references and keeps the calibration with it.

    Args:
        store: To calibrate.
        searcher: Of the store; gives the references.
        settings: Say what to calibrate for, and whether `calibrate_if_cheap` calibrates.
        temperatures: By expert, taken where there is nothing to learn from. Other experts are left out.
    """

    def __init__(self, store: Store, searcher: Searcher, settings: Settings, temperatures: Mapping[str, float]) -> None:
        self._store = store
        self._searcher = searcher
        self._census = Census(store)
        self._temperatures = temperatures
        self._aggregation = settings.aggregation
        self._top_m = settings.top_m
        self._fusion = STRATEGIES[settings.fusion]
        self._automatic = settings.calibration == "auto"
        self._wanted_rate = settings.false_unknown_rate

    @property
    def false_unknown_rate(self) -> float:
        """The target rate of a calibration for which no other is given."""
        present = self._present()
        return self._wanted_rate or (present.false_unknown_rate if present else FALSE_UNKNOWN_RATE)

    def calibrate(
        self, false_unknown_rate: float | None = None, labelled: tuple[Sequence[str], Vectors] | None = None
    ) -> CalibrationReport:
        """Calibrate now, whatever it costs, and keep it.

        Args:
            false_unknown_rate: Between 0 and 1; by default the property of this name.
            labelled: Categories of images, at least one, and their vectors: how sure to be of such images is learned
                from them, and kept by `calibrate_if_cheap`. Without any, it is as the references say.

        Raises:
            InvalidInputError: `false_unknown_rate` is not between 0 and 1, or an image is of no category of the store.
            StoreError: There are no two categories, or no reference image.
        """
        rate = self.false_unknown_rate if false_unknown_rate is None else false_unknown_rate
        if not (isinstance(rate, Real) and 0 < rate < 1):
            raise InvalidInputError(f"false_unknown_rate must be between 0 and 1. Got {shown(rate)} instead")
        former = self._present()
        references, revision = self._references()
        made = self._fit(references, revision, rate)
        if made is None:
            self._keep(None)
            raise StoreError(
                f"{self._store.location} cannot be calibrated: that takes two categories and a reference image"
            )
        calibration, sample = made
        by_label: tuple[Quality, ...] = ()
        if labelled is not None:
            calibration, *by_label = self._scaled(references, calibration, *labelled)
        self._keep(calibration)
        before = uncalibrated({expert: self._temperatures[expert] for expert in sample.aggregations}, self._aggregation)
        if former is not None and former.fits(sample.aggregations, self._aggregation, self._top_m):
            before = self._pool(former) if calibration.classwise else former.aggregations
        after = self._pool(calibration)
        doubtful = suspects(references, verdicts(references, calibration, sample))
        return CalibrationReport(
            calibration,
            quality(before, sample),
            quality(after, sample),
            doubtful,
            *by_label,
            notes=tuple(self._notes(calibration, former, references)),
        )

    def _notes(
        self, made: Calibration, former: Calibration | None, references: Mapping[str, References]
    ) -> Iterator[str]:
        """As `CalibrationReport.notes`."""
        counts = [dict(zip(r.names, np.diff(r.starts), strict=True)) for r in image_experts(references).values()]
        names = category_names(references)
        few = [name for name in names if min((images.get(name, 0) for images in counts), default=0) < FEWEST]
        if self._fusion.classwise and made.classwise is None and few:
            others = f" and {len(few) - 1} more have" if len(few) > 1 else " has"
            yield (
                f"log_linear_views runs: log_linear_gda takes {FEWEST} images of each category, "
                f"{few[0]!r}{others} fewer"
            )
        if former is not None and former.scale != 1 == made.scale:
            yield (
                f"labelled images had scaled the evidence by {former.scale:.2f}; it is as the references say again: "
                "clf.calibrate(labelled=…) learns from such images"
            )
        if former is not None and _learned_from(former) == _learned_from(made):
            yield "the calibration was already current: nothing has changed"

    def check_labels(self, names: Sequence[str]) -> None:
        """Raise InvalidInputError where a label is no category of the store."""
        self._check_labels(names, self.references())

    def _check_labels(self, names: Sequence[str], references: Mapping[str, References]) -> None:
        if unknown := sorted(set(names) - set(category_names(references))):
            raise InvalidInputError(
                f"labelled images are of categories that {self._store.location} does not have: "
                f"{', '.join(map(repr, unknown[:5]))}{' …' if unknown[5:] else ''}; add these, or leave the images out"
            )

    def _scaled(
        self, references: Mapping[str, References], calibration: Calibration, names: Sequence[str], vectors: Vectors
    ) -> tuple[Calibration, Quality, Quality]:
        """A calibration for images such as these, and how good it is on them before and after."""
        self._check_labels(names, references)
        pool = self._pool(calibration)
        categories, evidence = pooled_evidence(references, vectors, pool, calibration)
        truth = np.searchsorted(categories, names)
        factor = fit_scale(evidence, truth)
        before, after = (quality_of(softmax(times * evidence), truth) for times in (1.0, factor))
        return scaled(calibration, factor), before, after

    def _pool(self, calibration: Calibration) -> LogLinear:
        """The one that images are classified by, if every reference is compared."""
        return (calibration.classwise if self._fusion.classwise else None) or calibration.aggregations

    def suspects(self) -> list[Suspect]:
        """All reference images that are probably under a wrong category, by the present calibration.

        Raises:
            StoreError: There is no calibration for these experts and this aggregation.
        """
        references = self.references()
        said = self.verdicts(references)
        if said is None:
            raise StoreError(
                f"{self._store.location} has no calibration that says how often a label is wrong: calibrate it with "
                "`zsvec calibrate` or clf.calibrate()"
            )
        return suspects(references, said)

    def verdicts(self, references: Mapping[str, References]) -> list[Verdict] | None:
        """What the present calibration says of the categories of all reference images.

        Args:
            references: From `references`.

        Returns:
            ``None`` where there is no calibration for these experts and this aggregation.
        """
        present = self._present()
        if present is None or not present.fits(references, self._aggregation, self._top_m):
            return None
        return judge(references, present)

    def references(self) -> dict[str, References]:
        """The references of the experts in use, read from the store."""
        return self._references()[0]

    def calibrate_if_cheap(self) -> None:
        """Calibrate after a change if that is cheap and the stored calibration is outdated; else it turns stale.

        A calibration for another aggregation stays.
        """
        if not self._automatic:
            return
        # The write is committed: if calibration fails, the stored one just becomes stale.
        with suppress(StoreError):
            present = self._present()
            categories, counted, revision = self._census.update()
            references = {expert: n for expert, n in counted.items() if expert in self._temperatures}
            for_others = present is not None and not present.fits((), self._aggregation, self._top_m)
            current = present is not None and present.revision >= revision
            if not for_others and not current and self._cheap(categories, references, present):
                scale = present.scale if present else 1.0  # learned from images that are not here any more
                former = present and scaled(present, 1 / scale)
                made = self._fit(*self._references(), self.false_unknown_rate, former)
                now = self._present()
                if made is None or now is None or now.revision < made[0].revision:  # else somebody has, meanwhile
                    self._keep(made and scaled(made[0], scale))

    def fitted(self, false_unknown_rate: float | None = None) -> tuple[Calibration, LeftOut] | None:
        """What a calibration would be now, and what it is learned from; nothing is kept.

        Args:
            false_unknown_rate: Between 0 and 1; by default the property of this name.

        Returns:
            ``None`` where there are no two categories, or no reference image.
        """
        return self._fit(*self._references(), false_unknown_rate or self.false_unknown_rate)

    def _references(self) -> tuple[dict[str, References], int]:
        """The references of the experts in use, and the largest ``rev`` of their categories."""
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
        )

    def _keep(self, calibration: Calibration | None) -> None:
        """Keep a calibration with the store; none, where the store cannot be calibrated any more."""
        if calibration is not None:
            self._store.keep_calibration(calibration.to_dict())
        elif self._store.calibration() and not self._calibratable():
            self._store.keep_calibration({})  # it is of categories that are gone

    def _calibratable(self) -> bool:
        """Whether a process with other experts could calibrate the store."""
        categories, references, _ = self._census.update()
        return categories > 1 and bool(image_experts(references))

    def _present(self) -> Calibration | None:
        return Calibration.from_dict(self._store.calibration())

    def _cheap(self, categories: int, references: Mapping[str, int], former: Calibration | None) -> bool:
        """Whether there are few multiplications: products of images and references, steps of fitting, backgrounds."""
        dims = {name: fingerprint.dim for name, fingerprint in self._store.encoders().items()}
        dim = {expert: dims[encoder_and_modality(expert)[0]] for expert in references}
        images = min(max(references.values(), default=0), largest_sample(categories))
        products = sum(images * n * dim[expert] for expert, n in references.items())
        of_means = 0
        if not (former and holds(former, references)):
            of_means = sum(_background_cost(n, dim[e], images) for e, n in image_experts(references).items())
        return products + images * categories * 2 * len(references) * _FITTING <= _CHEAP and of_means <= _RARE


def _learned_from(made: Calibration) -> tuple[object, ...]:
    """What decides a calibration; its numbers come back from a store with other last digits."""
    return (
        made.revision,
        made.false_unknown_rate,
        made.aggregation,
        made.top_m,
        made.scale == 1,
        sorted(made.experts),
        sorted(made.backgrounds),
    )


def _background_cost(n: int, dim: int, images: int) -> int:
    """Multiplications of the scatter, of taking it apart, and of leaving images out of it."""
    rank = min(n, dim)
    return n * dim * rank + 10 * rank**3 + 3 * images * dim * rank
