"""A model of sentence-transformers: loaded without a word, its texts embedded safely from any thread."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from zsvec.encoders.device import Runtime
from zsvec.encoders.quiet import quiet_loading
from zsvec.encoders.weights import Weights
from zsvec.errors import WeightsUnavailableError

# A row of the table in which transformers lists parameters that the file does not have.
_MISSING = re.compile(r"^(\S+)\s*\|[^|]*MISSING", re.MULTILINE)
# Sentence models pool the tokens themselves; the pooler of BERT is often not in the file and never used.
_UNUSED = re.compile(r"\bpooler\b")


class SentenceModel:
    """A loaded sentence-transformers model.

    Args:
        weights: Folder of the checkpoint.
        runtime: Where it runs.

    Attributes:
        model: The model itself, in evaluation mode, on its device.
        modalities: What it embeds.
        dim: Dimension of its vectors.

    Raises:
        WeightsUnavailableError: The checkpoint cannot be read, or lacks some of the model's weights.
    """

    def __init__(self, weights: Weights, runtime: Runtime) -> None:
        self.model = _load(weights, runtime)
        self.modalities = tuple(self.model.modalities)
        self.dim = int(self.model.get_embedding_dimension() or 0)
        # The tokenizers are not safe in threads: truncation and padding are set on a shared object.
        self._tokenizing = threading.Lock()

    @property
    def description(self) -> str:
        """How texts become vectors, for a fingerprint."""
        poolings = [f"{module.pooling_mode} of " for module in self.model if hasattr(module, "pooling_mode")]
        return f"{''.join(poolings)}at most {self.model.max_seq_length} tokens"

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts in their order, float32 (n, dim), of any norm. Long texts are truncated.

        Computed in float32 whatever the runtime's number format: texts are few, and references.
        """
        # To a model that takes images, a text which is the path or URL of one would be that image.
        inputs = [{"text": text} for text in texts] if "image" in self.modalities else list(texts)
        with self._tokenizing, torch.inference_mode():
            vectors: NDArray[np.float32] = self.model.encode(
                inputs, batch_size=256, show_progress_bar=False, convert_to_numpy=True
            )
        return vectors


def _load(weights: Weights, runtime: Runtime) -> SentenceTransformer:
    with quiet_loading() as messages:
        try:
            model = SentenceTransformer(str(weights.path), device=str(runtime.device), local_files_only=True)
        # Readers of configurations, tokenizers and weights raise errors of all kinds on a damaged file.
        except Exception as exc:
            raise WeightsUnavailableError(
                f"the checkpoint at {weights.path} cannot be loaded: {exc}; "
                "is it complete, and in the format of sentence-transformers or transformers?"
            ) from exc
    missing = [name for message in messages for name in _MISSING.findall(message) if not _UNUSED.search(name)]
    if missing:
        raise WeightsUnavailableError(
            f"the checkpoint at {weights.path} lacks weights of its model: {', '.join(missing[:5])} "
            f"({len(missing)} in all); download it again"
        )
    _limit_length(model)
    return model.float().eval()


def _limit_length(model: SentenceTransformer) -> None:
    """Some tokenizers do not know how many positions their model has and would not truncate."""
    config = model.config
    text_config = getattr(config, "text_config", config)
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and model.max_seq_length is not None:
        model.max_seq_length = min(model.max_seq_length, positions)
