"""Which tensor of a Hugging Face checkpoint goes into which variable: one table per family.

Names are those without the prefix of the model class ("bert.", "transformer.", "model.").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np

from tf_infer.errors import CheckpointError
from tf_infer.networks.tensor_files import FLOATS, Tensors


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor and the variables it fills.

    Attributes:
        name: of the tensor.
        variables: one, or several that lie side by side in the tensor's last axis.
        layout: "linear" is torch's [out, in], "conv1d" GPT-2's [in, out], "vector" a bias or scale,
            "table" rows of vectors.
        inputs: axes of the variable that count as "in".
        skip: rows of a table that are left out at its beginning.
        add: the (one) row of the table is added to every row of the variable.
    """

    name: str
    variables: tuple[keras.Variable, ...]
    layout: Literal["linear", "conv1d", "vector", "table"]
    inputs: int = 1
    skip: int = 0
    add: bool = False

    def shape(self) -> tuple[int, ...]:
        """Return the shape the tensor must have."""
        shape = tuple(self.variables[0].shape)
        count = len(self.variables)
        if self.add:
            return (1, *shape[1:])
        if self.layout == "table":
            return (self.skip + shape[0], *shape[1:])
        if self.layout == "vector":
            return (math.prod(shape) * count,)
        sizes = math.prod(shape[:self.inputs]), math.prod(shape[self.inputs:]) * count
        return sizes if self.layout == "conv1d" else sizes[::-1]

    def assign(self, array: np.ndarray) -> None:
        """Fill the variables."""
        if self.add:
            self.variables[0].assign(self.variables[0] + array)
            return
        array = array.T if self.layout == "linear" else array[self.skip:]
        for variable, part in zip(self.variables, np.split(array, len(self.variables), axis=-1)):
            variable.assign(part.reshape(variable.shape))


def fill(entries: list[Entry], tensors: Tensors, names: Mapping[str, str], *,
         expected_beside: frozenset[str] = frozenset()) -> None:
    """Check all tensors, then fill all variables.

    Args:
        entries: what is wanted.
        tensors: the files.
        names: name without prefix -> name in the files, of everything in the files.
        expected_beside: names without prefix that may stand in the files unused.

    Raises:
        CheckpointError: a tensor is missing, unknown, of the wrong shape or no float; all faults
            are named at once and no variable is changed.
    """
    wanted = {entry.name: entry for entry in entries}
    faults = [f"{name} is missing" for name in wanted if name not in names]
    faults += [f"{full} is unknown" for name, full in names.items()
               if name not in wanted and name not in expected_beside]
    for name, entry in wanted.items():
        if name in names:
            shape, dtype = tensors.shape(names[name]), tensors.dtype(names[name])
            if shape != entry.shape():
                faults.append(f"{names[name]} has shape {shape} instead of {entry.shape()}")
            if dtype not in FLOATS:
                faults.append(f"{names[name]} has dtype {dtype} instead of one of {FLOATS}")
    if faults:
        raise CheckpointError(f"{tensors.directory}: expected the tensors that config.json "
                              f"describes, got: {'; '.join(sorted(faults))}.")
    for name, entry in wanted.items():
        entry.assign(tensors.read(names[name]))


def dense(name: str, layer: Any) -> Iterator[Entry]:
    """A torch Linear with a bias, into a Dense or an EinsumDense."""
    yield Entry(f"{name}.weight", (layer.kernel,), "linear",
                inputs=len(layer.kernel.shape) - len(layer.bias.shape))
    yield Entry(f"{name}.bias", (layer.bias,), "vector")


def norm(name: str, layer: Any) -> Iterator[Entry]:
    """A LayerNorm with scale and offset."""
    yield Entry(f"{name}.weight", (layer.gamma,), "vector")
    yield Entry(f"{name}.bias", (layer.beta,), "vector")


def _encoder_block(layer: Any, prefix: str, names: tuple[str, ...]) -> Iterator[Entry]:
    """The eight parts of a TransformerEncoder, named in this order."""
    query, key, value, out, attention_norm, inner, outer, outer_norm = (
        f"{prefix}.{name}" for name in names)
    attention = layer._self_attention_layer
    yield from dense(query, attention.query_dense)
    yield from dense(key, attention.key_dense)
    yield from dense(value, attention.value_dense)
    yield from dense(out, attention.output_dense)
    yield from norm(attention_norm, layer._self_attention_layer_norm)
    yield from dense(inner, layer._feedforward_intermediate_dense)
    yield from dense(outer, layer._feedforward_output_dense)
    yield from norm(outer_norm, layer._feedforward_layer_norm)


BERT_BLOCK = ("attention.self.query", "attention.self.key", "attention.self.value",
              "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense",
              "output.dense", "output.LayerNorm")
DISTILBERT_BLOCK = ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin",
                    "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm")


