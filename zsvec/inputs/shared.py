"""The decoded image that consecutive regions of a stream share: decoded for the first region, freed after the last."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import ExitStack
from threading import RLock
from typing import TYPE_CHECKING

from zsvec.inputs.memory import ACCOUNT

if TYPE_CHECKING:
    from zsvec.inputs.images import LoadedImage


class SharedImage:
    """An image that is decoded once for several regions, which one thread at a time reads.

    Between two regions, while the source of a stream may have more, the decoded image stays in memory, unless another
    thread needs that memory: then the next region decodes it again.

    Args:
        source: Name of the image in results.
        load: Decodes the image, and reserves its memory until the stack is closed.

    Attributes:
        mark: Equal for images of the same content (`zsvec.inputs.images.share`).
    """

    mark: Hashable = None

    def __init__(self, source: str, load: Callable[[ExitStack], LoadedImage]) -> None:
        self.source = source
        self._load = load
        self._held = ExitStack()
        self._image: LoadedImage | None = None
        self._failure: Exception | None = None
        self._leases = 0
        self._is_current = True
        # Held briefly: `Account.take` may call `reclaim`, and the garbage collector `Lease.close`, in any thread.
        self._lock = RLock()

    def lease(self) -> Lease:
        """Returns the image for one region. The decoded image stays in memory until the lease is closed."""
        with self._lock:
            self._leases += 1
        return Lease(self)

    def release(self) -> None:
        """Ends a lease."""
        with self._lock:
            self._leases -= 1
            self._settle()

    def leave(self) -> None:
        """Ends the image: there are no more leases."""
        with self._lock:
            self._is_current = False
            self._settle()

    def reclaim(self) -> None:
        """Frees the image, unless there is a lease."""
        with self._lock:
            if not self._leases:
                self._free()

    def whole(self, held: ExitStack) -> LoadedImage:
        """Returns the image and its hash. The caller counts as a thread with reserved memory until the stack is closed.

        Raises:
            Exception: The image is unreadable. The error is kept, so that the file is read once.
        """
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._image is None:
            try:
                with ACCOUNT.lent():
                    self._image = self._load(self._held)
            except Exception as error:
                self._failure = error
                self._held.close()
                raise
        ACCOUNT.join(held)
        return self._image

    def _settle(self) -> None:
        if not self._leases and self._is_current:
            ACCOUNT.offer(self)
        elif not self._leases:
            ACCOUNT.withdraw(self)
            self._free()

    def _free(self) -> None:
        self._image = None
        self._held.close()


class Lease:
    """A shared image, as the image of one region. Ends when it is closed, or dropped with the region."""

    def __init__(self, shared: SharedImage) -> None:
        self.shared = shared
        self._closing = ExitStack()
        self._closing.callback(shared.release)

    def close(self) -> None:
        """Ends the lease; may be called again."""
        self._closing.close()

    def __del__(self) -> None:  # of a stream that ends before the region is read
        self._closing.close()
