"""Read a Hugging Face config.json strictly: a setting is used, known as harmless, or an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tf_infer.errors import CheckpointError

_MISSING: Any = object()

# Settings that do not change what the network computes: names, versions, training, other heads,
# defaults of text generation (which our tasks have for themselves).
HARMLESS = frozenset([
    "_name_or_path", "name_or_path", "architectures", "model_type", "transformers_version",
    "torch_dtype", "dtype", "use_cache", "initializer_range", "initializer_factor", "init_std",
    "gradient_checkpointing", "tokenizer_class", "attention_probs_dropout_prob",
    "attention_dropout", "attn_pdrop", "embd_pdrop", "classifier_dropout", "seq_classif_dropout",
    "qa_dropout", "hidden_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id",
    "cls_token_id", "mask_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task",
    "task_specific_params", "output_hidden_states", "output_attentions", "output_past",
    "return_dict", "use_return_dict", "torchscript", "use_bfloat16", "tf_legacy_loss",
    "chunk_size_feed_forward", "attn_implementation", "_attn_implementation_autoset",
    "cross_attention_hidden_size", "encoder_no_repeat_ngram_size", "prefix", "max_length",
    "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "bad_words_ids", "num_return_sequences",
    "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "output_scores", "return_dict_in_generate", "directionality",
    "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
    "pooler_type", "sinusoidal_pos_embds", "tie_weights_", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "reorder_and_upcast_attn",
])


class Settings:
    """Reads settings by name and remembers which; `finish` raises once, with every fault.

    A wrong setting is noted, and a value inside the rule stands in for it until `finish` raises.

    Attributes:
        path: of the file, for messages.
    """

    def __init__(self, data: Mapping[str, Any], path: Path) -> None:
        self.path = path
        self._data = dict(data)
        self._used: set[str] = set()
        self._faults: list[str] = []

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting as it stands; None counts as absent."""
        self._used.add(name)
        value = self._data.get(name)
        return default if value is None else value

    def fault(self, text: str) -> None:
        """Add a fault to what `finish` raises."""
        self._faults.append(text)

    def table(self, name: str) -> dict[str, Any]:
        """Return a setting that holds settings; empty when it is absent."""
        value = self.get(name, {})
        if isinstance(value, dict):
            return dict(value)
        self.fault(f"{name} = {value!r} is not an object of settings")
        return {}

    def count(self, name: str, default: Any = _MISSING, *, least: int = 1) -> int:
        """Return a whole number >= `least`."""
        value = self.get(name, default)
        if value is _MISSING:
            self.fault(f"{name} is missing")
        elif type(value) is not int or value < least:
            self.fault(f"{name} = {value!r} is not a whole number >= {least}")
        else:
            return value
        return least

    def real(self, name: str, default: Any = _MISSING, *, zero: bool = False) -> float:
        """Return a finite number > 0, or >= 0 with `zero`."""
        value = self.get(name, default)
        if value is _MISSING:
            self.fault(f"{name} is missing")
        elif type(value) not in (int, float) or not math.isfinite(value) or value < 0 or (
                value == 0 and not zero):
            self.fault(f"{name} = {value!r} is not a finite number {'>=' if zero else '>'} 0")
        else:
            return float(value)
        return 0.5

    def choice(self, name: str, supported: tuple[Any, ...], default: Any) -> Any:
        """Return a setting of which only some values are supported."""
        value = self.get(name, default)
        if value not in supported or type(value) is not type(supported[supported.index(value)]):
            shown = " or ".join(repr(item) for item in supported)
            self.fault(f"{name} = {value!r} is not supported (only {shown})")
        return value

    def divides(self, part: int, whole: int, text: str) -> None:
        """Add a fault unless `part` divides `whole`."""
        if whole % part:
            self.fault(f"{text}: {part} does not divide {whole}")

    def finish(self) -> None:
        """Raise CheckpointError if anything was wrong, or a setting neither used nor harmless."""
        unknown = sorted(set(self._data) - self._used - HARMLESS)
        faults = self._faults + [
            f"{name} = {self._data[name]!r} is not known, and may change what the network computes"
            for name in unknown if self._data[name] is not None]
        if faults:
            raise CheckpointError(f"{self.path}: cannot be honoured: {'; '.join(faults)}.")