def bert(backbone: Any, *, pooler: bool) -> Iterator[Entry]:
    """BertModel -> BertBackbone."""
    for name, variable in (("word", backbone.token_embedding.embeddings),
                           ("position", backbone.position_embedding.position_embeddings),
                           ("token_type", backbone.segment_embedding.embeddings)):
        yield Entry(f"embeddings.{name}_embeddings.weight", (variable,), "table")
    yield from norm("embeddings.LayerNorm", backbone.embeddings_layer_norm)
    for i, layer in enumerate(backbone.transformer_layers):
        yield from _encoder_block(layer, f"encoder.layer.{i}", BERT_BLOCK)
    if pooler:
        yield from dense("pooler.dense", backbone.pooled_dense)


def roberta(backbone: Any, *, offset: int) -> Iterator[Entry]:
    """RobertaModel -> RobertaBackbone; positions begin behind the padding id's row."""
    words = backbone.embeddings.token_embedding.embeddings
    positions = backbone.embeddings.position_embedding.position_embeddings
    yield Entry("embeddings.word_embeddings.weight", (words,), "table")
    yield Entry("embeddings.position_embeddings.weight", (positions,), "table", skip=offset)
    # The only segment is added to every position: once here instead of in every call.
    yield Entry("embeddings.token_type_embeddings.weight", (positions,), "table", add=True)
    yield from norm("embeddings.LayerNorm", backbone.embeddings_layer_norm)
    for i, layer in enumerate(backbone.transformer_layers):
        yield from _encoder_block(layer, f"encoder.layer.{i}", BERT_BLOCK)


def distilbert(backbone: Any) -> Iterator[Entry]:
    """DistilBertModel -> DistilBertBackbone."""
    words = backbone.embeddings.token_embedding.embeddings
    positions = backbone.embeddings.position_embedding.position_embeddings
    yield Entry("embeddings.word_embeddings.weight", (words,), "table")
    yield Entry("embeddings.position_embeddings.weight", (positions,), "table")
    yield from norm("embeddings.LayerNorm", backbone.embeddings_layer_norm)
    for i, layer in enumerate(backbone.transformer_layers):
        yield from _encoder_block(layer, f"transformer.layer.{i}", DISTILBERT_BLOCK)


def gpt2(backbone: Any) -> Iterator[Entry]:
    """GPT2Model -> GPT2Backbone; query, key and value stand side by side in c_attn."""
    yield Entry("wte.weight", (backbone.token_embedding.embeddings,), "table")
    yield Entry("wpe.weight", (backbone.position_embedding.position_embeddings,), "table")
    for i, layer in enumerate(backbone.transformer_layers):
        attention = layer._self_attention_layer
        parts = (attention.query_dense, attention.key_dense, attention.value_dense)
        yield from norm(f"h.{i}.ln_1", layer._self_attention_layer_norm)
        yield Entry(f"h.{i}.attn.c_attn.weight", tuple(p.kernel for p in parts), "conv1d")
        yield Entry(f"h.{i}.attn.c_attn.bias", tuple(p.bias for p in parts), "vector")
        for name, part, inputs in (
                ("attn.c_proj", attention.output_dense, 2),
                ("mlp.c_fc", layer._feedforward_intermediate_dense, 1),
                ("mlp.c_proj", layer._feedforward_output_dense, 1)):
            yield Entry(f"h.{i}.{name}.weight", (part.kernel,), "conv1d", inputs=inputs)
            yield Entry(f"h.{i}.{name}.bias", (part.bias,), "vector")
        yield from norm(f"h.{i}.ln_2", layer._feedforward_layer_norm)
    yield from norm("ln_f", backbone.layer_norm)


def llama(backbone: Any) -> Iterator[Entry]:
    """LlamaModel -> LlamaBackbone."""
    embedding = backbone.token_embedding
    yield Entry("embed_tokens.weight", (embedding.embeddings,), "table")
    for i, layer in enumerate(backbone.transformer_layers):
        attention = layer._self_attention_layer
        for name, part, inputs in (
                ("self_attn.q_proj", attention._query_dense, 1),
                ("self_attn.k_proj", attention._key_dense, 1),
                ("self_attn.v_proj", attention._value_dense, 1),
                ("self_attn.o_proj", attention._output_dense, 2),
                ("mlp.gate_proj", layer._feedforward_gate_dense, 1),
                ("mlp.up_proj", layer._feedforward_intermediate_dense, 1),
                ("mlp.down_proj", layer._feedforward_output_dense, 1)):
            yield Entry(f"layers.{i}.{name}.weight", (part.kernel,), "linear", inputs=inputs)
        for name, part in (("input_layernorm", layer._self_attention_layernorm),
                           ("post_attention_layernorm", layer._feedforward_layernorm)):
            yield Entry(f"layers.{i}.{name}.weight", (part.scale,), "vector")
    yield Entry("norm.weight", (backbone.layer_norm.scale,), "vector")
    if not embedding.tie_weights:
        yield Entry("lm_head.weight", (embedding.reverse_embeddings,), "linear")
