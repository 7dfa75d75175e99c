"""ConSE: an image–text encoder made of a classifier and a text model (Norouzi et al., 2014, arXiv:1312.5650).

The vector of a text is its sentence embedding. The vector of an image is the mean of the sentence embeddings of the
classifier's 10 most probable labels, weighted by their probabilities (equation 4). Labels are ImageNet's full
descriptions with all synonyms (``tench, Tinca tinca``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

from zsvec.encoders.base import TOP_LABELS, ConseEncoder
from zsvec.encoders.hub import Source, checkpoint_source
from zsvec.encoders.loading import LoadContext
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch import vision
from zsvec.encoders.torch.sentence import SentenceModel
from zsvec.encoders.torch.vision import TimmBackbone, load_backbone
from zsvec.errors import InvalidInputError
from zsvec.types import Modality


def sources(spec: EncoderSpec) -> list[Source]:
    """Returns the sources of the weights of the classifier and of the text model."""
    return [*vision.sources(spec), _text_source(spec)]


def load(name: str, spec: EncoderSpec, modalities: tuple[Modality, ...], context: LoadContext) -> ConseEncoder:
    """Loads an ImageNet classifier of timm and a text model of sentence-transformers.

    Raises as `load_encoders` does.
    """
    # The weights of the mean are a softmax, which would amplify the rounding errors of bfloat16.
    context = replace(context, torch_device=replace(context.torch_device, dtype=torch.float32))
    text_weights = _text_source(spec).load()
    backbone = load_backbone(spec, context)
    labels = _labels(name, spec.model, backbone)
    sentences = SentenceModel(text_weights, context.torch_device)
    vectors = sentences.embed_texts(labels)
    return ConseEncoder(
        name,
        sentences,
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        fingerprint=backbone.weights.fingerprint(
            sentences.dim,
            f"images: {backbone.preprocessing}, mean of the top {TOP_LABELS} of {len(labels)} ImageNet descriptions; "
            f"texts: {text_weights}, {sentences.description}",
        ),
        modalities=modalities,
        backbone=backbone,
        batch_size=context.batch_size,
    )


def _text_source(spec: EncoderSpec) -> Source:
    if spec.text_model is None:
        raise InvalidInputError("family 'conse' needs a text_model: an id of the hub, a path or package:NAME")
    repository, _, revision = spec.text_model.partition("@")
    return checkpoint_source(repository, revision or None)


def _labels(name: str, model: str, backbone: TimmBackbone) -> list[str]:
    subset = infer_imagenet_subset(backbone.model)
    if subset is None:
        raise InvalidInputError(f"encoder {name!r}: {model} is no ImageNet classifier; family 'conse' needs one")
    info = ImageNetInfo(subset)
    return [info.index_to_description(index) for index in range(info.num_classes())]
