"""Write a decoder of random weights as a Hugging Face directory, and prompts of real text for it.

    peers/torch/bin/python benchmarks/peers/decoder_checkpoint.py \\
        '{"config": {"model_type": "gpt2", ...}, "seed": 0, "tokenizer": DIR, "text": FILE,
          "prompts": [32, 256], "count": 256}' DIR

benchmarks/decoders.py calls it. A prompt of n ids is a text that encodes to exactly those ids, so
that contestants that read texts and those that read ids have the same work.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2TokenizerFast


def prompts(tokenizer: Any, text: str, lengths: list[int], count: int) -> dict[int, list[Any]]:
    """Return `count` places of the text for each length, in a fixed random order."""
    draw, found = random.Random(0), {}
    for length in lengths:
        kept: list[Any] = []
        while len(kept) < count:
            start = text.index(" ", draw.randrange(len(text) - 10 * length))
            ids = tokenizer.encode(text[start:start + 10 * length])[:length]
            prompt = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            if len(ids) == length and tokenizer.encode(prompt) == ids:
                kept.append({"ids": ids, "text": prompt})
        found[length] = kept
    return found


def main() -> None:
    settings, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    source = Path(settings["tokenizer"])
    tokenizer = GPT2TokenizerFast(vocab=str(source / "vocab.json"),
                                  merges=str(source / "merges.txt"))
    torch.manual_seed(settings["seed"])
    config = AutoConfig.for_model(**settings["config"])
    model = AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = prompts(tokenizer, Path(settings["text"]).read_text(encoding="utf-8"),
                    settings["prompts"], settings["count"])
    (folder / "prompts.json").write_text(json.dumps(found), encoding="utf-8")
    print(sum(parameter.numel() for parameter in model.parameters()), "parameters")


if __name__ == "__main__":
    main()
