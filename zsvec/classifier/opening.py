"""Opens a store together with the encoders that belong to it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import NoReturn

import zsvec.encoders
from zsvec.classifier.facade import Classifier
from zsvec.encoders import Encoder, EncoderSet
from zsvec.encoders.runtimes import lacks_export
from zsvec.encoders.spec import TEMPERATURES, EncoderSpec
from zsvec.errors import (
    EncoderError,
    EncoderMismatchError,
    InvalidInputError,
    MissingExtraError,
    StoreError,
    ZSVecError,
)
from zsvec.settings.settings import Settings
from zsvec.store import Store
from zsvec.types import Modality, expert_name

_SLOW_S = 5.0
_logger = logging.getLogger(__name__)

CANNOT_ENCODE = (EncoderError, EncoderMismatchError, InvalidInputError, MissingExtraError)
"""Errors of a profile that is unknown here, cannot be loaded, or does not belong to the store."""


def open_classifier(
    settings: Settings, *, encoders: Iterable[Encoder] | None = None, runs_encoders: bool = True
) -> Classifier:
    """Opens a classifier with the given encoders, or with the encoders that the settings name.

    Args:
        settings: Settings. Without a profile or encoders, the store decides (`Settings.with_profile_of`).
        encoders: Encoder objects to use instead of the encoders that the settings name.
        runs_encoders: Whether encoders that do not belong to the store are refused at once. If false, there must be a
            store. Such encoders are then refused when an encoder is used, and encoders in Python are imported then.

    Raises:
        InvalidInputError: No profile has this name, or the settings name encoders in Python that do not exist.
        EncoderError: The import of encoders in Python fails.
        EncoderMismatchError: The store was made with other encoders.
        StoreError: There is no store, and `runs_encoders` is false.
        WeightsUnavailableError: The profile is a folder whose exported encoders are missing or damaged.
        StoreLockedError: The embedded store is already open, in this or another process.
        StoreUnavailableError: The server cannot be reached or refuses the key.
    """
    if encoders is None and settings.encoders is not None and runs_encoders:
        encoders = settings.import_encoders()
    own = None if encoders is None else EncoderSet(encoders, batch_size=settings.batch_size)
    if runs_encoders and own is None:
        settings.encoder_specs()  # refuses an unknown profile before the store is opened
    store = settings.open_store()
    try:
        if not runs_encoders and not store.encoders():
            raise StoreError(f"there is no store in {store.location}: check the path, or the URL, and the namespace")
        if own is None and settings.encoders is not None:
            return _without_encoders(store, settings, partial(_import_own, settings, store))
        if own is not None:
            experts = [(encoder.name, modality) for encoder in own for modality in encoder.modalities]
            opened = _classifier(store, settings, lambda: own, experts, {})
            store.check(encoder.name for encoder in own)
            return opened
        try:
            chosen = settings.with_profile_of(store)
            specs = chosen.encoder_specs()
            store.check(specs)
        except CANNOT_ENCODE as exc:
            if runs_encoders:
                raise
            return _without_encoders(store, settings, partial(_refuse, exc))
        experts = [(name, modality) for name, spec in specs.items() for modality in spec.modalities]
        profile = chosen.profile if chosen.profile in chosen.known_profiles() else None
        return _classifier(store, chosen, partial(_load, specs, chosen), experts, specs, profile)
    except ZSVecError:
        store.close()  # an embedded store stays locked while open
        raise


def _without_encoders(store: Store, settings: Settings, load: Callable[[], EncoderSet]) -> Classifier:
    """Opens a classifier by the names that the store remembers. `load` imports the encoders on first use, or raises."""
    store.check(store.encoders())  # other writers may have changed the names
    named = store.profile()
    made_with = settings.known_profiles().get(named or "")
    opened = _classifier(store, settings, load, _experts(store), made_with.encoders if made_with else {})
    if named and made_with is None:  # a calibration would need the temperatures of that profile
        store.after_changes(lambda: None)
    return opened


def _classifier(
    store: Store,
    settings: Settings,
    load: Callable[[], EncoderSet],
    experts: Iterable[tuple[str, Modality]],
    specs: Mapping[str, EncoderSpec],
    profile: str | None = None,
) -> Classifier:
    temperatures = {
        expert_name(name, modality): (specs[name].temperature if name in specs else {}).get(
            modality, TEMPERATURES[modality]
        )
        for name, modality in experts
    }
    prompts = {name: spec.prompt for name, spec in specs.items()}
    return Classifier(store, settings, load_encoders=load, temperatures=temperatures, prompts=prompts, profile=profile)


def _load(specs: Mapping[str, EncoderSpec], settings: Settings) -> EncoderSet:
    begun = time.monotonic()
    found = zsvec.encoders.load_encoders(
        specs,
        device=settings.device,
        dtype=settings.dtype,
        runtime=settings.runtime,
        compiled=settings.compile,
        batch_size=settings.batch_size,
    )
    if time.monotonic() - begun > _SLOW_S and lacks_export(
        specs, device=settings.device, dtype=settings.dtype, runtime=settings.runtime, compiled=settings.compile
    ):
        _advise_export()
    return found


@cache
def _advise_export() -> None:
    """Says once a process that an export would help. Commands offer it themselves, and suppress this."""
    _logger.warning("loading encoders with torch took more than %g s; `zsvec encoders export` shortens that", _SLOW_S)


def _import_own(settings: Settings, store: Store) -> EncoderSet:
    own = EncoderSet(settings.import_encoders(), batch_size=settings.batch_size)
    store.check_fingerprints(own.fingerprints)
    return own


def _refuse(error: ZSVecError) -> NoReturn:
    raise error


def _experts(store: Store) -> list[tuple[str, Modality]]:
    """Returns the experts that have references; both experts of an encoder without references."""
    found = {expert for category in store.all_categories() for expert in category.references}
    experts: list[tuple[str, Modality]] = []
    for name in store.encoders():
        both = [(name, modality) for modality in TEMPERATURES]
        experts += [expert for expert in both if expert_name(*expert) in found] or both
    return experts
