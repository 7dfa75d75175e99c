"""Checkpoints of real architectures, random weights and a few hundred kilobytes, made without a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

from zsvec.encoders.hub import quiet_loading

POSITIONS = 20
"""Tokens that the tiny CLIP can read; the tokenizer has no such limit."""
VIT = "test_vit"


def save_clip(folder: Path, seed: int = 0) -> Path:
    """Saves a CLIP in the format of transformers."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    config = CLIPConfig(
        text_config={**tower, **special, "vocab_size": len(tokens), "max_position_embeddings": POSITIONS},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    with quiet_loading():
        model.save_pretrained(folder)
        CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_sentence_clip(folder: Path, seed: int = 0) -> Path:
    """Saves the same CLIP in the present format of sentence-transformers."""
    plain = save_clip(folder / "plain", seed)
    with quiet_loading():
        SentenceTransformer(str(plain), device="cpu", local_files_only=True).save(str(folder / "sentence"))
    return folder / "sentence"


def save_older_sentence_clip(folder: Path, seed: int = 0) -> Path:
    """Saves the same CLIP in the layout of the hub's ``sentence-transformers/clip-ViT-B-32``."""
    save_clip(folder / "0_CLIPModel", seed)
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    versions = {"__version__": {"sentence_transformers": "2.0.0", "transformers": "4.7.0", "pytorch": "1.9.0"}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(versions))
    return folder


def save_sentence_bert(folder: Path, seed: int = 0) -> Path:
    """Saves a text model in the format of sentence-transformers; without BERT's pooler, as many are."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with quiet_loading():
        BertModel(config, add_pooling_layer=False).save_pretrained(folder / "bert")
        BertTokenizer(vocab=vocabulary).save_pretrained(folder / "bert")
        transformer = Transformer(str(folder / "bert"))
        modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean")]
        SentenceTransformer(modules=modules, device="cpu").save(str(folder / "sentence"))
    return folder / "sentence"


def save_vit(path: Path, seed: int = 0) -> Path:
    """Saves the weights of timm's `VIT`, a ViT for 160 × 160 pixels with ImageNet's 1,000 classes."""
    torch.manual_seed(seed)
    torch.save(timm.create_model(VIT).state_dict(), path)
    return path


def photo(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Returns smooth random colours, equal for equal seeds."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
