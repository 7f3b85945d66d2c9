"""Write tests/golden/networks: tiny random checkpoints and what transformers computes with them.

    python scripts/make_network_golden.py                       (needs the extra `oracles`)
    python scripts/make_network_golden.py --cases CASES.json    for tests marked oracles

CASES.json is a list of objects: `output`, a folder, and either `directory`, a checkpoint to run, or
the arguments of `make`. A process of its own, because torch and TensorFlow crash one another.

The settings differ from the defaults on purpose: an ignored one shows in the outputs.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "networks"
VOCABULARY = 90
ROWS, WIDTH = 4, 11
LENGTHS = [11, 7, 3, 1]

_BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 40, "max_position_embeddings": 20}
_LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 64,
    "pad_token_id": None}
_LABELS = {"id2label": {0: "bad", 1: "good", 2: "so so"},
           "label2id": {"bad": 0, "good": 1, "so so": 2}}

# name -> (class of transformers, its configuration)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", {**_BERT, "hidden_act": "gelu", "layer_norm_eps": 1e-3,
                           "type_vocab_size": 3}),
    "bert_classifier": ("BertForSequenceClassification",
                        {**_BERT, **_LABELS, "hidden_act": "gelu_new"}),
    "bert_masked": ("BertForMaskedLM", {**_BERT, "hidden_act": "relu"}),
    "distilbert_classifier": ("DistilBertForSequenceClassification", {
        "vocab_size": VOCABULARY, "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40,
        "max_position_embeddings": 20, "activation": "gelu", **_LABELS}),
    "roberta_classifier": ("RobertaForSequenceClassification", {
        **_BERT, **_LABELS, "type_vocab_size": 1, "layer_norm_eps": 1e-3, "pad_token_id": 1,
        "bos_token_id": 0, "eos_token_id": 2}),
    "gpt2": ("GPT2LMHeadModel", {
        "vocab_size": VOCABULARY, "n_positions": 20, "n_embd": 24, "n_layer": 2, "n_head": 3,
        "n_inner": 40, "layer_norm_epsilon": 1e-3, "activation_function": "gelu_new",
        "bos_token_id": 5, "eos_token_id": 5}),
    "gpt2_exact": ("GPT2LMHeadModel", {
        "vocab_size": VOCABULARY, "n_positions": 20, "n_embd": 24, "n_layer": 2, "n_head": 3,
        "activation_function": "gelu", "bos_token_id": 5, "eos_token_id": 5}),
    "llama_tied": ("LlamaForCausalLM", {**_LLAMA, "tie_word_embeddings": True,
                                        "rms_norm_eps": 1e-2}),
    "llama_linear": ("LlamaForCausalLM", {**_LLAMA, "rope_parameters": {
        "rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}),
    "llama3": ("LlamaForCausalLM", {**_LLAMA, "rms_norm_eps": 1e-5, "eos_token_id": [7, 9],
                                    "rope_parameters": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16, "rope_theta": 10000.0}}),
}


def run(directory: Path, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Load a checkpoint with transformers, and return inputs and outputs as `make` does."""
    model = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    width = 128
    draw = np.random.default_rng(seed)
    ids = draw.integers(1000, model.config.vocab_size, (ROWS, width)).astype(np.int32)
    lengths = np.array([width, 77, 12, 2], np.int32)
    mask = np.arange(width)[None] < lengths[:, None]
    segments = ((np.arange(width)[None] > 60) & mask).astype(np.int32)
    return {"ids": ids, "lengths": lengths, "segments": segments,
            **outputs(model, ids, mask, segments)}


def make(name: str, directory: Path, *, seed: int = 0, changes: Mapping[str, Any] | None = None,
         **saving: Any) -> dict[str, np.ndarray]:
    """Save a random model of transformers, and return inputs and outputs.

    Args:
        name: one of MODELS.
        directory: where config.json and the safetensors go.
        seed: of weights and inputs.
        changes: settings that replace those of MODELS.
        saving: further arguments of save_pretrained.

    Returns:
        ids, segments [B, T] int32, lengths [B] int32, and of the model: hidden [B, T, D] (0 on
        padding), pooled [B, D] and classes [B, C] where it has them, logits [B, T, V] of decoders.
    """
    class_name, settings = MODELS[name]
    kind = getattr(transformers, class_name)
    config = kind.config_class(**{**settings, **(changes or {})}, attn_implementation="eager")
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, visibly
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory, **saving)
    draw = np.random.default_rng(seed)
    ids = draw.integers(10, settings["vocab_size"], (ROWS, WIDTH)).astype(np.int32)
    lengths = np.array(LENGTHS, np.int32)
    mask = np.arange(WIDTH)[None] < lengths[:, None]
    if settings.get("pad_token_id") is not None:  # RoBERTa finds its positions by it
        ids[~mask] = settings["pad_token_id"]
    segments = ((np.arange(WIDTH)[None] > 2) & mask).astype(np.int32)
    return {"ids": ids, "lengths": lengths, "segments": segments,
            **outputs(model, ids, mask, segments)}


def outputs(model: Any, ids: np.ndarray, mask: np.ndarray, segments: np.ndarray
            ) -> dict[str, np.ndarray]:
    """Run a model of transformers in float32."""
    inputs = {"input_ids": torch.tensor(ids, dtype=torch.long),
              "attention_mask": torch.tensor(mask, dtype=torch.long)}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.tensor(segments, dtype=torch.long)
    with torch.no_grad():
        whole = model(**inputs, output_hidden_states=True)
    found = {"hidden": whole.hidden_states[-1].numpy() * mask[..., None]}
    if getattr(whole, "pooler_output", None) is not None:
        found["pooled"] = whole.pooler_output.numpy()
    if getattr(whole, "logits", None) is not None and "Masked" not in type(model).__name__:
        key = "logits" if whole.logits.ndim == 3 else "classes"
        found[key] = whole.logits.numpy()
    return {name: value.astype(np.float32) for name, value in found.items()}


def answer(cases: Path) -> None:
    """Write `outputs.npz` of each case into its folder."""
    for case in json.loads(cases.read_text(encoding="utf-8")):
        output = Path(case.pop("output"))
        directory = case.pop("directory", None)
        found = run(Path(directory)) if directory else make(directory=output, **case)
        output.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(output / "outputs.npz", **found)


def main() -> int:
    """Write every model; a folder each, with config.json, model.safetensors and outputs.npz."""
    transformers.logging.set_verbosity_error()
    if sys.argv[1:2] == ["--cases"]:
        answer(Path(sys.argv[2]))
        return 0
    for name in MODELS:
        folder = GOLDEN / name
        shutil.rmtree(folder, ignore_errors=True)
        found = make(name, folder)
        np.savez_compressed(folder / "outputs.npz", **found)
        size = sum(path.stat().st_size for path in folder.iterdir())
        assert size < 200_000, f"{name}: {size} bytes"
        print(json.dumps({"model": name, "bytes": size, "outputs": sorted(found)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
