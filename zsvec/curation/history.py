"""Recent changes of categories, and undo: `ChangeHistory`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

from zsvec.errors import InvalidInputError, shown
from zsvec.inputs.categories import checked_name
from zsvec.store import Store
from zsvec.types import Change


class ChangeHistory:
    """Recent changes of all processes: ``clf.history`` of a classifier.

    The setting ``history`` is the time for which changes are kept and can be undone. Iterating yields the changes,
    newest first. Writes that belong together, such as an import, are one change.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __iter__(self) -> Iterator[Change]:
        """Yields the changes, newest first, undone ones included.

        Raises:
            StoreError: The changes cannot be read.
        """
        return iter(self._store.changes())

    def of(self, category: str) -> list[Change]:
        """Returns the changes of one category, newest first; raises as `__iter__`."""
        name = checked_name(category)
        return [change for change in self if name in change.categories]

    def undoable(self, changes: Iterable[Change]) -> set[str]:
        """Returns the ids of those changes that `undo` accepts now; raises as `__iter__`.

        A later change of a category must be undone first. A switch to other encoders is not among them: to undo it,
        call `undo` and then open the store again in each process.
        """
        return self._store.undoable(changes)

    def needs_id(self, change: Change) -> bool:
        """Returns whether `undo` undoes a last change only by its id: it is not your own, or has more than 100 images.

        A change is your own if it is by the same author: the setting ``added_by``, or the name of the key of the
        service. Without an author, it is your own if this classifier made it.
        """
        return self._store.needs_id(change)

    def one_change(self, what: str, *, continues: str | None = None, more: bool = False) -> AbstractContextManager[str]:
        """Makes all writes of a block, and of inner blocks, one change. The block gets the id of the change.

        ```python
        with clf.history.one_change("import"):
            clf.add_category("cat", images=cats)
            clf.add_category("dog", images=dogs)
        ```

        Args:
            what: Kind of the change, in one word.
            continues: Id of an earlier change of the same kind and author that the writes belong to. By default, the
                writes are a new change.
            more: Whether later writes will continue the change. Then the calibration is left to these.

        Raises:
            InvalidInputError: The change to continue is not in effect, or is of another kind or by another author.
        """
        return self._store.one_change(what, continues, more=more)

    def acting(self, by: str | None) -> AbstractContextManager[None]:
        """Overrides the recorded author of changes (setting ``added_by``) within a block.

        Args:
            by: The author; ``None`` for the setting.
        """
        return self._store.acting(by)

    def undo(self, category: str | None = None, *, change: str | None = None) -> Change:
        """Undoes a change: the changed categories become as they were before. No image is embedded again.

        An undo is a change as well, and its id undoes the undo. That works for each category that is still as the undo
        left it. A change that erased an image (`Change.final`) cannot be undone. Earlier changes can, by their ids.

        Args:
            category: Name of a category, whose last change is undone. By default, the last change of the store is
                undone.
            change: Id of the change to undo, or the first characters of the id. Some changes need their id
                (`needs_id`). With `category`, only this category is restored, and the change must be its last one.

        Returns:
            The change that was undone. If this was an undo, `Change.left_out` names the categories that have changed
            since the undo, and stay as they are.

        Raises:
            InvalidInputError: There is no such change, it is final, or a later change of one of the categories must be
                undone first.
            ChangeIdNeededError: The change needs its id, which was not given.
            ConflictError: Other writers changed a category at every attempt.
        """
        if change is not None and not isinstance(change, str):
            raise InvalidInputError(
                f"change must be the id of a change, a str. Got {shown(change)} instead: `zsvec history` lists them"
            )
        return self._store.undo(None if category is None else checked_name(category), change)
