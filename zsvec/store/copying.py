"""Copies the categories of a store or an archive to a store, by ordinary commits of the target. No encoder runs.

Categories are copied in small batches, and references in pages, so that memory is bounded. Each category is committed
as a whole, under a new write id. A copy that was interrupted is repeated: a category with the same content in both
stores is left as it is.

Records of the source are validated as input from users is, since any writer may have forged them. A category with an
unusable record is named, and the other categories are copied.

The marks of withdrawn references come along, so that a repeated import leaves out the same references in the copy.
Uncommitted references, replaced references and the history stay behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from zsvec.errors import (
    EncoderMismatchError,
    InvalidInputError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
)
from zsvec.inputs.categories import checked_metadata, checked_name, checked_parent, checked_texts
from zsvec.store.backends.base import Points
from zsvec.store.catalog.catalog import Catalog, State, readable
from zsvec.store.catalog.changefeed import Cursor, Look
from zsvec.store.catalog.commit import commit, publish
from zsvec.store.catalog.marks import newest
from zsvec.store.catalog.schema import (
    LONGEST_SOURCE,
    Followed,
    Reference,
    calibrated_revision,
    category_from,
    is_content_hash,
    reference_from,
)
from zsvec.store.names import new_write_id
from zsvec.store.source import Source, check_names, chosen
from zsvec.store.transfer import settled
from zsvec.store.writing import Writer
from zsvec.types import LONGEST_NAME, Category, Copied, Fingerprint, expert_name

Track: TypeAlias = Callable[[Sequence[Category]], Iterable[Category]]

_AT_ONCE = 1000  # references of the categories in one batch; a category with more references is copied alone


def check_encoders(source: Source, target: Catalog) -> None:
    """Raises EncoderMismatchError if the target has vectors of other encoders than the source."""
    ours, theirs = source.encoders(), target.encoders()
    if not theirs or ours == theirs:
        return
    different = [name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
    if different:
        name = min(different)
        why = f"{name!r} is {str(ours[name])[:LONGEST_NAME]} in the first and {theirs[name]} in the second"
    else:
        has = ", ".join(sorted(ours))[:LONGEST_NAME]
        why = f"the first has vectors of {has}, the second of {', '.join(sorted(theirs))}"
    raise EncoderMismatchError(
        f"{source.location} cannot be copied to {target.location}, which has vectors of other encoders: {why}. Choose "
        "another target, or another namespace of the target"
    )


def copy(
    source: Source,
    writer: Writer,
    *,
    names: Collection[str] | None,
    replaces: bool,
    on_commit: Callable[[Category], None],
    track: Track,
) -> Copied:
    """As `zsvec.store.store.Store.copy_from`, but without the inbox."""
    copying = Copying(source, writer, replaces, on_commit, source.encoders())
    every = source.look(Cursor(), {})
    seen = chosen(every, names)
    check_names(every, names, source)
    copying.damaged.update(dict.fromkeys(seen.unreadable, f"its record cannot be read: {source.way_out}"))
    live = [category for category in seen.categories if category.write_ids]
    removed = [category for category in seen.categories if not category.write_ids]
    copying.copy_all(track(live))
    copying.copy_all(category for category in removed if category.withdrawn or category.retired)
    later = chosen(source.look(seen.cursor, {one.name: one.version for one in every.categories}), names)
    changed = tuple(category.name for category in later.categories)
    for name in changed:  # references that another writer removed meanwhile are no damage
        copying.damaged.pop(name, None)
    ours = {*every.unreadable, *(category.name for category in every.categories if category.write_ids)}
    return Copied(
        categories=tuple(copying.committed),
        unchanged=tuple(copying.unchanged),
        different=tuple(copying.different),
        damaged=dict(sorted(copying.damaged.items())),
        changed=changed,
        only_target=tuple(one.name for one in writer.catalog.categories()[0] if one.name not in ours),
        calibration=False if changed else copying.calibration(seen),
        size=copying.size,
    )


@dataclass(slots=True)
class Copying:
    """One copy in progress, and its result so far.

    Attributes:
        held: By category of the target, the references that stay when others are added, without vectors.
        followed: By category, the state of the source that the manifest of the target names, if the target follows the
            source (`zsvec.store.following`).
    """

    source: Source
    writer: Writer
    replaces: bool
    on_commit: Callable[[Category], None]
    encoders: Mapping[str, Fingerprint]
    committed: list[Category] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    size: int = 0
    held: dict[str, list[Reference]] = field(default_factory=dict)
    followed: dict[str, Followed] = field(default_factory=dict)

    def copy_all(self, categories: Iterable[Category]) -> None:
        """Copies categories in batches, as `copy`."""
        for batch in _batches(categories):
            self.copy(batch)

    def copy(self, categories: Sequence[Category]) -> None:
        """Copies categories, and the marks of removed categories. Records why a category cannot be copied."""
        pending = {category.name: category for category in categories if self._is_usable(category)}
        if not pending:
            return
        try:
            self.writer.until_won(lambda: self._attempt(pending), pending)
        except (StoreUnavailableError, StoreLockedError):
            raise
        except StoreError as exc:
            if len(pending) == 1:
                self.damaged[next(iter(pending))] = str(exc)
                return
            for category in pending.values():
                self.copy([category])

    def _is_usable(self, category: Category) -> bool:
        if problem := problem_of(category):
            self.damaged[category.name] = problem
        return not problem

    def _attempt(self, pending: dict[str, Category]) -> bool:
        """Commits the pending categories, and returns whether none is left.

        A category is left if another writer has changed it in the target meanwhile.
        """
        catalog = self.writer.catalog
        before = settled(catalog, pending)
        plans, new = self._plans(pending, before)
        complete = {name: plan for name, plan in plans.items() if plan == before.category(name)}
        manifests, damaged = self._carry_out(
            {name: plan for name, plan in plans.items() if name not in complete}, new, before
        )
        if complete and not catalog.exclusive:  # others may have changed the categories since
            manifests |= catalog.state(complete).manifests
        now = {name: category_from(found) for name, found in publish(catalog, manifests, plans.keys() - new).items()}
        if catalog.exclusive:
            now |= complete
        self.damaged |= damaged
        for name, plan in plans.items():
            category = now.get(name)
            if category and set(plan.write_ids) <= set(category.write_ids):
                self._note(category, pending[name], is_new=name in new)
                del pending[name]
        for name in damaged:
            del pending[name]
        return not pending

    def _note(self, category: Category, given: Category, *, is_new: bool) -> None:
        """Notes a category that the target now has; `given` is the category of the source."""
        if is_new:
            self.committed.append(category)
            self.on_commit(category)
        elif given.write_ids:
            self.unchanged.append(category.name)

    def _plans(self, pending: dict[str, Category], before: State) -> tuple[dict[str, Category], dict[str, Category]]:
        """Returns the next version of each pending category in the target, and the categories to write, by name.

        Removes categories from `pending` that the target has with other content, and that must stay as they are.
        """
        plans, new = {}, {}
        for name, category in list(pending.items()):
            there = before.category(name)
            live = there if there and there.write_ids else None
            if category.write_ids and not (live and self._is_same(category, live)):
                if live and not self.replaces:
                    self.different.append(name)
                    del pending[name]
                else:
                    plans[name], new[name] = _planned(category, there), category
            elif live and not category.write_ids:  # only the target has the category
                del pending[name]
            else:
                plans[name] = _with_marks(there, category)
        return plans, new

    def _is_same(self, category: Category, there: Category) -> bool:
        """Returns whether a category has the same texts, metadata, parent and references in both stores."""
        if (category.texts, category.metadata, category.parent) != (there.texts, there.metadata, there.parent):
            return False
        return self._described(self.source.references, category) == self._described(self.writer.references.pages, there)

    def _described(self, pages: Callable[..., Iterable[Points]], category: Category) -> set[Any]:
        return {
            (*one.key, one.source, one.prompt, one.group, one.added, one.by, one.cut_from)
            for encoder in self.encoders
            for page in pages(encoder, category.write_ids, vectors=False)
            for payload, vector in zip(page.payloads, page.vectors, strict=True)
            for one in [reference_from(encoder, payload, vector)]
        }

    def _carry_out(
        self, plans: Mapping[str, Category], new: Mapping[str, Category], before: State
    ) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
        """Commits plans, those in `new` with their references.

        Returns:
            The manifests of the commits that won, and why categories cannot be copied, each by name of the category.
        """
        if not plans:
            return {}, {}
        writes = {name: plans[name].write_ids[-1:] for name in new}
        replaced = {
            name: [write_id for write_id in was.write_ids if write_id not in plan.write_ids]
            for name, plan in plans.items()
            if (was := before.category(name))
        }
        collector, catalog = self.writer.collector, self.writer.catalog
        with collector.intent(before, plans, writes, replaced) as intent:
            written = self._write(plans, new, images=before.images)
            complete, damaged = [], {}
            for name, plan in plans.items():
                if name not in new:
                    complete.append(plan)
                    continue
                found, expected = written[name], {e: n for e, n in new[name].references.items() if n}
                if found.counts == expected:
                    complete.append(replace(plan, references=expected))
                else:
                    damaged[name] = (
                        f"{sum(found.counts.values())} of its {sum(expected.values())} references can be used: "
                        f"{self.source.way_out}"
                    )
            if complete:
                intent.won.update(commit(catalog, complete, before, intent.change, self.followed))
        self.size += sum(written[name].size for name in intent.won.keys() & written.keys())
        return intent.won, damaged

    def _write(self, plans: Mapping[str, Category], new: Mapping[str, Category], *, images: bool) -> dict[str, Written]:
        """Writes the usable references of categories, and small copies of images if `images` is set."""
        written = {name: Written.of(self.held.get(name, ())) for name in new}
        owners = {write_id: name for name, category in new.items() for write_id in category.write_ids}
        for encoder, fingerprint in self.encoders.items():
            for page in self.source.references(encoder, list(owners)):
                found: dict[str, list[Reference]] = {}
                for reference, write_id in usable(encoder, fingerprint.dim, page):
                    name = owners[write_id]
                    if written[name].add(reference):
                        found.setdefault(name, []).append(reference)
                self.writer.references.put([(plans[name], some) for name, some in found.items()])
        for name, category in new.items() if images else ():
            copies = self.source.small_images(category.write_ids, written[name].images(self.held.get(name, ())))
            written[name].size += self.writer.references.images.add(plans[name], copies)
        return written

    def calibration(self, seen: Look) -> bool | None:
        """Copies the calibration if both stores now have the same categories, as `zsvec.types.Copied.calibration`.

        The calibration gets the revision of the target. A calibration that was stale in the source is stale in the
        target, unless the target had the same one and only its marks have changed since.
        """
        given, revision = seen.calibration or {}, calibrated_revision(seen.calibration)
        if revision is None:
            return None
        names = {category.name for category in seen.categories if category.write_ids}
        is_stale = any(category.rev > revision for category in seen.categories)
        return self.keep_calibration(given, names, is_stale=is_stale)

    def keep_calibration(self, given: Mapping[str, Any], names: Collection[str], *, is_stale: bool) -> bool:
        """Copies a calibration, as `calibration`, if the target has the categories of these names alone."""
        catalog = self.writer.catalog
        there, unreadable = readable(catalog.manifests())
        if self.different or self.damaged or unreadable or names != {c.name for c in there if c.write_ids}:
            return False
        newest = max((category.rev for category in there), default=0)
        taken = {**given, "revision": newest - is_stale}
        present = catalog.calibration() or {}
        is_current = (calibrated_revision(present) or 0) >= newest
        if present == taken:
            return True
        if is_current and (is_stale or not self.replaces) and {**present, "revision": 0} != {**taken, "revision": 0}:
            return False
        self.writer.keep_calibration(taken)
        return True


@dataclass(slots=True)
class Written:
    """The references of one category that were written.

    Attributes:
        keys: Keys of the references.
        counts: Number of references by expert.
        size: Bytes of vectors and small copies of images.
    """

    keys: set[tuple[str, str, str]] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    size: int = 0

    @classmethod
    def of(cls, held: Iterable[Reference]) -> Written:
        """Returns the references that are there already, without vectors."""
        written = cls()
        for reference in held:
            written.add(reference)
        return written

    def add(self, reference: Reference) -> bool:
        """Counts a reference; returns False if it is counted already."""
        if reference.key in self.keys:
            return False
        self.keys.add(reference.key)
        self.counts[expert_name(reference.encoder, reference.modality)] += 1
        self.size += reference.vector.nbytes
        return True

    def images(self, held: Iterable[Reference] = ()) -> list[str]:
        """Returns the content hashes of the images, sorted, without references that were there already."""
        added = self.keys.difference(one.key for one in held)
        return sorted({digest for _, modality, digest in added if modality == "image"})


def problem_of(category: Category) -> str:
    """Returns why no store would have such a category; empty without a problem. Does not read the references."""
    try:
        stored = checked_name(category.name), checked_parent(category.parent)
        checked_texts(category.texts, "texts", "a definition text")
        checked_metadata(category.metadata)
    except InvalidInputError as exc:
        return str(exc)
    if stored != (category.name, category.parent):
        return "its name or parent is not in Unicode normal form NFC, or has surrounding whitespace"
    if category.write_ids and not any(category.references.values()):
        return "it has no references"
    return ""


def usable(encoder: str, dim: int, page: Points) -> Iterator[tuple[Reference, str]]:
    """Yields each usable reference of a page with its write id. `dim` is the dimension of the encoder's vectors."""
    import numpy as np  # slow to import, and not needed to list categories

    vectors = page.vectors
    if vectors.shape[1] != dim:
        return
    with np.errstate(over="ignore"):  # of a forged vector
        norms = np.linalg.norm(vectors, axis=1).tolist()
    for payload, vector, norm in zip(page.payloads, vectors, norms, strict=True):
        length = sum(len(value) for value in payload.values() if isinstance(value, str))
        is_known = payload["modality"] in ("text", "image") and is_content_hash(payload["hash"])
        if is_known and length <= LONGEST_SOURCE and 0.5 < norm < 2:
            yield reference_from(encoder, payload, vector), payload["gen"]


def _planned(category: Category, there: Category | None) -> Category:
    """Returns the next version of a category of the target, with the content of the source but no references yet."""
    return replace(
        category,
        version=there.version + 1 if there else 1,
        rev=0,
        write_ids=(new_write_id(),),
        references={},
        withdrawn=newest(category.withdrawn),
        kept=newest(category.kept),
        retired=False,
    )


def _with_marks(there: Category | None, category: Category) -> Category:
    """Returns a category of the target with the marks of the source added; `there` itself if it has them."""
    held = there or Category(name=category.name, version=0, rev=0, write_ids=(), texts=(), references={})
    marked = replace(
        held,
        withdrawn=newest((*held.withdrawn, *newest(category.withdrawn))),
        kept=newest((*held.kept, *newest(category.kept))),
        retired=held.retired or category.retired,
    )
    return held if marked == held else replace(marked, version=held.version + 1, rev=0)


def _batches(categories: Iterable[Category]) -> Iterator[list[Category]]:
    batch: list[Category] = []
    references = 0
    for category in categories:
        number = max(1, sum(category.references.values()))  # a removed category has marks alone
        if batch and references + number > _AT_ONCE:
            yield batch
            batch, references = [], 0
        batch.append(category)
        references += number
    if batch:
        yield batch
