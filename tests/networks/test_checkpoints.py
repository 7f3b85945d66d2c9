"""tf_infer.networks.checkpoints: every family against stored outputs of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from tests.networks import golden, suite
from tf_infer.config import HubConfig
from tf_infer.errors import CheckpointError, ConfigError, ShapeError
from tf_infer.networks import build, checkpoints

DECODERS = ("gpt2", "llama3")


@pytest.mark.parametrize("name", golden.NAMES)
def test_outputs_are_those_of_transformers(name: str) -> None:
    folder = golden.FOLDER / name
    worst = golden.differences(folder, dict(np.load(folder / "outputs.npz")))
    assert worst and max(worst.values()) <= golden.ATOL, worst


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> Any:
    return golden.layer_of(checkpoints.read(golden.FOLDER / request.param))


@pytest.mark.parametrize("path", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_steps_equal_the_whole(decoder: Any, path: str) -> None:
    suite.steps_equal_the_whole(decoder, path)


@suite.on_every_check
def test_it_keeps_the_contract(decoder: Any, check: Callable[[Any], None]) -> None:
    check(decoder)


@pytest.mark.parametrize("name", ["llama3", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_it_runs_from_a_saved_model(name: str, tmp_path: Path) -> None:
    decoder = golden.layer_of(checkpoints.read(golden.FOLDER / name))
    suite.it_runs_from_a_saved_model(decoder, tmp_path)


def test_shared_key_heads_are_cached_once() -> None:
    layer = golden.layer_of(checkpoints.read(golden.FOLDER / "llama3"))
    _, cache = layer.prefill(tf.ones([1, 3], tf.int32), tf.constant([3]), capacity=5)
    assert cache.layers[0][0].shape == (1, 2, 5, 8)  # 4 query heads share 2


def test_what_the_files_say_beside_the_weights() -> None:
    bert, roberta, llama = (checkpoints.read(golden.FOLDER / name) for name in (
        "bert_classifier", "roberta_classifier", "llama3"))
    assert bert.head is not None and bert.head.classes == ("bad", "good", "so so")
    assert (bert.max_tokens, roberta.max_tokens, llama.max_tokens) == (20, 18, 64)
    assert (bert.pair_separators, roberta.pair_separators) == (1, 2)
    assert (llama.kind, llama.end_ids) == ("decoder", (7, 9))
    assert bert.tokenizer_dir == golden.FOLDER / "bert_classifier"


def test_tensors_of_other_heads_are_reported() -> None:
    unused = checkpoints.read(golden.FOLDER / "bert_masked").unused
    assert "cls.predictions.bias" in unused and all(n.startswith("cls.") for n in unused)
    assert checkpoints.read(golden.FOLDER / "roberta_classifier").unused == ()


def test_a_backbone_without_pooler_refuses_to_pool() -> None:
    layer = golden.layer_of(checkpoints.read(golden.FOLDER / "bert_masked"))
    with pytest.raises(ConfigError, match="got 'pooler'"):
        layer.pool(tf.zeros([1, 2, 24]))


# ------------------------------------------------------------------ other ways of saving


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the BERT checkpoint, to be damaged."""
    return Path(shutil.copytree(golden.FOLDER / "bert", tmp_path / "bert"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))


