"""transformers on torch behind Hugging Face's tokenizer; form: dtype-rows, such as "float32-32"."""

from __future__ import annotations

from typing import Any

import classifier_common as common
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification


def load(settings: dict[str, Any]) -> common.Classify:
    dtype, rows = settings["form"].split("-")
    size = int(rows)
    torch.set_num_threads(common.THREADS)
    encode = common.tokenizer(settings["checkpoint"])
    model = AutoModelForSequenceClassification.from_pretrained(
        settings["checkpoint"], dtype=getattr(torch, dtype)).eval()

    def run(batch: common.Batch) -> np.ndarray:
        with torch.inference_mode():
            found = model(input_ids=torch.from_numpy(batch.ids),
                          attention_mask=torch.from_numpy(batch.mask))
            return found.logits.float().numpy()

    return lambda texts: common.by_length(common.one_by_one(run), encode(texts), size)


if __name__ == "__main__":
    common.run(load)
