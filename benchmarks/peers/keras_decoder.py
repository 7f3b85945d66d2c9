"""KerasHub's own generate with its greedy sampler, float32.

Form: "graph", "graph-1" (in one thread) or "xla".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import decoder_common as common
import numpy as np


def load(settings: dict[str, Any]) -> common.Generate:
    common.set_threads(settings["form"])
    import keras_hub

    from tf_infer.networks import build, checkpoints

    found = checkpoints.read(Path(settings["model"]))
    network = build.decoder(found.network, vocab_size=found.vocab_size, seed=0)
    found.assign(network)
    kind = type(network.backbone).__name__.removesuffix("Backbone")
    model = getattr(keras_hub.models, f"{kind}CausalLM")(backbone=network.backbone,
                                                        preprocessor=None)
    model.compile(sampler="greedy", jit_compile=settings["form"] == "xla")

    def generate(asked: common.Asked) -> common.Ids:
        ids = np.array(asked.ids, np.int32)
        rows, width = ids.shape
        room = np.zeros((rows, asked.new_tokens), np.int32)
        answer = model.generate({
            "token_ids": np.concatenate([ids, room], 1),
            "padding_mask": np.concatenate([np.ones_like(ids), room], 1).astype(bool)},
            stop_token_ids=None)
        return np.asarray(answer["token_ids"])[:, width:].tolist()

    return generate


if __name__ == "__main__":
    common.run(load)
