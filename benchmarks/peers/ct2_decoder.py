"""CTranslate2's Generator, greedy; form: its compute type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ctranslate2
import decoder_common as common


def load(settings: dict[str, Any]) -> common.Generate:
    folder = Path(settings["model"])
    generator = ctranslate2.Generator(
        str(folder), device="cpu", compute_type=settings["form"], inter_threads=1,
        intra_threads=common.THREADS)
    words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))

    def generate(asked: common.Asked) -> common.Ids:
        found = generator.generate_batch(
            [[words[one] for one in row] for row in asked.ids], max_length=asked.new_tokens,
            min_length=asked.new_tokens, sampling_topk=1, include_prompt_in_result=False,
            max_batch_size=0)
        return [one.sequences_ids[0] for one in found]

    return generate


if __name__ == "__main__":
    common.run(load)
