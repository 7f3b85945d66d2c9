"""transformers' generate on torch, greedy; form: float32 or bfloat16."""

from __future__ import annotations

from typing import Any

import decoder_common as common
import torch
from transformers import AutoModelForCausalLM


def load(settings: dict[str, Any]) -> common.Generate:
    torch.set_num_threads(common.THREADS)
    model = AutoModelForCausalLM.from_pretrained(
        settings["model"], dtype=getattr(torch, settings["form"])).eval()

    def generate(asked: common.Asked) -> common.Ids:
        ids = torch.tensor(asked.ids)
        with torch.inference_mode():
            found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                   max_new_tokens=asked.new_tokens, pad_token_id=0,
                                   min_new_tokens=asked.new_tokens)
        return found[:, ids.shape[1]:].tolist()

    return generate


if __name__ == "__main__":
    common.run(load)
