"""A Hugging Face directory (config.json and safetensors) as a backbone of KerasHub.

KerasHub's own converters ignore the activation, the epsilons and the rotary settings that the
files state (keras-hub 0.32), so the backbone is built from its constructor's arguments and filled
by the tables of `tensor_maps`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras

from tf_infer.config import HubConfig
from tf_infer.errors import CheckpointError, ConfigError
from tf_infer.networks import tensor_maps
from tf_infer.networks.checkpoint import Checkpoint, Head
from tf_infer.networks.heads import ClassifierNetwork
from tf_infer.networks.settings import Settings
from tf_infer.networks.tensor_files import Tensors, read_json

# Hugging Face's names of activations -> those of HubConfig.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu",
    "tanh": "tanh",
}


class Built(NamedTuple):
    """What a family makes of its settings: the network, and its table of tensors."""

    network: HubConfig
    entries: Callable[[Any], Iterable[tensor_maps.Entry]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How one model_type is read.

    Attributes:
        kind: what it is.
        prefix: in front of the backbone's tensors when a head was saved with it.
        build: settings, names without prefix -> network and table.
        beside: pattern of tensors that may stand in the files unused: other heads.
        buffers: pattern of tensors that carry no weights: causal masks, position numbers.
        pair_separators: end ids between two texts.
        head: pooling, activation of the hidden layer (None: no hidden layer), name of the hidden
            layer, name of the last layer.
    """

    kind: Literal["encoder", "decoder"]
    prefix: str
    build: Callable[[Settings, Mapping[str, str]], Built]
    beside: str = r"(?!)"
    buffers: str = r"(?!)"
    pair_separators: int = 1
    head: tuple[Literal["first", "pooler"], str | None, str, str] | None = None


def read(directory: Path) -> Checkpoint:
    """Read config.json and the tables of contents of the safetensors files.

    Raises:
        CheckpointError: a file is missing, cut or not what it should be; the model type is not
            supported; or a setting is wrong, not supported or unknown (all of them are named).
    """
    path = directory / "config.json"
    data = read_json(path)
    family = FAMILIES.get(str(data.get("model_type")))
    if family is None:
        raise CheckpointError(f"{path}: expected model_type to be one of {sorted(FAMILIES)}, got "
                              f"{data.get('model_type')!r}.")
    tensors = Tensors(directory)
    names = {_plain(name, family.prefix): name for name in tensors.names()}
    settings = Settings(data, path)
    settings.choice("is_encoder_decoder", (False,), False)
    try:
        network, entries = family.build(settings, names)
    except ConfigError as error:
        raise CheckpointError(f"{path}: cannot be honoured: {error}") from error
    settings.finish()
    real = {plain: full for plain, full in names.items() if not re.fullmatch(family.buffers, plain)}
    beside = frozenset(plain for plain in real if re.fullmatch(family.beside, plain))
    head = _head(family, data, path, tensors, real)
    used = {f"{layer}.{part}" for layer in (family.head or ())[2:] for part in ("weight", "bias")}

    def assign(layer: keras.layers.Layer) -> None:
        built = getattr(layer, "backbone", None)
        if type(built).__name__ != network.backbone:
            raise CheckpointError(f"{directory}: expected a layer built from this checkpoint's "
                                  f"network ({network.backbone}), got {type(layer).__name__}.")
        tensor_maps.fill(list(entries(built)), tensors, real, expected_beside=beside)

    return Checkpoint(
        source=directory, assign=assign, kind=family.kind, network=network, head=head,
        vocab_size=network.arguments["vocabulary_size"], tokenizer_dir=directory,
        max_tokens=network.max_positions, pair_separators=family.pair_separators,
        pad_id=data.get("pad_token_id"), end_ids=_end_ids(directory, data),
        unused=tuple(sorted(real[plain] for plain in beside if not (head and plain in used))))


