"""Image classification whose categories live in Qdrant.

```python
import zsvec

with zsvec.open("./animals", profile="offline") as clf:
    clf.add_category("red panda", texts=["a small reddish arboreal mammal"], images=["panda.jpg"])
    print(clf.classify("photo.jpg"))
```
"""

from __future__ import annotations

import os as _os
from collections.abc import Iterable as _Iterable
from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

from zsvec.errors import ZSVecError
from zsvec.types import Category, ExpertOutput, Neighbor, Prediction

if TYPE_CHECKING:
    from zsvec.classifier import Classifier
    from zsvec.encoders import Encoder
    from zsvec.generation import Budget
    from zsvec.inputs.categories import CategoryInput, ReferenceImage

__version__ = "0.2.0.dev0"
__all__ = [
    "Budget",
    "Category",
    "CategoryInput",
    "Classifier",
    "ExpertOutput",
    "Neighbor",
    "Prediction",
    "ReferenceImage",
    "ZSVecError",
    "__version__",
    "open",
]

# What takes longer to import than `import zsvec` should.
_LATE = {
    "Budget": "zsvec.generation",
    "CategoryInput": "zsvec.inputs.categories",
    "Classifier": "zsvec.classifier",
    "ReferenceImage": "zsvec.inputs.categories",
}


def __getattr__(name: str) -> _Any:
    if name in _LATE:
        return getattr(_import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def open(  # noqa: A001 - zsvec.open, as there is gzip.open
    store: str | _os.PathLike[str] | None = None, *, encoders: _Iterable[Encoder] | None = None, **settings: _Any
) -> Classifier:
    """Open a store of categories and classify by it.

    Args:
        store: Folder of an embedded store, ``http://`` or ``https://`` URL of a Qdrant server, or ``:memory:`` for a
            store that is gone when it is closed. Made by the first write. By default ``ZSVEC_STORE``, or ``store``
            of ``zsvec.toml``.
        encoders: Encoder objects of your own, in the place of a profile's.
        **settings: Any field of `zsvec.settings.settings.Settings`, such as ``profile``, ``namespace``,
            ``api_key``, ``device``, ``fusion``; what is not given comes from the environment
            (``ZSVEC_PROFILE`` …), from ``zsvec.toml``, or is the default.

    Returns:
        A classifier; also a context manager.

    Raises:
        InvalidInputError: A setting cannot be used.
        EncoderMismatchError: The store was made with other encoders.
        StoreLockedError: The embedded store is open in another process.
        StoreUnavailableError: The server cannot be reached or refuses the key.
    """
    from zsvec.classifier import Classifier
    from zsvec.encoders import EncoderSet, load_encoders
    from zsvec.encoders.spec import TEMPERATURES
    from zsvec.settings.settings import load_settings
    from zsvec.types import expert_name

    chosen = load_settings(store=_os.fspath(store) if isinstance(store, _os.PathLike) else store, **settings)
    if encoders is not None:
        own = EncoderSet(encoders, batch_size=chosen.batch_size)
        return Classifier(
            chosen.open_store(),
            chosen,
            load_encoders=lambda: own,
            temperatures={expert_name(e.name, m): TEMPERATURES[m] for e in own for m in e.modalities},
            prompts={},
        )
    specs = chosen.encoder_specs()
    return Classifier(
        chosen.open_store(),
        chosen,
        load_encoders=lambda: load_encoders(
            specs,
            device=chosen.device,
            dtype=chosen.dtype,
            runtime=chosen.runtime,
            compiled=chosen.compile,
            batch_size=chosen.batch_size,
        ),
        temperatures={
            expert_name(name, m): spec.temperature.get(m, TEMPERATURES[m])
            for name, spec in specs.items()
            for m in spec.modalities
        },
        prompts={name: spec.prompt for name, spec in specs.items()},
    )
