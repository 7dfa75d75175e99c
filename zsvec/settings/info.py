"""What there is to say of a store and of the encoders in use, as one object."""

from __future__ import annotations

from typing import Any

from zsvec.encoders.cache import measured
from zsvec.errors import ZSVecError
from zsvec.settings.settings import Settings
from zsvec.store import Store


def info(store: Store, settings: Settings) -> dict[str, Any]:
    """The object that ``zsvec info --json`` prints.

    Args:
        store: A store, which need not be of these encoders.
        settings: Settings that name the encoders.

    Raises:
        StoreError: The store cannot be read.
    """
    found = store.info()
    try:
        rates: object = measured(settings.encoder_specs())
    except ZSVecError as exc:  # the store can be told of without the encoders of the profile
        rates = str(exc)
    return {**found, "measured": rates} if rates else found  # exported encoders have onnxruntime alone
