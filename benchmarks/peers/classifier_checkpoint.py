"""Write a BERT classifier of random weights as a Hugging Face directory, and real texts for it.

    peers/torch/bin/python benchmarks/peers/classifier_checkpoint.py \\
        '{"config": {"model_type": "bert", ...}, "seed": 0, "vocab": FILE, "texts": FILE.jsonl,
          "max_tokens": 128, "counts": {"lines": 128, "long": 64}}' DIR

benchmarks/classifiers.py calls it. texts.json holds "lines", lines as they are, and "long", lines
joined and cut to exactly `max_tokens` ids, each with the float32 logits of torch. The last layer is
set so that each class has logits of mean 0 and standard deviation 1 over the lines: with weights as
they are drawn all texts would be of one class.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, BertTokenizer

ROWS = 16


def long_texts(tokenizer: Any, lines: list[str], tokens: int, count: int) -> list[str]:
    """Return texts of exactly so many ids, special ones included."""
    found: list[str] = []
    draw = random.Random(1)
    while len(found) < count:
        text = " ".join(draw.choices(lines, k=tokens // 8))
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        cut = text[:encoded["offset_mapping"][tokens - 3][1]] if len(
            encoded["input_ids"]) >= tokens - 2 else ""
        if len(tokenizer(cut)["input_ids"]) == tokens:
            found.append(cut)
    return found


def pooled(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Return [N, D], what the last layer sees."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), ROWS):
            inputs = tokenizer(texts[start:start + ROWS], padding=True, truncation=True,
                               max_length=128, return_tensors="pt")
            parts.append(model.bert(**inputs).pooler_output)
    return torch.cat(parts)


def main() -> None:
    settings, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    words = Path(settings["vocab"]).read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(words)})
    rows = Path(settings["texts"]).read_text(encoding="utf-8").splitlines()
    lines = [json.loads(row)["text"] for row in rows]
    random.Random(0).shuffle(lines)
    texts = {"lines": lines[:settings["counts"]["lines"]],
             "long": long_texts(tokenizer, lines, settings["max_tokens"],
                                settings["counts"]["long"])}

    torch.manual_seed(settings["seed"])
    config = AutoConfig.for_model(**settings["config"])
    model = AutoModelForSequenceClassification.from_config(config).to(torch.float32).eval()
    vectors = {name: pooled(model, tokenizer, some) for name, some in texts.items()}
    with torch.no_grad():
        last = model.classifier
        last.weight.normal_()
        logits = vectors["lines"] @ last.weight.T                            # [N, C]
        last.weight /= logits.std(dim=0)[:, None]
        last.bias.copy_(-(vectors["lines"] @ last.weight.T).mean(dim=0))
        found = {name: {"texts": texts[name], "logits": last(some).tolist()}
                 for name, some in vectors.items()}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "texts.json").write_text(json.dumps(found), encoding="utf-8")
    print(sum(parameter.numel() for parameter in model.parameters()), "parameters")


if __name__ == "__main__":
    main()
