"""Search with torch.

On a CPU, torch computes only the matrix products, with the threads of the encoders. numpy is faster for the rest.

On another device, torch also keeps the references. The device returns one number per image and category, and the
nearest references of each image. After a change of the store, a second index is built while the first stays in use:
rows of changed categories are sent to the device, and other rows are copied on the device.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from zsvec.errors import StoreError
from zsvec.method.arrays import Floats
from zsvec.method.predict.reference_aggregation import cosine_to_mean
from zsvec.method.similarities import ExpertSimilarities, References
from zsvec.search.base import Expert, Index, IndexSpec
from zsvec.search.in_process import NumpyIndex, neighbors

_LEADERS = 64  # number of nearest references per image whose float16 similarities are recomputed in float32
# Rows are padded to a multiple of this number, at which tensor cores multiply float16 fastest (NVIDIA's matrix
# multiplication guide).
_MULTIPLE = 8
_BLOCK = 2**27  # number of similarities that are rearranged at once
# Largest number of steps for which the best references are found by insertion, in all categories at once. `torch.topk`
# treats categories one by one: for 10,000 categories of 10 references, insertion is 7 times as fast on a CPU.
_STEPS = 128


def build(references: References, spec: IndexSpec) -> Index:
    """Indexes the references of one expert.

    Raises:
        InvalidInputError: The device is not available.
        StoreError: The references do not fit the memory of the device.
    """
    from zsvec.encoders.torch.device import choose_device

    device = choose_device(spec.device, "float32").device  # type: ignore[arg-type]
    if device.type == "cpu":
        return NumpyIndex(references, product)
    return TorchIndex.of(references, device=device, dtype=getattr(torch, spec.dtype))


def product(a: Floats, b: Floats) -> Floats:
    """Returns the dot products of all rows of two matrices, computed on a CPU by the threads of the encoders.

    numpy's OpenBLAS would start further threads, which compete with the threads of the encoders for the cores.

    Args:
        a: float32 ``(n, d)``.
        b: float32 ``(m, d)``, writeable.

    Returns:
        float32 ``(n, m)``.
    """
    with torch.autocast("cpu", enabled=False):  # the caller may have enabled autocast
        # torch warns about read-only arrays, so the smaller array is copied.
        found: Floats = (torch.from_numpy(np.array(a)) @ torch.from_numpy(b).T).numpy()
    return found


@contextmanager
def _memory_of(device: torch.device) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as exc:
        raise StoreError(
            f"the references, or their similarities to a batch, do not fit the memory of the device {device}: set "
            "index_dtype='float16', a smaller batch_size or index_budget, or index_device='cpu'"
        ) from exc


@dataclass(frozen=True, slots=True)
class _Group:
    """Categories with similar numbers of references: each has more than half as many as the largest category.

    Attributes:
        categories: int64 ``(n,)``, positions of the categories.
        counts: int64 ``(n,)``, number of references of each category.
        columns: int64 ``(longest, n)``, columns of the references of each category, padded with an empty column.
    """

    categories: torch.Tensor
    counts: torch.Tensor
    columns: torch.Tensor

    def mean_of_best(self, values: torch.Tensor, m: int) -> torch.Tensor:
        """Returns the mean of the ``m`` largest values (or all, if fewer) of each category, ``(n_images, n)``.

        Args:
            values: float32 ``(n_images, n_rows)``; -inf in empty columns.
            m: Number of values to average, at least 1.
        """
        longest = len(self.columns)
        best = values[:, self.columns]
        if m == 1 or longest == 1:
            return best.amax(dim=1)
        if m < longest:
            best = _inserted(best, m) if m * longest <= _STEPS else best.topk(m, dim=1, sorted=False).values
        return best.where(best != -torch.inf, 0).sum(dim=1) / self.counts.clamp(max=m)


def _inserted(values: torch.Tensor, m: int) -> torch.Tensor:
    """Returns the ``m`` largest values along the middle axis."""
    best = [torch.full_like(values[:, 0], -torch.inf) for _ in range(m)]
    for candidate in values.unbind(dim=1):
        for rank, row in enumerate(best):
            best[rank] = torch.maximum(row, candidate)
            candidate = torch.minimum(row, candidate)  # the displaced value may be the next best
    return torch.stack(best, dim=1)


@dataclass(frozen=True, slots=True)
class TorchIndex:
    """References on a device. Implements `zsvec.search.base.Index`.

    Attributes:
        references: The indexed references, in the memory of the host.
        vectors: float32 or float16 ``(n_rows, dim)``: the references, followed by 1 to 8 empty rows of zeros.
        groups: The categories, grouped by number of references.
    """

    references: References
    vectors: torch.Tensor
    groups: tuple[_Group, ...]

    @classmethod
    def of(cls, references: References, *, device: torch.device, dtype: torch.dtype) -> TorchIndex:
        """Copies references to a device.

        Raises:
            StoreError: The references do not fit the memory of the device.
        """
        return cls._laid_out(references, {}, None, device, dtype)

    def updated(self, references: References, changed: Collection[str]) -> TorchIndex:
        """See `Index`.

        Raises:
            StoreError: The references do not fit the memory of the device, where this index may still be in use.
        """
        before = self.references
        kept = {name: int(start) for name, start in zip(before.names, before.starts, strict=False)}
        for name in changed:
            kept.pop(name, None)
        return self._laid_out(references, kept, self.vectors, self.vectors.device, self.vectors.dtype)

    @classmethod
    def _laid_out(
        cls,
        references: References,
        kept: Mapping[str, int],
        before: torch.Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> TorchIndex:
        n, dim = len(references.vectors), references.vectors.shape[1]
        with _memory_of(device):
            vectors = torch.empty((n + _MULTIPLE - n % _MULTIPLE, dim), device=device, dtype=dtype)
            vectors[n:] = 0
            for start, end, source in _pieces(references, kept):
                if before is None or source is None:
                    vectors[start:end] = _sent(references.vectors[start:end], device, dtype)
                else:
                    vectors[start:end] = before[source : source + end - start]
            return cls(references, vectors, tuple(_groups(references.starts, device)))

    def search(self, queries: Floats, nearest: int, expert: Expert) -> ExpertSimilarities:
        """See `Index`.

        Raises:
            StoreError: The similarities do not fit the memory of the device.
        """
        n = len(self.references.vectors)
        with _memory_of(self.vectors.device):
            query = torch.tensor(queries, device=self.vectors.device, dtype=self.vectors.dtype)
            values = (query @ self.vectors.T).float()
            values[:, n:] = -torch.inf
            rough = self.vectors.dtype != torch.float32
            leaders = values.topk(min(max(nearest, _LEADERS) if rough else nearest, n), dim=1)
            rows, cosines = leaders.indices.cpu().numpy(), leaders.values.cpu().numpy()
            if rough:
                # Computed on the host, which has the float32 vectors: a copy of them on the device would take more
                # memory than float16 saves. 64 x 64 products take a millisecond.
                cosines = (self.references.vectors[rows] @ queries[:, :, None])[:, :, 0]
                values.scatter_(1, leaders.indices, torch.from_numpy(cosines).to(values.device))
                order = np.argsort(-cosines, axis=1, kind="stable")[:, :nearest]
                rows, cosines = np.take_along_axis(rows, order, axis=1), np.take_along_axis(cosines, order, axis=1)
        return ExpertSimilarities(
            name=expert.name,
            coverage=expert.coverage,
            similarities=TorchSimilarities(self, values),
            nearest=neighbors(self.references, rows.astype(np.intp), cosines),
            class_means=self.references.sum_up,
            product=product,
        )


@dataclass(frozen=True, slots=True)
class TorchSimilarities:
    """Cosines between images and all references of one expert. Implements `zsvec.method.similarities.Compared`.

    Attributes:
        index: The index with the references.
        values: float32 ``(n_images, n_rows)``; -inf in empty columns.
    """

    index: TorchIndex
    values: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)

    def of(self, rows: slice) -> TorchSimilarities:
        """See `zsvec.method.similarities.Compared.of`."""
        return TorchSimilarities(self.index, self.values[rows])

    @property
    def counts(self) -> NDArray[np.intp]:
        """Number of references of each category, int ``(n_categories,)``."""
        return np.diff(self.index.references.starts)

    @property
    def exact(self) -> bool:
        """Always true: every reference is compared."""
        return True

    def aggregate(self, method: str, m: int) -> Floats:
        """See `zsvec.method.similarities.Compared.aggregate`.

        Raises:
            StoreError: The rearranged similarities do not fit the memory of the device.
        """
        every = self.values.shape[1]
        best = {"max": 1, "top_mean": m, "mean": every, "prototype": every}[method]
        with _memory_of(self.values.device):
            out = self.values.new_empty((len(self), len(self.index.references.names)))
            at_once = max(1, _BLOCK // every)
            for values, part in zip(torch.split(self.values, at_once), torch.split(out, at_once), strict=True):
                for group in self.index.groups:
                    part[:, group.categories] = group.mean_of_best(values, best)
            means: Floats = out.cpu().numpy()
        return cosine_to_mean(means, self.index.references.norms) if method == "prototype" else means


def _pieces(references: References, kept: Mapping[str, int]) -> Iterator[tuple[int, int, int | None]]:
    """Yields runs of rows to copy or send together: first row, end, and former first row (``None`` for new rows)."""
    bounds = references.starts.tolist()

    def shift(category: int) -> int | None:
        before = kept.get(references.names[category])
        return None if before is None else before - bounds[category]

    for moved, categories in groupby(range(len(references.names)), shift):
        first, *others = categories
        start, end = bounds[first], bounds[(others[-1] if others else first) + 1]
        yield start, end, None if moved is None else start + moved


def _sent(rows: Floats, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Sends rows to a device. Rounds before sending, so that less is sent."""
    return torch.from_numpy(rows).to(dtype).to(device)


def _groups(starts: NDArray[np.intp], device: torch.device) -> Iterator[_Group]:
    """Groups categories by number of references, in powers of two, so that padding at most doubles the work."""
    counts = np.diff(starts)
    size = np.ceil(np.log2(counts))
    for exponent in np.unique(size):
        categories = np.flatnonzero(size == exponent)
        rank = np.arange(counts[categories].max())[:, None]
        columns = np.where(rank < counts[categories], starts[categories] + rank, starts[-1])
        yield _Group(*(torch.from_numpy(array).to(device) for array in (categories, counts[categories], columns)))
