"""The store: categories, committed whole or not at all, over any backend.

Writing a category: its references go to every encoder's collection under a new generation, then
its manifest is replaced by compare-and-set, then what no manifest names is deleted. Whoever reads
looks at the manifest first. A writer that dies leaves references that nobody sees.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as with_changes
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tenacity import RetryError, Retrying, retry_if_not_result, stop_after_attempt, wait_random_exponential

from zsvec.errors import CategoryNotFoundError, ConflictError, EncoderMismatchError, StoreError
from zsvec.method.calibration import Calibration
from zsvec.store.base import (
    CATALOG,
    CATALOG_INDEXES,
    REFERENCE_INDEXES,
    SCHEMA,
    Backend,
    Hit,
    Points,
    Reference,
    Where,
    Write,
    calibration_record,
    category_of,
    manifest_record,
    new_write_id,
    point_id,
    record_id,
    store_record,
    write_age,
)
from zsvec.types import CalibrationState, Category, Fingerprint, Modality, encoder_and_modality, expert_name

GRACE = 3600.0  # seconds after which references that no manifest names belong to no living writer
LATE = 120_000_000  # microseconds that a commit may take, with the difference of its writer's clock
_WRITES_KEPT = 32  # generations of a category beyond which an addition copies them into one
_ATTEMPTS = 12

_HIT_FIELDS = ("category", "gen", "source")


class Store:
    """The categories of one namespace.

    Args:
        backend: Where the collections are.
        namespace: Prefix of their names. Nothing else in the deployment is read or written.
    """

    def __init__(self, backend: Backend, namespace: str) -> None:
        self._backend = backend
        self.namespace = namespace
        self._catalog = f"{namespace}__{CATALOG}"
        self._lock = threading.RLock()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def location(self) -> str:
        """Folder or URL, and namespace."""
        return f"{self._backend.location} (namespace {self.namespace})"

    def collection(self, encoder: str) -> str:
        """Name of the collection that holds an encoder's references."""
        return f"{self.namespace}__{encoder}"

    # Encoders

    def encoders(self) -> dict[str, Fingerprint]:
        """What made the vectors that are stored, by encoder; empty for a store that was never written."""
        stored = self._store_record()
        return {name: Fingerprint(**fields) for name, fields in stored["encoders"].items()} if stored else {}

    def check(self, names: Iterable[str]) -> None:
        """Refuse a store that was written with encoders of other names.

        Raises:
            EncoderMismatchError: It was.
        """
        stored, used = self.encoders(), set(names)
        if stored and set(stored) != used:
            raise EncoderMismatchError(
                f"{self.location} holds vectors of the encoders {', '.join(sorted(stored))}, and "
                f"{', '.join(sorted(used))} are in use: choose the profile it was made with, another namespace, "
                "or another store"
            )

    def bind(self, fingerprints: Mapping[str, Fingerprint]) -> None:
        """Make the store ready to be written with these encoders, and refuse any others.

        Args:
            fingerprints: Of the encoders in use, by name.

        Raises:
            EncoderMismatchError: What is stored was made by other encoders.
            StoreError: A collection of a name that is needed belongs to somebody else.
        """
        with self._writing():
            if self._store_record() is None:
                self._refuse_foreign([self._catalog, *map(self.collection, fingerprints)])
                self._backend.create(self._catalog, 1, CATALOG_INDEXES)
                self._backend.put(self._catalog, [store_record(fingerprints)])
            self.check(fingerprints)
            self.check_fingerprints(fingerprints)
            for name, fingerprint in fingerprints.items():
                self._backend.create(self.collection(name), fingerprint.dim, REFERENCE_INDEXES)

    def check_fingerprints(self, fingerprints: Mapping[str, Fingerprint]) -> None:
        """Refuse encoders whose vectors cannot be compared with those that are stored.

        Raises:
            EncoderMismatchError: They cannot.
        """
        for name, stored in self.encoders().items():
            if stored != fingerprints[name]:
                raise EncoderMismatchError(
                    f"the vectors of {name!r} in {self.location} were made by {stored}, and {fingerprints[name]} is "
                    "in use: open the store with the encoder it was made with, or import again into another namespace"
                )

    def _store_record(self) -> Mapping[str, Any] | None:
        """What the store says of itself; nothing before the first write."""
        if not self._backend.exists(self._catalog):
            return None
        identifier = record_id("store", "")
        record = self._backend.retrieve(self._catalog, [identifier]).get(identifier)
        if record and record["schema"] != SCHEMA:
            raise StoreError(
                f"{self.location} has schema {record['schema']} and this version of zsvec knows {SCHEMA}: "
                "use the version it was made with"
            )
        return record

    def _refuse_foreign(self, collections: Iterable[str]) -> None:
        for collection in collections:
            # Points are ours if by now another writer has made the store: its record comes before them.
            if (
                self._backend.exists(collection)
                and self._backend.count(collection, Where())
                and self._store_record() is None
            ):
                raise StoreError(
                    f"{self._backend.location} already has a collection {collection!r} that zsvec did not make: "
                    "choose another namespace"
                )

    # Reading

    def categories(self, since: int | None = None) -> list[Category]:
        """Committed categories, by name.

        Args:
            since: Only those committed at this ``rev`` or later; those removed since come with no generation.
        """
        payloads = self._records(Where(match={"kind": "category"}, since=since))
        found = [category_of(payload) for payload in payloads if since is not None or not payload["deleted"]]
        return sorted(found, key=lambda category: category.name)

    def changes_after(self, rev: int) -> tuple[list[Category], Mapping[str, Any] | None]:
        """What was committed after a commit of this ``rev`` was seen, and possibly a little from before.

        Where others write as well, a commit that was late may have a smaller ``rev`` than one that was seen.

        Returns:
            The categories; those removed come with no generation. And the calibration, if it is new.
        """
        since = rev + 1 if self._backend.exclusive else max(0, rev - LATE)
        payloads = self._records(Where(match={"kind": ["category", "calibration"]}, since=since))
        calibrations = [payload for payload in payloads if payload["kind"] == "calibration"]
        categories = [category_of(payload) for payload in payloads if payload["kind"] == "category"]
        return sorted(categories, key=lambda category: category.name), calibrations[0] if calibrations else None

    def category(self, name: str) -> Category:
        """One committed category.

        Raises:
            CategoryNotFoundError: There is none of this name.
        """
        category = self._live(name)
        if category is None:
            raise CategoryNotFoundError(
                f"there is no category {name!r} in {self.location}: `zsvec list` shows those there are"
            )
        return category

    def _live(self, name: str) -> Category | None:
        manifest = self._manifests([name]).get(name)
        return None if manifest is None or manifest["deleted"] else category_of(manifest)

    def references(self, encoder: str, write_ids: Sequence[str], *, vectors: bool = True) -> Iterator[Points]:
        """References of the given generations in one encoder's collection, page by page."""
        for first in range(0, len(write_ids), 256):
            where = Where(match={"gen": list(write_ids[first : first + 256])})
            yield from self._backend.scroll(self.collection(encoder), where, vectors=vectors)

    def query(
        self,
        encoder: str,
        modality: Modality,
        vectors: NDArray[np.float32],
        limit: int,
        write_ids: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """The nearest references of each vector, nearest first, committed or not.

        Args:
            encoder: Name of the encoder.
            modality: Of the references.
            vectors: float32 ``(n, dim)``, unit rows.
            limit: References per vector.
            write_ids: Only those of these generations.
        """
        where = Where(match={"modality": modality} if write_ids is None else {"modality": modality, "gen": write_ids})
        return self._backend.query(self.collection(encoder), vectors, where, limit, _HIT_FIELDS)

    def sources(self, category: Category) -> dict[str, list[str]]:
        """Where the references of a category come from, by expert: a text, a path, or what they were generated from."""
        found: dict[str, list[str]] = {expert: [] for expert in category.references}
        for reference in self._references_of(category, vectors=False):
            origin = reference.source if reference.prompt is None else f"{reference.source}: {reference.prompt}"
            found[expert_name(reference.encoder, reference.modality)].append(origin)
        return {expert: sorted(sources) for expert, sources in found.items()}

    def info(self) -> dict[str, Any]:
        """What the store holds, what made it, and what serves it; JSON."""
        categories = self.categories()
        references: Counter[str] = Counter()
        for category in categories:
            references.update(category.references)
        return {
            "store": self._backend.location,
            "namespace": self.namespace,
            **self._backend.versions(),
            "categories": len(categories),
            "references": dict(references),
            "encoders": {name: str(fingerprint) for name, fingerprint in self.encoders().items()},
            "calibration": self._calibration_state(),
        }

    def _calibration_state(self) -> CalibrationState:
        calibration = Calibration.from_dict(self.calibration())
        if calibration is None:
            return "none"
        return "current" if not self.categories(calibration.revision + 1) else "stale"

    def incomplete(self) -> list[str]:
        """Names of the categories that lack references which their manifest counts; empty unless data was lost."""
        return [category.name for category in self.categories() if self._counted(category) != dict(category.references)]

    def _counted(self, category: Category) -> dict[str, int]:
        counted: dict[str, int] = {}
        for expert in category.references:
            encoder, modality = encoder_and_modality(expert)
            where = Where(match={"gen": list(category.write_ids), "modality": modality})
            counted[expert] = self._backend.count(self.collection(encoder), where)
        return counted

    def _records(self, where: Where) -> list[Mapping[str, Any]]:
        if not self._backend.exists(self._catalog):
            return []
        return [payload for page in self._backend.scroll(self._catalog, where) for payload in page.payloads]

    def _manifests(self, names: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        if not self._backend.exists(self._catalog):
            return {}
        payloads = self._backend.retrieve(self._catalog, [record_id("category", name) for name in names])
        return {payload["category"]: payload for payload in payloads.values()}

    def keys(self, name: str) -> set[tuple[str, str, str]]:
        """Encoder, modality and content hash of every reference of a category; empty if there is none."""
        category = self._live(name)
        return {reference.key for reference in self._references_of(category, vectors=False)} if category else set()

    def stored(self, name: str) -> list[Reference]:
        """Every reference of a category with its vector; empty if there is none."""
        category = self._live(name)
        return list(self._references_of(category, vectors=True)) if category else []

    def _references_of(self, category: Category, *, vectors: bool) -> Iterator[Reference]:
        for encoder in dict.fromkeys(encoder_and_modality(expert)[0] for expert in category.references):
            for page in self.references(encoder, category.write_ids, vectors=vectors):
                for payload, vector in zip(page.payloads, page.vectors, strict=True):
                    yield Reference(
                        encoder, payload["modality"], payload["hash"], payload["source"], vector, payload.get("prompt")
                    )

    def calibration(self) -> Mapping[str, Any] | None:
        """The calibration that is kept with the store; ``None``, or empty, if there is none."""
        identifier = record_id("calibration", "")
        if not self._backend.exists(self._catalog):
            return None
        record = self._backend.retrieve(self._catalog, [identifier]).get(identifier)
        return record["calibration"] if record else None

    # Writing

    def keep_calibration(self, calibration: Mapping[str, Any]) -> None:
        """Commit a calibration in the place of the one that is there; an empty one is none.

        One that was made from a later state of the catalog stays.

        Raises:
            ConflictError: Others wrote one each time, until the attempts were used up.
        """
        identifier = record_id("calibration", "")
        writer = uuid.uuid4().hex

        def attempt() -> bool:
            before = self._backend.retrieve(self._catalog, [identifier]).get(identifier)
            present = Calibration.from_dict(before["calibration"]) if before else None
            if present is not None and calibration and present.revision > calibration.get("revision", present.revision):
                return True
            rev = max(time.time_ns() // 1000, self._backend.newest(self._catalog) + 1)
            self._backend.put(self._catalog, [calibration_record(calibration, writer, rev, before)])
            after = self._backend.retrieve(self._catalog, [identifier]).get(identifier)
            return after is not None and after["writer"] == writer

        self._until_won(attempt, [])

    def write(self, writes: Sequence[Write]) -> list[Category]:
        """Commit references to categories, each category whole or not at all.

        A category that does not exist is created. One that does gets the references it lacks, and
        nothing is written if it lacks none; with ``replace`` it gets these in the place of its own.

        Args:
            writes: At most one per category.

        Returns:
            The categories as committed, in order.

        Raises:
            ConflictError: Others changed a category each time, until the attempts were used up. The
                other categories are committed.
        """
        done: dict[str, Category] = {}
        pending = {write.name: write for write in writes}

        def attempt() -> bool:
            for category in self._write_once(list(pending.values())):
                done[category.name] = category
                del pending[category.name]
            return not pending

        self._until_won(attempt, pending)
        return [done[write.name] for write in writes]

    def remove(self, name: str) -> None:
        """Remove a category and its references.

        Raises:
            CategoryNotFoundError: There is none of this name.
            ConflictError: Others changed it each time, until the attempts were used up.
        """

        def attempt() -> bool:
            category = self.category(name)
            gone = with_changes(
                category, version=category.version + 1, write_ids=(), texts=(), references={}, metadata={}
            )
            plan = _Plan(gone, expected=category.version, fresh=(), gen="", dead=category.write_ids)
            return bool(self._carry_out([plan]))

        self._until_won(attempt, [name])

    def gc(self, grace: float | None = None) -> int:
        """Delete the references that no manifest names, and say how many there were.

        Args:
            grace: Age in seconds from which they cannot belong to a writer at work; by default an
                hour, or 0 where no other process can write.
        """
        with self._writing():
            return self._sweep({}, self.categories(), grace)

    def flush(self) -> None:
        """Make all that is committed survive a loss of power; a killed process never loses it."""
        self._backend.flush()

    def close(self) -> None:
        """Let go of files and connections."""
        self._backend.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time in this process."""
        self._backend.check()  # before the lock, which a forked process might never get
        with self._lock:
            yield

    def _until_won(self, attempt: Callable[[], bool], names: Iterable[str]) -> None:
        retrying = Retrying(
            retry=retry_if_not_result(bool),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.01, max=1.0),
        )
        try:
            with self._writing():
                retrying(attempt)
        except RetryError as exc:
            changed = ", ".join(map(repr, names)) or "the calibration"
            raise ConflictError(
                f"others changed {changed} in {self.location} at each of {_ATTEMPTS} attempts: "
                "try again when they are done"
            ) from exc

    def _write_once(self, writes: Sequence[Write]) -> list[Category]:
        """Try each write once against the catalog as it is now: the categories that are as they should be."""
        manifests = self._manifests([write.name for write in writes])
        plans = []
        settled = []
        for write in writes:
            manifest = manifests.get(write.name)
            current = category_of(manifest) if manifest else None
            plan = self._plan(write, current)
            if plan.category is current:
                settled.append(plan.category)
            else:
                plans.append(plan)
        return settled + self._carry_out(plans)

    def _plan(self, write: Write, current: Category | None) -> _Plan:
        """What has to be written and deleted so that a write is done; nothing if it already is."""
        held = current if current and current.write_ids and not write.replace else None
        known = self.keys(write.name) if held else set()
        fresh = list({r.key: r for r in write.references if r.key not in known}.values())
        write_ids = held.write_ids if held else ()
        texts = tuple(dict.fromkeys((*(held.texts if held else ()), *write.texts)))
        metadata = dict(write.metadata if write.metadata is not None else held.metadata if held else {})
        if held and not fresh and (texts, metadata) == (held.texts, held.metadata):
            return _Plan(held, expected=held.version, fresh=(), gen="", dead=())
        if len(write_ids) >= _WRITES_KEPT:
            fresh = [*self.stored(write.name), *fresh]
            write_ids = ()
        gen = new_write_id()
        counts = Counter(held.references if held and write_ids else {})
        counts.update(expert_name(reference.encoder, reference.modality) for reference in fresh)
        category = Category(
            name=write.name,
            version=current.version + 1 if current else 1,
            rev=0,
            write_ids=(*write_ids, gen),
            texts=texts,
            references=dict(counts),
            metadata=metadata,
        )
        dead = tuple(current.write_ids) if current and not write_ids else ()
        return _Plan(category, expected=current.version if current else None, fresh=fresh, gen=gen, dead=dead)

    def _carry_out(self, plans: Sequence[_Plan]) -> list[Category]:
        """Write the references of each plan, commit, and delete what nobody sees any more: the commits that won."""
        self._put_references(plans)
        won = self._commit([plan.category for plan in plans], [plan.expected for plan in plans])
        dead = [gen for plan in plans for gen in (plan.dead if plan.category.name in won else (plan.gen,))]
        self._delete_writes(dead)
        if won:
            self._sweep({"category": list(won)}, won.values(), None)
        return list(won.values())

    def _put_references(self, plans: Sequence[_Plan]) -> None:
        rows: dict[str, list[tuple[_Plan, Reference]]] = {}
        for plan in plans:
            for reference in plan.fresh:
                rows.setdefault(reference.encoder, []).append((plan, reference))
        for encoder, pairs in rows.items():
            points = Points(
                ids=[point_id(encoder, p.category.name, r.modality, p.gen, r.hash) for p, r in pairs],
                vectors=np.stack([r.vector for _, r in pairs]),
                payloads=[
                    {
                        "category": p.category.name,
                        "modality": r.modality,
                        "gen": p.gen,
                        "hash": r.hash,
                        "source": r.source,
                        **({} if r.prompt is None else {"prompt": r.prompt}),
                    }
                    for p, r in pairs
                ],
            )
            self._backend.upsert(self.collection(encoder), points)

    def _commit(self, categories: Sequence[Category], expected: Sequence[int | None]) -> dict[str, Category]:
        """Write manifests by compare-and-set; the categories whose commit won, by name."""
        if not categories:
            return {}
        writer = uuid.uuid4().hex
        before = self._manifests([category.name for category in categories])
        # Revisions grow over the whole catalog, whatever the clocks of its writers say.
        rev = max(time.time_ns() // 1000, self._backend.newest(self._catalog) + 1)
        stamped = [with_changes(category, rev=rev + i) for i, category in enumerate(categories)]
        self._backend.put(
            self._catalog,
            [
                manifest_record(category, writer, before.get(category.name), version)
                for category, version in zip(stamped, expected, strict=True)
            ],
        )
        after = self._manifests([category.name for category in categories])
        return {
            category.name: category
            for category in stamped
            if (found := after.get(category.name))
            # The generation outlives the token where many have written since.
            and (writer in found["writers"] or set(category.write_ids[-1:]) & set(found["gen"]))
        }

    def _delete_writes(self, write_ids: Sequence[str]) -> None:
        for encoder in self.encoders() if write_ids else ():
            self._backend.delete(self.collection(encoder), Where(match={"gen": write_ids}))

    def _sweep(self, match: Mapping[str, Sequence[str]], live: Iterable[Category], grace: float | None) -> int:
        """Delete the references that match, that no manifest names and whose writer is gone; how many there were.

        Args:
            match: Payload of the references in question.
            live: The categories among them as they were a moment ago.
            grace: As in `gc`.
        """
        limit = grace if grace is not None else 0.0 if self._backend.exclusive else GRACE
        where = Where(match=match, exclude={"gen": [gen for category in live for gen in category.write_ids]})
        found = Counter(
            (payload["category"], payload["gen"])
            for encoder in self.encoders()
            if self._backend.exists(self.collection(encoder))
            for page in self._backend.scroll(self.collection(encoder), where, fields=("category", "gen"))
            for payload in page.payloads
            if write_age(payload["gen"]) >= limit
        )
        # Asked after the references were found: what was committed in between is named by now.
        named = (
            {gen for manifest in self._manifests({name for name, _ in found}).values() for gen in manifest["gen"]}
            if found
            else set()
        )
        dead = {gen: count for (_, gen), count in found.items() if gen not in named}
        self._delete_writes(list(dead))
        return sum(dead.values())


@dataclass(frozen=True, slots=True)
class _Plan:
    """One attempt to commit a category.

    Attributes:
        category: As it shall be; its ``rev`` is set by the commit.
        expected: The version it must have now, or ``None`` if it must not exist.
        fresh: References to write first.
        gen: The generation they get.
        dead: Generations that nobody sees after the commit.
    """

    category: Category
    expected: int | None
    fresh: Sequence[Reference]
    gen: str
    dead: Sequence[str]
