"""Images, checkpoints and references to measure with; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.measure import unit_vectors
from zsvec.encoders import EncoderSet
from zsvec.encoders.quiet import quiet_loading
from zsvec.encoders.spec import EncoderSpec
from zsvec.inputs.categories import CategoryInput
from zsvec.inputs.folders import find_images
from zsvec.inputs.images import load_image
from zsvec.settings.profiles import PROFILES

SIZE = (500, 375)
_DISTINCT = 128  # images that are made; more are the same again


def write_images(count: int, source: Path | None, into: Path) -> list[Path]:
    """Paths of so many JPEG files of 500×375, made from the images of a folder, or from random colours."""
    found = find_images(source)[:_DISTINCT] if source else []
    pictures = map(load_image, found) if found else map(_random_picture, range(_DISTINCT))
    paths = []
    for number, picture in zip(range(count), pictures, strict=False):
        paths.append(into / f"{number:04}.jpg")
        ImageOps.fit(picture, SIZE).save(paths[-1], quality=90)
    return [paths[number % len(paths)] for number in range(count)]


def _random_picture(seed: int) -> Image.Image:
    """Colours at three scales, so that a JPEG of it is about as large as one of a photograph."""
    random = np.random.default_rng(seed)
    total = np.zeros((SIZE[1], SIZE[0], 3), dtype=np.float32)
    for side, weight in ((5, 0.6), (50, 0.3), (250, 0.1)):
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        total += weight * np.asarray(Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC), dtype=np.float32)
    return Image.fromarray(total.astype(np.uint8))


def specs(name: str, cache: Path) -> Mapping[str, EncoderSpec]:
    """The encoders of a profile; those that the hub has with random weights, which are as fast as the real ones."""
    encoders = PROFILES[name].encoders
    made = {"clip": {"model": str(clip_checkpoint(cache))}, "vision": {"weights": str(dino_weights(cache))}}
    from_hub = {key: spec for key, spec in encoders.items() if spec.family in made and not spec.weights}
    return {**encoders, **{key: spec.model_copy(update=made[spec.family]) for key, spec in from_hub.items()}}


def clip_checkpoint(cache: Path) -> Path:
    """Folder of a CLIP ViT-B/32 that transformers, sentence-transformers and zsvec load; its tokens are letters."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = cache / "clip-vit-b-32"
    if (folder / "model.safetensors").exists():
        return folder
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)
    special = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    torch.manual_seed(0)
    with quiet_loading():
        CLIPProcessor(image_processor=CLIPImageProcessor(), tokenizer=tokenizer).save_pretrained(folder)
        CLIPModel(CLIPConfig(text_config=special)).save_pretrained(folder)  # by default, that of OpenAI's ViT-B/32
    return folder


def dino_weights(cache: Path) -> Path:
    """File with weights of timm's DINOv2 ViT-B/14 for 224 pixels."""
    import timm

    path = cache / "dinov2-vit-b-14.pt"
    if not path.exists():
        spec = PROFILES["base"].encoders["dino"]
        torch.manual_seed(0)
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(timm.create_model(spec.model, img_size=spec.image_size).state_dict(), path)
    return path


def random_categories(encoders: EncoderSet, references: int, categories: int) -> Iterator[CategoryInput]:
    """Categories with so many random references in all experts together: a text each, the rest as images."""
    random = np.random.default_rng(0)
    text_encoders = [encoder for encoder in encoders if "text" in encoder.modalities]
    images = (references - categories * len(text_encoders)) // len(encoders)
    bounds = np.linspace(0, images, categories + 1).astype(int)
    for number, count in enumerate(np.diff(bounds).tolist()):
        vectors = {f"{e.name}:text": unit_vectors(random, 1, e.fingerprint.dim) for e in text_encoders}
        if count:
            vectors |= {f"{e.name}:image": unit_vectors(random, count, e.fingerprint.dim) for e in encoders}
        yield CategoryInput(name=f"category {number:05}", texts=[], vectors=vectors)


def vector_category(number: int, vectors: NDArray[np.float32]) -> CategoryInput:
    """A category of vectors of the encoder ``bench``."""
    return CategoryInput(name=f"category {number:06}", texts=[], vectors={"bench:image": vectors})
