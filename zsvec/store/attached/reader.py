"""Reads collections of others: labels, vectors, and the points nearest to an image. Everything read is untrusted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from zsvec.errors import EncoderMismatchError, InvalidInputError, StoreError, ZSVecError, shown
from zsvec.store.attached.parts import PREFIX, Part
from zsvec.store.backends.base import Backend, Hit, Points, Where
from zsvec.store.names import CATALOG
from zsvec.types import POINT_MARK, Attachment, encoder_and_modality

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FAILURES = (ZSVecError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What reading untrusted points may raise."""

_COMPARED = 64  # points at the beginning of a collection whose vectors are part of the digests
_LONGEST_SOURCE = 1000  # characters
_MOST_CATEGORIES = 20_000  # of one collection
_FILTERED = 256  # most labels in a filter; for more, all points are read
_NO_LABEL, _NO_NAME, _NO_VECTOR = "no label", "the label cannot be a category", "no usable vector"
_NOTHING = Points([], [], [])


class UnusableError(Exception):
    """The collection is gone, or its configuration has changed."""


@dataclass(frozen=True, slots=True)
class View:
    """The points of an attached collection, as read at one time.

    Attributes:
        parts: The points of each category.
        names: The category of each label.
        textual: Whether all labels are texts.
        left_out: Number of points that are no references, by reason.
        content: Points with vectors by write id; ``None`` if vectors were not read.
    """

    parts: Mapping[str, Part] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    textual: bool = True
    left_out: Mapping[str, int] = field(default_factory=dict)
    content: Mapping[str, Points] | None = None

    def labels(self, categories: Collection[str]) -> list[str]:
        """Returns the labels of categories."""
        return [label for label, category in self.names.items() if category in categories]


class _Labels:
    """The labels of an attached collection, while they are read.

    Attributes:
        names: The category of each label.
        left_out: Number of points without a usable label, by reason.
        digests: Digest of the points of each category.
        points: Number of points of each category.
    """

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._textual = True
        self.names: dict[str, str] = {}
        self.left_out: Counter[str] = Counter()
        self.digests: dict[str, Any] = {}
        self.points: Counter[str] = Counter()

    def category_of(self, payload: Mapping[str, Any]) -> str | None:
        """Returns the category of a point, or ``None`` without a usable label, which is counted."""
        label = _value_at(payload, self._attachment.label)
        if not isinstance(label, str | int):
            self.left_out[_NO_LABEL if label is None else f"the label is a {type(label).__name__}"] += 1
            return None
        text = str(label)
        category = self.names.get(text) or _category(text)
        if category is None:
            self.left_out[_NO_NAME] += 1
            return None
        self._textual = self._textual and isinstance(label, str)
        self.names[text] = category
        if category not in self.digests:
            if len(self.digests) == _MOST_CATEGORIES:
                raise InvalidInputError(
                    f"the field {self._attachment.label!r} of {self._attachment.collection!r} must have at most "
                    f"{_MOST_CATEGORIES:,} values, got more: attach it with another field, or with conditions"
                )
            self.digests[category] = blake2b(f"{self._attachment.id}\0{category}\0".encode())
        return category

    def view(self) -> View:
        """Returns the points that were counted, by category."""
        expert = self._attachment.expert
        parts = {
            category: Part(f"{PREFIX}{self.digests[category].hexdigest()[:32]}", expert, n)
            for category, n in self.points.items()
        }
        return View(parts=parts, names=self.names, textual=self._textual, left_out=self.left_out)


