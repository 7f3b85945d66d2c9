"""What benchmarks/decode.py runs: decoders of random weights, prompts, and a form for each peer.

    python -m benchmarks.decoders --peers DIR --shape gpt2 llama

makes all forms in the cache folder; decode.py makes what it needs by itself. One Hugging Face
directory a shape, weights drawn from a fixed seed; every other form is converted from it by its
library's own converter. Both shapes have GPT-2's tokenizer (50,257 ids): a prompt is a text.

    gpt2        GPT-2 small, 124 M parameters
    llama       the proportions of SmolLM-135M: 30 layers, width 576, 9 heads over 3 of keys and
                values, RMSNorm, rotary positions, gated inner layer of 1,536, tied vocabulary
    mini        GPT-2 of 6 layers and width 384, for benchmarks/continuous.py
    *-tiny      two layers, to try the scripts
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import forms
from benchmarks.models import SHARED

HERE = Path(__file__).resolve().parent
PROMPTS, NEW_TOKENS, ROWS, SEED = (32, 256), 64, (1, 8, 32), 0
LEAST_TOKENS = 8  # of a row where lengths are mixed
POOL = 8 * ROWS[-1]  # prompts of a length: every call of four rounds has its own
POSITIONS = PROMPTS[-1] + NEW_TOKENS
MODEL, SERVED_PROMPTS, SERVED_CAPACITY = "writer", (32, 64, 128, 256), 128
NO_END = {"bos_token_id": None, "eos_token_id": None, "vocab_size": 50257}
GPT2: dict[str, Any] = {"model_type": "gpt2", **NO_END, "n_ctx": 1024}  # for llama.cpp's converter
LLAMA: dict[str, Any] = {
    "model_type": "llama", **NO_END, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "rope_theta": 10000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama": LLAMA | {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
                      "num_key_value_heads": 3, "intermediate_size": 1536},
    "mini": GPT2 | {"n_embd": 384, "n_layer": 6, "n_head": 6},
    "gpt2-tiny": GPT2 | {"n_embd": 128, "n_layer": 2, "n_head": 4},
    "llama-tiny": LLAMA | {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
                           "num_key_value_heads": 2, "intermediate_size": 768},
}


def form(name: str, shape: str, cache: Path, peers: Path | None) -> Path:
    """Return one form of a shape, made when it is missing.

    Raises:
        RuntimeError: its converter failed; what it said is in the message.
    """
    target = cache / "decoders" / shape / name
    if target.exists():
        return target
    source = target if name == "checkpoint" else form("checkpoint", shape, cache, peers)
    return forms.made(target, lambda made: forms.own_command(
        "benchmarks.decoders", name, shape, source, made) if name in EXPORTS
        else FORMS[name](shape, forms.required(peers, name), source, made))


def lengths(rows: int, draw: int | None) -> list[int]:
    """Return how many new tokens each row wants: all NEW_TOKENS, or 8 to as many, drawn."""
    if draw is None:
        return [NEW_TOKENS] * rows
    drawn = random.Random(f"{SEED} {rows} {draw}")
    return [drawn.randint(LEAST_TOKENS, NEW_TOKENS) for _ in range(rows)]


def prompts(shape: str, cache: Path, peers: Path | None) -> dict[int, list[dict[str, Any]]]:
    """Return {"ids", "text"} of POOL prompts, by length."""
    path = form("checkpoint", shape, cache, peers) / "prompts.json"
    return {int(length): rows for length, rows in json.loads(path.read_text("utf-8")).items()}


def _checkpoint(shape: str, peers: Path, source: Path, made: Path) -> list[str]:
    settings = {"config": SHAPES[shape], "seed": SEED,
                "text": str(SHARED / "data/tinyshakespeare/val.txt"),
                "tokenizer": str(SHARED / "weights/tokenizers/gpt2"), "prompts": PROMPTS,
                "count": POOL}
    return [str(peers / "torch/bin/python"), str(HERE / "peers/decoder_checkpoint.py"),
            json.dumps(settings), str(made)]


FORMS: dict[str, Callable[[str, Path, Path, Path], list[str]]] = {
    "checkpoint": _checkpoint,
    "q8_0.gguf": lambda shape, peers, source, made: [
        str(peers / "llama/bin/python"),
        str(peers / "llama/src/vendor/llama.cpp/convert_hf_to_gguf.py"), str(source),
        "--outtype", "q8_0", "--outfile", str(made)],
    "openvino-int8": lambda shape, peers, source, made: [
        str(peers / "openvino/bin/optimum-cli"), "export", "openvino", "-m", str(source), "--task",
        "text-generation-with-past", "--weight-format", "int8", str(made)],
    "ct2-int8": lambda shape, peers, source, made: [
        str(peers / "ct2/bin/ct2-transformers-converter"), "--model", str(source),
        "--output_dir", str(made), "--quantization", "int8"],
}


# ---------------------------------------------------------------------------- our own forms


def task_from(source: Path, capacity: int = NEW_TOKENS, tokens: tuple[int, ...] = PROMPTS) -> Any:
    """Return our task of a checkpoint, with the grid of the benchmark."""
    from tf_infer.config import GenerationDefaults, ShapeGrid
    from tf_infer.tasks import build

    return build.from_checkpoint(source, {
        "kind": "causal_lm", "name": MODEL, "capacity": capacity,
        "grid": ShapeGrid(rows=ROWS, tokens=tokens),
        "defaults": GenerationDefaults.within(capacity)}, max_tokens=tokens[-1])


def export_portable(source: Path, made: Path, precision: str) -> None:
    """Write the SavedModel of a plan; nothing is proven here: that is `tf-infer export`."""
    from tf_infer.export.saved_model import write_saved_model
    from tf_infer.optimize import apply, plan

    write_saved_model(apply.apply(task_from(source), plan.read_plan(precision)), made)


def export_engine(source: Path, made: Path) -> None:
    """Write the LiteRT engine in int8."""
    from tf_infer.optimize import litert

    litert.write(task_from(source).network, made, litert.EngineSettings(), positions=POSITIONS)


def export_served(source: Path, made: Path, precision: str | None = None, engine: bool = False
                  ) -> None:
    """Write a version that a server can load, for benchmarks/continuous.py."""
    from tf_infer.manifest import EXTRA_FOLDER
    from tf_infer.optimize import apply, litert, plan

    reference = task_from(source, SERVED_CAPACITY, SERVED_PROMPTS)
    form = plan.read_plan(precision or "float32")
    task = reference if precision is None else apply.apply(reference, form)
    folder = forms.save_version(task, made / MODEL, MODEL, plan.PATHS_ATOL[form.precision])
    if engine:
        positions = SERVED_PROMPTS[-1] + SERVED_CAPACITY
        litert.write(reference.network, folder / EXTRA_FOLDER / "engines/litert",
                     litert.EngineSettings(), positions=positions)


EXPORTS: dict[str, Callable[[Path, Path], None]] = {
    "ours-engine": export_engine,
    "ours-bfloat16": partial(export_portable, precision="bfloat16"),
    "ours-int8": partial(export_portable, precision="int8"),
    "served-float32": export_served,
    "served-bfloat16": partial(export_served, precision="bfloat16"),
    "served-engine": partial(export_served, engine=True),
    "served-int8": partial(export_served, precision="int8", engine=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    forms.add_arguments(parser, sorted(SHAPES), EXPORTS, usual=["gpt2", "llama"])
    forms.run(parser.parse_args(), EXPORTS, lambda shape, arguments: (
        form(name, shape, arguments.cache, arguments.peers) for name in (*FORMS, *EXPORTS)))


if __name__ == "__main__":
    main()