def _plain(name: str, prefix: str) -> str:
    """Take the prefix off, and use today's names of a LayerNorm's parts."""
    plain = name.removeprefix(prefix)
    return plain.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias")


def _end_ids(directory: Path, data: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the end ids of both files, each once; generation_config.json may know more of them."""
    path = directory / "generation_config.json"
    found: list[int] = []
    for where, source in ((directory / "config.json", data),
                          (path, read_json(path) if path.exists() else {})):
        value = source.get("eos_token_id")
        ids = value if isinstance(value, list) else [value] if value is not None else []
        if any(type(one) is not int or one < 0 for one in ids):
            raise CheckpointError(f"{where}: expected eos_token_id to be a whole number >= 0 or a "
                                  f"list of them, got {value!r}.")
        found += ids
    return tuple(dict.fromkeys(found))


def _head(family: Family, data: Mapping[str, Any], path: Path, tensors: Tensors,
          names: Mapping[str, str]) -> Head | None:
    """Return the head of a ...ForSequenceClassification with at least two classes."""
    architectures = data.get("architectures") or [""]
    if not isinstance(architectures, list) or not all(
            isinstance(name, str) for name in architectures):
        raise CheckpointError(f"{path}: expected architectures to be a list of names, got "
                              f"{architectures!r}.")
    if family.head is None or not architectures[0].endswith("ForSequenceClassification"):
        return None
    pooling, activation, inner, last = family.head
    if f"{last}.weight" not in names:
        raise CheckpointError(f"{path}: architectures says {architectures[0]}, but the files hold "
                              f"no {last}.weight.")
    count, width = tensors.shape(names[f"{last}.weight"])
    if count < 2:
        return None  # a regression: its tensors are listed as unused
    labels = data.get("id2label") or {str(i): f"LABEL_{i}" for i in range(count)}
    if sorted(labels, key=str) != sorted(map(str, range(count))):
        raise CheckpointError(f"{path}: expected id2label to name the ids 0 .. {count - 1}, got "
                              f"{sorted(labels)}.")
    layers = ([inner] if activation else []) + [last]

    def assign(network: ClassifierNetwork) -> None:
        parts = [*network.dense, network.logits]
        if len(parts) != len(layers):
            raise CheckpointError(f"{path}: expected a head of {len(layers)} dense layers, as the "
                                  f"checkpoint has, got {len(parts)}.")
        entries = [entry for name, part in zip(layers, parts)
                   for entry in tensor_maps.dense(name, part)]
        tensor_maps.fill(entries, tensors, {
            entry.name: names[entry.name] for entry in entries if entry.name in names})

    return Head(
        classes=tuple(str(labels[str(i)]) for i in range(count)),
        multi_label=data.get("problem_type") == "multi_label_classification",
        pooling=pooling, hidden=(width,) if activation else (), activation=activation or "relu",
        assign=assign)


def _activation(settings: Settings, name: str, default: str) -> str:
    value = settings.get(name, default)
    if isinstance(value, str) and value in ACTIVATIONS:
        return ACTIVATIONS[value]
    settings.fault(f"{name} = {value!r} is not supported (only {sorted(ACTIVATIONS)})")
    return "gelu"


def _sizes(settings: Settings, *, layers: str, heads: str, width: str, hidden: str | None
           ) -> dict[str, Any]:
    """Return the arguments that every backbone takes, from the settings of these names."""
    sizes = {
        "vocabulary_size": settings.count("vocab_size"),
        "num_layers": settings.count(layers),
        "num_heads": settings.count(heads),
        "hidden_dim": settings.count(width),
    }
    settings.divides(sizes["num_heads"], sizes["hidden_dim"], f"{heads} and {width}")
    wide = 4 * sizes["hidden_dim"]
    sizes["intermediate_dim"] = (settings.count("n_inner", wide) if hidden is None
                                 else settings.count(hidden))
    return sizes


def _bert_sizes(settings: Settings) -> dict[str, Any]:
    settings.choice("position_embedding_type", ("absolute",), "absolute")
    settings.choice("is_decoder", (False,), False)
    settings.choice("add_cross_attention", (False,), False)
    settings.choice("pruned_heads", ({},), {})
    settings.choice("tie_word_embeddings", (True, False), True)  # of the masked-word head
    sizes = _sizes(settings, layers="num_hidden_layers", heads="num_attention_heads",
                   width="hidden_size", hidden="intermediate_size")
    return {**sizes, "dropout": settings.real("hidden_dropout_prob", 0.1, zero=True)}


def _bert(settings: Settings, names: Mapping[str, str]) -> Built:
    positions = settings.count("max_position_embeddings")
    pooler = "pooler.dense.weight" in names
    network = HubConfig(
        backbone="BertBackbone",
        arguments={**_bert_sizes(settings), "max_sequence_length": positions,
                   "num_segments": settings.count("type_vocab_size", 2)},
        activation=_activation(settings, "hidden_act", "gelu"),
        epsilon=settings.real("layer_norm_eps", 1e-12), max_positions=positions, pooler=pooler)
    return Built(network, partial(tensor_maps.bert, pooler=pooler))


def _roberta(settings: Settings, names: Mapping[str, str]) -> Built:
    # Positions are counted from the padding id's row on: transformers' padding_idx + 1.
    offset = settings.count("pad_token_id", 1, least=0) + 1
    positions = settings.count("max_position_embeddings", least=offset + 1) - offset
    settings.choice("type_vocab_size", (1,), 2)
    network = HubConfig(
        backbone="RobertaBackbone",
        arguments={**_bert_sizes(settings), "max_sequence_length": positions},
        activation=_activation(settings, "hidden_act", "gelu"),
        epsilon=settings.real("layer_norm_eps", 1e-12), max_positions=positions, pooler=False)
    return Built(network, partial(tensor_maps.roberta, offset=offset))


def _distilbert(settings: Settings, names: Mapping[str, str]) -> Built:
    positions = settings.count("max_position_embeddings")
    settings.choice("pruned_heads", ({},), {})
    settings.choice("tie_word_embeddings", (True, False), True)
    sizes = _sizes(settings, layers="n_layers", heads="n_heads", width="dim", hidden="hidden_dim")
    network = HubConfig(
        backbone="DistilBertBackbone",
        arguments={**sizes, "max_sequence_length": positions,
                   "dropout": settings.real("dropout", 0.1, zero=True)},
        activation=_activation(settings, "activation", "gelu"),
        epsilon=1e-12, max_positions=positions, pooler=False)
    return Built(network, tensor_maps.distilbert)


def _gpt2(settings: Settings, names: Mapping[str, str]) -> Built:
    positions = settings.count("n_positions")
    settings.choice("n_ctx", (positions,), positions)
    settings.choice("scale_attn_weights", (True,), True)
    settings.choice("scale_attn_by_inverse_layer_idx", (False,), False)
    settings.choice("add_cross_attention", (False,), False)
    settings.choice("tie_word_embeddings", (True,), True)
    settings.choice("pruned_heads", ({},), {})
    sizes = _sizes(settings, layers="n_layer", heads="n_head", width="n_embd", hidden=None)
    network = HubConfig(
        backbone="GPT2Backbone",
        arguments={**sizes, "max_sequence_length": positions,
                   "dropout": settings.real("resid_pdrop", 0.1, zero=True)},
        activation=_activation(settings, "activation_function", "gelu_new"),
        epsilon=settings.real("layer_norm_epsilon", 1e-5), max_positions=positions, pooler=False)
    return Built(network, tensor_maps.gpt2)


def _llama(settings: Settings, names: Mapping[str, str]) -> Built:
    sizes = _sizes(settings, layers="num_hidden_layers", heads="num_attention_heads",
                   width="hidden_size", hidden="intermediate_size")
    heads = sizes.pop("num_heads")
    shared = settings.count("num_key_value_heads", heads)
    settings.divides(shared, heads, "num_key_value_heads and num_attention_heads")
    size = sizes["hidden_dim"] // heads
    settings.choice("head_dim", (size,), size)
    for name in ("attention_bias", "mlp_bias", "add_cross_attention"):
        settings.choice(name, (False,), False)
    settings.choice("pretraining_tp", (1,), 1)
    settings.choice("pruned_heads", ({},), {})
    tied = settings.choice("tie_word_embeddings", (False, True), False)
    network = HubConfig(
        backbone="LlamaBackbone",
        arguments={**sizes, **_rope(settings), "num_query_heads": heads,
                   "num_key_value_heads": shared, "tie_word_embeddings": tied,
                   "layer_norm_epsilon": settings.real("rms_norm_eps", 1e-6)},
        activation=_activation(settings, "hidden_act", "silu"),
        max_positions=settings.count("max_position_embeddings", 2048), pooler=False)
    return Built(network, tensor_maps.llama)


def _rope(settings: Settings) -> dict[str, Any]:
    """Return the backbone's rotary arguments, from rope_theta, rope_scaling or rope_parameters."""
    given = {**settings.table("rope_scaling"), **settings.table("rope_parameters")}
    theta = settings.real("rope_theta", given.pop("rope_theta", 10_000.0))
    kind = given.pop("rope_type", given.pop("type", "default"))
    given.pop("type", None)
    rope = Settings(given, settings.path)
    rope.choice("partial_rotary_factor", (1.0,), 1.0)
    arguments: dict[str, Any] = {"rope_max_wavelength": theta}
    if kind == "linear":
        # KerasHub 0.32 takes rope_position_scaling_factor and ignores it. Llama 3's rule divides
        # every frequency whose wavelength is above a limit; a limit of 1 position is below all.
        arguments |= {
            "rope_frequency_adjustment_factor": rope.real("factor"),
            "rope_low_freq_factor": 1.0, "rope_high_freq_factor": 2.0,
            "rope_pretraining_sequence_length": 1}
    elif kind == "llama3":
        arguments |= {
            "rope_frequency_adjustment_factor": rope.real("factor"),
            "rope_low_freq_factor": rope.real("low_freq_factor"),
            "rope_high_freq_factor": rope.real("high_freq_factor"),
            "rope_pretraining_sequence_length": rope.count("original_max_position_embeddings")}
    elif kind != "default":
        settings.fault(f"rope type {kind!r} is not supported (only default, linear or llama3)")
        return arguments  # its other settings mean nothing here
    rope.finish()
    return arguments


FAMILIES: dict[str, Family] = {
    "bert": Family(
        kind="encoder", prefix="bert.", build=_bert, buffers=r"embeddings\.position_ids",
        beside=r"cls\..*|(qa_outputs|classifier)\.(weight|bias)",
        head=("pooler", None, "", "classifier")),
    "distilbert": Family(
        kind="encoder", prefix="distilbert.", build=_distilbert,
        buffers=r"embeddings\.position_ids",
        beside=r"(vocab_transform|vocab_layer_norm|vocab_projector|qa_outputs|pre_classifier|"
               r"classifier)\.(weight|bias)",
        head=("first", "relu", "pre_classifier", "classifier")),
    "roberta": Family(
        kind="encoder", prefix="roberta.", build=_roberta, pair_separators=2,
        buffers=r"embeddings\.(position_ids|token_type_ids)",
        beside=r"(lm_head|pooler|classifier|qa_outputs)\..*",
        head=("first", "tanh", "classifier.dense", "classifier.out_proj")),
    "gpt2": Family(
        kind="decoder", prefix="transformer.", build=_gpt2,
        buffers=r"h\.\d+\.attn\.(bias|masked_bias)", beside=r"(lm_head|score)\.weight"),
    "llama": Family(
        kind="decoder", prefix="model.", build=_llama,
        buffers=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
        beside=r"(lm_head|score)\.weight"),
}
