"""A map of images: images that the classifier finds similar are near each other in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from zsvec.errors import needs_extra
from zsvec.ingest.recalibration import Calibrator
from zsvec.ingest.sampling import sample
from zsvec.method.arrays import Floats
from zsvec.method.calibration import LOG_COUNT, Calibration
from zsvec.method.similarities import image_experts
from zsvec.store import InboxImage, Store
from zsvec.types import encoder_and_modality, is_attached

MAX_IMAGES = 20_000
"""Maximum number of images on a map."""

_COMPONENTS = 50  # principal components that t-SNE compares
_PERPLEXITY = 30.0  # about the number of images that count as near
_MIN_IMAGES = 4  # images that t-SNE can place


def image_map(
    store: Store, calibrator: Calibrator, temperatures: Mapping[str, float], inbox: Sequence[InboxImage]
) -> dict[str, tuple[float, float]]:
    """Returns the position of each reference image and of each waiting image, as `Classifier.image_map`."""
    waiting = [image for image in inbox if image.state == "waiting"]
    by_expert: dict[str, dict[str, Floats]] = {expert: {} for expert in image_experts(temperatures)}
    if calibrator.exceeds_budget:
        chosen = sample(store, store.categories(), temperatures, MAX_IMAGES)
        for expert, rows in by_expert.items():
            vectors = chosen.vectors.get(encoder_and_modality(expert)[0], ())
            rows |= zip((digest for _, digest in chosen.images), vectors, strict=True)
    else:
        for expert, one in image_experts(calibrator.references()).items():
            pairs = zip(one.hashes, one.vectors, strict=True)
            by_expert[expert] |= {digest: vector for digest, vector in pairs if not is_attached(digest)}
    for expert, rows in by_expert.items():
        encoder = encoder_and_modality(expert)[0]
        rows |= {image.hash: image.vectors[encoder] for image in waiting if encoder in image.vectors}
    return positions(by_expert, similarity_weights(calibrator.present(), temperatures))


def similarity_weights(calibration: Calibration | None, temperatures: Mapping[str, float]) -> dict[str, float]:
    """Returns how much a unit of each expert's similarity counts, in nats.

    Without learned coefficients, the profile's temperatures decide.
    """
    if calibration is None or not calibration.plain.learned:
        return {expert: 1 / temperature for expert, temperature in temperatures.items()}
    return {
        expert: max(0.0, sum(nats for name, nats in coefficients.items() if name != LOG_COUNT))
        for expert, coefficients in calibration.plain.coefficients.items()
    }


def positions(rows: Mapping[str, Mapping[str, Floats]], weights: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Places images in the plane by t-SNE (van der Maaten & Hinton, "Visualizing data using t-SNE", 2008).

    The similarity of two images is the sum over the experts of weight times cosine. An image without the vector of an
    expert gets the mean vector of that expert.

    Args:
        rows: By expert and content hash, float32 ``(dim,)`` of unit norm.
        weights: By expert, nats per unit of similarity; an expert with weight 0 or without a weight does not count.

    Returns:
        By content hash, x and y from 0 to 1. Of more than `MAX_IMAGES` images, those with the lowest hashes: a random
        sample, and the same each time.
    """
    counted = {expert: weight for expert in rows if rows[expert] and (weight := weights.get(expert, 0.0)) > 0}
    hashes = sorted({digest for expert in counted for digest in rows[expert]})[:MAX_IMAGES]
    if not hashes:
        return {}
    blocks = []
    for expert, weight in counted.items():
        there = [i for i, digest in enumerate(hashes) if digest in rows[expert]]
        vectors = np.stack([rows[expert][hashes[i]] for i in there]) if there else np.zeros((0, 1), np.float32)
        block = np.zeros((len(hashes), vectors.shape[1]), dtype=np.float32)
        if there:
            block[there] = np.sqrt(weight) * (vectors - vectors.mean(axis=0))
        blocks.append(block)
    plane = _plane(np.concatenate(blocks, axis=1))
    plane -= plane.min(axis=0)
    plane /= max(float(plane.max()), 1e-12)
    return {digest: (float(x), float(y)) for digest, (x, y) in zip(hashes, plane, strict=True)}


def _plane(points: Floats) -> Floats:
    """Returns float32 ``(n, 2)`` for float32 ``(n, dim)``."""
    # Slow to import. `cluster` comes first, as in the inbox: modules of sklearn import each other, so two threads that
    # begin at different modules can get one that is not ready.
    with needs_extra("groups", "the map"):
        import sklearn.cluster  # noqa: F401
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE

    n = len(points)
    if n < _MIN_IMAGES or not points.any():
        return np.stack([np.arange(n, dtype=np.float32), np.zeros(n, dtype=np.float32)], axis=1)
    components = min(_COMPONENTS, *points.shape)
    reduced = PCA(components, svd_solver="randomized", random_state=0).fit_transform(points)
    start = "pca" if components > 1 else "random"
    made: Floats = TSNE(perplexity=min(_PERPLEXITY, (n - 1) / 3), init=start, random_state=0).fit_transform(reduced)
    return made
