"""Models of sentence-transformers, which load without console output and embed texts from any thread."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence

import torch
from sentence_transformers import SentenceTransformer

from zsvec.encoders.base import Vectors
from zsvec.encoders.hub import quiet_loading
from zsvec.encoders.torch.device import TorchDevice
from zsvec.encoders.weights import Weights
from zsvec.errors import WeightsUnavailableError

# A row of the table in which transformers lists the parameters that the file lacks.
_MISSING = re.compile(r"^(\S+)\s*\|[^|]*MISSING", re.MULTILINE)
# Sentence models pool the tokens themselves: BERT's pooler is never used, and missing from many files.
_UNUSED = re.compile(r"\bpooler\b")


class SentenceModel:
    """A loaded sentence-transformers model.

    Attributes:
        model: The sentence-transformers object, in evaluation mode and in float32.
        modalities: Modalities that the model embeds.
        dim: Dimension of the vectors.

    Raises:
        WeightsUnavailableError: The checkpoint cannot be read, or lacks some of the model's weights.
    """

    def __init__(self, weights: Weights, torch_device: TorchDevice) -> None:
        self.model = _load(weights, torch_device)
        self.modalities = tuple(self.model.modalities)
        self.dim = int(self.model.get_embedding_dimension() or 0)
        # Tokenizers are not thread-safe: truncation and padding are settings of a shared object.
        self._tokenizing = threading.Lock()

    @property
    def description(self) -> str:
        """Pooling and length limit of texts, for a fingerprint."""
        poolings = [f"{module.pooling_mode} of " for module in self.model if hasattr(module, "pooling_mode")]
        return f"{''.join(poolings)}at most {self.model.max_seq_length} tokens"

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Returns the vectors of texts in order, as float32 (n, dim) of any norm. Long texts are truncated.

        The model always runs in float32, because there are few texts and each text is a reference.
        """
        # If a text is the path or URL of an image, a model that also takes images would open the image.
        inputs = [{"text": text} for text in texts] if "image" in self.modalities else list(texts)
        with self._tokenizing, torch.inference_mode():
            vectors: Vectors = self.model.encode(inputs, batch_size=256, show_progress_bar=False, convert_to_numpy=True)
        return vectors


def _load(weights: Weights, torch_device: TorchDevice) -> SentenceTransformer:
    with quiet_loading() as messages:
        try:
            model = SentenceTransformer(str(weights.path), device=str(torch_device.device), local_files_only=True)
        # For a damaged file, the readers of configurations, tokenizers and weights raise errors of all kinds.
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
    # Some tokenizers do not know the maximum number of tokens of the model.
    config = model.config
    positions = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
    if positions is not None and model.max_seq_length is not None:
        model.max_seq_length = min(model.max_seq_length, positions)
    return model.float().eval()