def test_shards_are_read_like_one_file(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file_name, part in shards.items():
        save_file({name: tensors[name] for name in part}, copied / file_name)
    index = {name: file_name for file_name, part in shards.items() for name in part}
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    outputs = dict(np.load(copied / "outputs.npz"))
    assert max(golden.differences(copied, outputs).values()) <= golden.ATOL
    (copied / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors: cannot be read"):
        checkpoints.read(copied)


def test_old_names_of_layer_norms_and_prefixes_are_known(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    old = {"bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"): value for name, value in tensors.items()}
    old["bert.embeddings.position_ids"] = np.arange(20)[None]
    save_file(old, copied / "model.safetensors")
    outputs = dict(np.load(copied / "outputs.npz"))
    assert max(golden.differences(copied, outputs).values()) <= golden.ATOL


def test_half_precision_is_widened(copied: Path) -> None:
    bfloat16 = tf.bfloat16.as_numpy_dtype
    for dtype in (np.float16, bfloat16):
        tensors = {name: value.astype(dtype) for name, value in load_file(
            golden.FOLDER / "bert" / "model.safetensors").items()}
        save_file(tensors, copied / "model.safetensors")
        layer = golden.layer_of(checkpoints.read(copied))
        table = tensors["embeddings.word_embeddings.weight"].astype(np.float32)
        np.testing.assert_array_equal(layer.backbone.token_embedding.embeddings.numpy(), table)


def test_a_preset_of_kerashub_comes_back(tmp_path: Path) -> None:
    layer = golden.layer_of(checkpoints.read(golden.FOLDER / "bert_masked"))
    layer.backbone.save_to_preset(str(tmp_path / "preset"))
    checkpoint = checkpoints.read(tmp_path / "preset")
    assert (checkpoint.kind, checkpoint.max_tokens) == ("encoder", 20)
    again = golden.layer_of(checkpoint)
    for one, other in zip(layer.backbone.weights, again.backbone.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_a_keras_file_comes_back(tmp_path: Path) -> None:
    layer = golden.layer_of(checkpoints.read(golden.FOLDER / "gpt2"))
    task = keras_hub.models.GPT2CausalLM(backbone=layer.backbone, preprocessor=None)
    for saved in (layer.backbone, task):
        saved.save(tmp_path / "model.keras")
        again = golden.layer_of(checkpoints.read(tmp_path / "model.keras"))
        for one, other in zip(layer.backbone.weights, again.backbone.weights, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_our_own_directory_comes_back(tmp_path: Path) -> None:
    layer = golden.layer_of(checkpoints.read(golden.FOLDER / "llama_tied"))
    build.save_weights(layer, tmp_path)
    again = build.decoder(layer.config, vocab_size=layer.vocab_size, seed=9)
    checkpoints.read(tmp_path).assign(again)
    ids, lengths = suite.rows(layer.vocab_size)
    np.testing.assert_array_equal(*(suite.whole(x, ids, lengths) for x in (layer, again)))


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(("name", "changes", "words"), [
    ("bert", {"model_type": "mamba"}, ["'mamba'", "'distilbert'"]),
    ("bert", {"hidden_size": ...}, ["hidden_size is missing"]),
    ("bert", {"hidden_size": 24.0}, ["hidden_size = 24.0"]),
    ("bert", {"layer_norm_eps": float("nan")}, ["layer_norm_eps = nan"]),
    ("bert", {"layer_norm_eps": 3.0}, ["got 3.0"]),
    ("bert", {"num_attention_heads": 5}, ["5 does not divide 24"]),
    ("bert_classifier", {"architectures": "BertForSequenceClassification"},
     ["architectures to be a list of names, got 'BertForSequenceClassification'"]),
    ("llama3", {"architectures": [None]}, ["architectures to be a list of names, got [None]"]),
    ("bert", {"hidden_act": "quick_gelu"}, ["hidden_act = 'quick_gelu'"]),
    ("bert", {"hidden_act": ["silu"]}, ["hidden_act = ['silu']"]),
    ("llama3", {"rope_scaling": "linear"}, ["rope_scaling = 'linear' is not an object"]),
    ("llama3", {"rope_parameters": [500.0]}, ["rope_parameters = [500.0]"]),
    ("llama3", {"eos_token_id": "2"}, ["config.json: expected eos_token_id", "got '2'"]),
    ("llama3", {"eos_token_id": [2, True]}, ["expected eos_token_id", "got [2, True]"]),
    ("bert", {"position_embedding_type": "relative_key"}, ["position_embedding_type"]),
    ("bert", {"is_decoder": True, "new_trick": 3}, ["is_decoder = True", "new_trick = 3"]),
    ("bert", {"quantization_config": {"bits": 4}}, ["quantization_config"]),
    ("roberta_classifier", {"type_vocab_size": 2}, ["type_vocab_size = 2"]),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx"]),
    ("gpt2", {"n_ctx": 10}, ["n_ctx = 10"]),
    ("gpt2", {"tie_word_embeddings": False}, ["tie_word_embeddings = False"]),
    ("llama3", {"attention_bias": True, "mlp_bias": True}, ["attention_bias", "mlp_bias"]),
    ("llama3", {"head_dim": 16}, ["head_dim = 16"]),
    ("llama3", {"num_key_value_heads": 3}, ["3 does not divide 4"]),
    ("llama3", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, ["'yarn'"]),
    ("llama3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "mscale": 1}},
     ["mscale = 1"]),
    ("llama3", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}},
     ["low_freq_factor is missing"]),
])
def test_a_setting_that_cannot_be_honoured_is_named(
        tmp_path: Path, name: str, changes: dict[str, Any], words: list[str]) -> None:
    folder = Path(shutil.copytree(golden.FOLDER / name, tmp_path / name))
    change_config(folder, **changes)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.read(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_old_spelling_of_rotary_settings_is_read(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden.FOLDER / "llama_linear", tmp_path / "llama"))
    change_config(folder, rope_parameters=..., rope_theta=500.0,
                  rope_scaling={"type": "linear", "factor": 4.0})
    outputs = dict(np.load(folder / "outputs.npz"))
    assert max(golden.differences(folder, outputs).values()) <= golden.ATOL


def test_tensors_that_do_not_fit_are_named_at_once(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    tensors["encoder.layer.9.surprise"] = np.zeros(3, np.float32)
    tensors["pooler.dense.bias"] = np.zeros(7, np.float32)
    tensors["embeddings.LayerNorm.bias"] = np.zeros(24, np.int8)
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, copied / "model.safetensors")
    checkpoint = checkpoints.read(copied)
    layer = build.encoder(checkpoint.network, vocab_size=checkpoint.vocab_size)
    before = layer.backbone.token_embedding.embeddings.numpy()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.assign(layer)
    for words in ("encoder.layer.9.surprise is unknown", "output.dense.weight is missing",
                  "pooler.dense.bias has shape (7,) instead of (24,)", "has dtype I8"):
        assert words in str(caught.value)
    np.testing.assert_array_equal(before, layer.backbone.token_embedding.embeddings.numpy())


@pytest.mark.parametrize("keep", [0, 5, 400, 30_000])
def test_a_cut_file_is_named(copied: Path, keep: int) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        checkpoints.read(copied)


def test_what_is_missing_is_named_with_its_fix(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither"):
        checkpoints.read(tmp_path / "nowhere")
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="Copy the file beside"):
        checkpoints.read(copied)
    (copied / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*save_pretrained"):
        checkpoints.read(copied)
    (copied / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}')
    with pytest.raises(CheckpointError, match="without folders"):
        checkpoints.read(copied)
    (copied / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="expected JSON"):
        checkpoints.read(copied)
    (copied / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="a JSON object"):
        checkpoints.read(copied)
    (copied / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoints.read(copied)


def test_a_wrong_layer_is_refused() -> None:
    checkpoint = checkpoints.read(golden.FOLDER / "gpt2")
    with pytest.raises(CheckpointError, match="GPT2Backbone"):
        checkpoint.assign(golden.layer_of(checkpoints.read(golden.FOLDER / "bert")))


def test_a_head_of_another_form_is_refused() -> None:
    bert, distil = (checkpoints.read(golden.FOLDER / name)
                    for name in ("bert_classifier", "distilbert_classifier"))
    assert bert.head is not None
    network = golden.classifier_of(distil, None)
    with pytest.raises(CheckpointError, match="1 dense layers"):
        bert.head.assign(network)


def test_wrong_labels_are_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden.FOLDER / "bert_classifier", tmp_path / "b"))
    change_config(folder, id2label={"0": "a", "5": "b", "6": "c"})
    with pytest.raises(CheckpointError, match=r"id2label to name the ids 0 \.\. 2"):
        checkpoints.read(folder)


def test_a_broken_keras_file_or_preset_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(b"PK nothing")
    with pytest.raises(CheckpointError, match=r"model\.keras: Keras cannot read"):
        checkpoints.read(tmp_path / "model.keras")
    (tmp_path / "config.json").write_text('{"registered_name": "keras_hub>Nothing"}')
    with pytest.raises(CheckpointError, match="KerasHub cannot read"):
        checkpoints.read(tmp_path)


def test_a_model_that_is_no_backbone_is_refused(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.save(tmp_path / "model.keras")
    with pytest.raises(CheckpointError, match="got Sequential"):
        checkpoints.read(tmp_path / "model.keras")


def test_faults_of_a_hub_configuration_are_named() -> None:
    sizes = {"vocabulary_size": 9, "num_layers": 1, "num_query_heads": 2, "hidden_dim": 8,
             "num_key_value_heads": 1, "intermediate_dim": 8}
    with pytest.raises(ConfigError, match="BertBackbone"):
        build.encoder(HubConfig(backbone="T5Backbone"), vocab_size=9)
    with pytest.raises(ConfigError, match="expected an encoder"):
        build.encoder(HubConfig(backbone="LlamaBackbone", arguments=sizes), vocab_size=9)
    with pytest.raises(ConfigError, match="expected a decoder"):
        build.decoder(HubConfig(backbone="BertBackbone"), vocab_size=9)
    with pytest.raises(ConfigError, match="refuses them"):
        build.decoder(HubConfig(backbone="LlamaBackbone", arguments={"size": 3}), vocab_size=9)
    with pytest.raises(ConfigError, match="max_positions"):
        build.decoder(HubConfig(backbone="LlamaBackbone", arguments=sizes), vocab_size=9)
    with pytest.raises(ConfigError, match="codec's 10 ids, got 9"):
        build.decoder(HubConfig(backbone="LlamaBackbone", arguments=sizes), vocab_size=10)
    with pytest.raises(ConfigError, match="'gelou'"):
        build.decoder(HubConfig(backbone="LlamaBackbone", arguments=sizes, max_positions=4,
                                activation="gelou"), vocab_size=9)


def test_more_positions_than_the_table_has_are_refused() -> None:
    network = checkpoints.read(golden.FOLDER / "gpt2").network
    assert isinstance(network, HubConfig)
    with pytest.raises(ConfigError, match="at most the backbone's 20"):
        build.decoder(HubConfig(backbone=network.backbone, arguments=network.arguments,
                                max_positions=21), vocab_size=9)
    layer = golden.layer_of(checkpoints.read(golden.FOLDER / "bert"))
    wide = tf.zeros([1, 21], tf.int32)
    with pytest.raises(ShapeError, match="at most 20 positions"):
        layer(wide, wide > 0, wide)
