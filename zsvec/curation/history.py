"""`ChangeHistory`: what a classifier offers to see what was changed, and to take it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from zsvec.errors import InvalidInputError, shown
from zsvec.inputs.categories import checked_name
from zsvec.store import Store
from zsvec.types import Change


class ChangeHistory:
    """The changes of the last time (setting ``history``), by whatever process. It is ``clf.history`` of a classifier.

    Iterates them, newest first. What belongs together is one change, such as an import or a move.

    Args:
        store: Where the categories are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __iter__(self) -> Iterator[Change]:
        """The changes, newest first, and those that were taken back.

        Raises:
            StoreError: They cannot be read.
        """
        return iter(self._store.changes())

    def of(self, category: str) -> list[Change]:
        """The changes of one category, newest first; raises as iterating."""
        name = checked_name(category)
        return [change for change in self if name in change.categories]

    def one_change(self, what: str) -> AbstractContextManager[str]:
        """Make all that is changed in a block one change, and give its id. Inner blocks belong to it.

        ```python
        with clf.history.one_change("import"):
            clf.add_category("cat", images=cats)
            clf.add_category("dog", images=dogs)
        ```

        Args:
            what: The change, in one word.
        """
        return self._store.one_change(what)

    def acting(self, by: str | None) -> AbstractContextManager[None]:
        """Record another author of the changes of a block than the setting ``added_by`` says.

        Args:
            by: The author; ``None`` for that of the setting.
        """
        return self._store.acting(by)

    def undo(self, category: str | None = None, *, change: str | None = None) -> Change:
        """Take a change back, and give it: its categories become what they were before. Nothing is embedded again.

        What is taken back is a change again, which its id takes back.

        Args:
            category: Name of a category, whose last change it is; by default the last one of all.
            change: Its id, or the first characters of that.

        Raises:
            InvalidInputError: There is no such change; or a category has been changed since by another one, which has
                to be taken back first.
            ConflictError: Other writers changed a category at every attempt.
        """
        if change is not None and not isinstance(change, str):
            raise InvalidInputError(
                f"change must be the id of a change, a str. Got {shown(change)} instead: `zsvec history` lists them"
            )
        return self._store.undo(None if category is None else checked_name(category), change)