class Reader:
    """Reads collections of others.

    Args:
        backend: Backend of the store. The collections are in the same deployment.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def check_space(self, attachment: Attachment, dim: int) -> None:
        """Checks the configuration of a collection.

        Raises:
            InvalidInputError: There is no such collection or vector.
            EncoderMismatchError: The dimension or the distance is another.
        """
        spaces = self._backend.others.vectors(attachment.collection)
        if spaces is None:
            raise InvalidInputError(
                f"there is no collection {shown(attachment.collection)} at {self._backend.location}: check the name"
            )
        if attachment.vector not in spaces:
            names = ", ".join(repr(name) if name else "the unnamed one" for name in sorted(spaces)) or "none"
            raise InvalidInputError(
                f"vector must be a dense vector of {shown(attachment.collection)} ({names}), "
                f"got {shown(attachment.vector) if attachment.vector else 'no name'}"
            )
        space = spaces[attachment.vector]
        if (space.dim, space.kind) != (dim, "Cosine"):
            raise EncoderMismatchError(
                f"vectors of {attachment.expert} must have {dim} dimensions and the distance Cosine. Those of "
                f"{shown(attachment.collection)} have {space.dim} dimensions and are {space.kind}: they come from "
                "another encoder, or the collection must be made with the distance Cosine"
            )

    def check_foreign(self, collection: str) -> None:
        """Raises InvalidInputError for a collection of a zsvec store, which also holds unfinished writes."""
        namespace = collection.rpartition("__")[0]
        try:
            is_ours = bool(namespace) and self._backend.others.vectors(f"{namespace}__{CATALOG}") is not None
        except StoreError:  # the key may not have the right to know
            return
        if is_ours:
            raise InvalidInputError(
                f"the collection must not be of a zsvec store, got {shown(collection)}: `zsvec copy` copies stores"
            )

    def look(self, attachment: Attachment, dim: int) -> View:
        """Reads ids and labels.

        Raises:
            UnusableError: The collection is gone, or its vectors no longer have this dimension or the distance Cosine.
        """
        name, others, where = attachment.collection, self._backend.others, _where(attachment)
        try:
            self.check_space(attachment, dim)
        except (EncoderMismatchError, InvalidInputError) as exc:
            raise UnusableError(str(exc)) from exc
        labels = _Labels(attachment)
        with closing(others.pages(name, where, (attachment.label,), attachment.vector)) as pages:
            first = next(pages, _NOTHING).chosen_first(_COMPARED)
        for payload, row in zip(first.payloads, first.vectors, strict=True):
            if (category := labels.category_of(payload)) is not None:
                labels.digests[category].update(row.tobytes())
        labels.left_out.clear()
        for page in others.pages(name, where, (attachment.label,)):
            for identifier, payload in zip(page.ids, page.payloads, strict=True):
                if (category := labels.category_of(payload)) is not None:
                    labels.digests[category].update(f"{identifier} ".encode())
                    labels.points[category] += 1
        return labels.view()

    def with_content(self, attachment: Attachment, view: View, before: Mapping[str, Points], dim: int) -> View:
        """Reads the vectors of parts that are not in `before`. Corrects the numbers of points by what has arrived."""
        content = {part.write_id: before[part.write_id] for part in view.parts.values() if part.write_id in before}
        missing = [name for name, part in view.parts.items() if part.write_id not in content]
        arrived: dict[str, list[Points]] = defaultdict(list)
        unusable = 0
        for n, page in self.stream(attachment, view, missing, dim) if missing else ():
            unusable += n - len(page.ids)
            rows: dict[str, list[int]] = defaultdict(list)
            for i, payload in enumerate(page.payloads):
                rows[payload["category"]].append(i)
            for name, some in rows.items():
                arrived[name].append(page.chosen(some))
        content |= {view.parts[name].write_id: _joined(pages) for name, pages in arrived.items()}
        numbers = {name: len(content[p.write_id].ids) for name, p in view.parts.items() if p.write_id in content}
        parts = {name: replace(view.parts[name], points=n) for name, n in numbers.items()}
        left_out = {**view.left_out, **({_NO_VECTOR: unusable} if unusable else {})}
        return replace(view, parts=parts, content=content, left_out=left_out)

    def stream(
        self, attachment: Attachment, view: View, categories: Collection[str], dim: int
    ) -> Iterator[tuple[int, Points]]:
        """Yields the points of some categories as references with unit vectors.

        Each page comes with the number of its points before those with unusable vectors were left out.
        """
        wanted = set(categories)
        labels = view.labels(wanted) if view.textual and len(wanted) < len(view.parts) else []
        for page in self._pages_of(attachment, labels if len(labels) <= _FILTERED else []):
            found = [_payload(attachment, view, *one) for one in zip(page.ids, page.payloads, strict=True)]
            kept = [i for i, payload in enumerate(found) if payload["category"] in wanted]
            some = replace(page.chosen(kept), payloads=[found[i] for i in kept])
            yield len(kept), _unit(some, dim, attachment.collection)

    def _pages_of(self, attachment: Attachment, labels: Sequence[str]) -> Iterator[Points]:
        """Yields points with some labels, or all points without labels, or if the collection forbids such a filter."""
        others, fields = self._backend.others, _fields(attachment)
        if labels:
            pages = others.pages(attachment.collection, _where(attachment, labels), fields, attachment.vector)
            try:
                first = next(pages, _NOTHING)
            except StoreError:
                labels = ()
            else:
                yield first
                yield from pages
        if not labels:
            yield from others.pages(attachment.collection, _where(attachment), fields, attachment.vector)

    def query(self, attachment: Attachment, view: View, vectors: NDArray[np.float32], limit: int) -> list[list[Hit]]:
        """Returns the `limit` points nearest to each vector, nearest first. The category of an unknown label is empty.

        Args:
            attachment: The collection.
            view: Labels and parts of the collection.
            vectors: float32 ``(n, dim)``, unit rows.
            limit: Maximum number of points per vector.
        """
        labels = view.labels(view.parts)
        where = _where(attachment, labels if view.textual and len(labels) <= _FILTERED else None)
        if attachment.label not in where.match:
            where = replace(where, present=attachment.label)
        rows = self._backend.others.query(
            attachment.collection, attachment.vector, vectors, where, limit, _fields(attachment)
        )
        return [[_hit(attachment, view, hit) for hit in row] for row in rows]

    def first(self, attachment: Attachment, most: int) -> Points:
        """Returns the first points of a collection that have a source, with unit vectors and the source as payload.

        Without a field of sources, there are none.
        """
        if attachment.source is None:
            return _NOTHING
        pages = self._backend.others.pages(
            attachment.collection, _where(attachment), (attachment.source,), attachment.vector
        )
        with closing(pages):
            page = next(pages, _NOTHING)
        sources = [_value_at(payload, attachment.source) for payload in page.payloads]
        kept = [i for i, source in enumerate(sources) if isinstance(source, str) and source][:most]
        some = replace(page.chosen(kept), payloads=[{"source": sources[i]} for i in kept])
        return _unit(some, page.vectors.shape[-1], attachment.collection)


def _where(attachment: Attachment, labels: Sequence[str] | None = None) -> Where:
    match: dict[str, str | int | Sequence[str]] = dict(attachment.where)
    if labels is not None and attachment.label not in match:
        match[attachment.label] = labels
    return Where(match=match, has_vector=attachment.vector)


def _fields(attachment: Attachment) -> tuple[str, ...]:
    return (attachment.label,) if attachment.source is None else (attachment.label, attachment.source)


def _value_at(payload: Mapping[str, Any], name: str) -> Any:
    """Returns the value of a payload field, or ``None`` without it. Dots in the name lead into nested objects."""
    value: Any = payload
    for step in name.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _category(label: str) -> str | None:
    """Returns the category of a label, or ``None`` if the label cannot be the name of a category."""
    from zsvec.inputs.categories import checked_name  # imports numpy, which listing categories does not need

    try:
        return checked_name(label)
    except InvalidInputError:
        return None


def _payload(attachment: Attachment, view: View, identifier: str, payload: Mapping[str, Any]) -> dict[str, str]:
    """Returns the payload that a point would have as a reference. The category is empty for an unknown label."""
    label = _value_at(payload, attachment.label)
    name = view.names.get(str(label), "") if isinstance(label, str | int) else ""
    point = f"{attachment.collection}{POINT_MARK}{identifier}"
    source = None if attachment.source is None else _value_at(payload, attachment.source)
    return {
        "category": name,
        "modality": encoder_and_modality(attachment.expert)[1],
        "gen": view.parts[name].write_id if name in view.parts else "",
        "hash": point,
        "source": source[:_LONGEST_SOURCE] if isinstance(source, str) and source else point,
    }


def _hit(attachment: Attachment, view: View, hit: Hit) -> Hit:
    if not -1.001 < hit.similarity < 1.001:
        raise StoreError(f"a similarity of {attachment.collection!r} must be a cosine, got {hit.similarity}")
    payload = _payload(attachment, view, hit.id, hit.payload)
    return Hit(payload["hash"], hit.similarity, payload)


def _joined(pages: Sequence[Points]) -> Points:
    import numpy as np

    return Points(
        [identifier for page in pages for identifier in page.ids],
        np.concatenate([page.vectors for page in pages]),
        [payload for page in pages for payload in page.payloads],
    )


def _unit(page: Points, dim: int | None, collection: str) -> Points:
    """Returns points with unit vectors, without zero vectors and vectors that are not finite."""
    import numpy as np

    if not page.ids:
        return page
    vectors = page.vectors
    if vectors.shape[1:] != (dim,):
        raise StoreError(f"vectors of {collection!r} must have {dim} dimensions, got {vectors.shape[-1]}")
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    chosen = page.chosen(np.flatnonzero(usable).tolist())
    return replace(chosen, rows=(vectors[usable] / norms[usable, None]).astype(np.float32))
