"""OpenVINO, greedy; form: "loop" (this file's own) or "genai" (LLMPipeline), "-", "f32" or "bf16".

With bf16, its choice on CPUs with AMX, prompts are read faster; with f32, where it quantises
activations on the fly, one token after the other is produced faster, 1.5 to 2 times.

The loop cuts the hidden states to the last position before the vocabulary, as GenAI does; without
that the prefill would make the logits of every position.
"""

from __future__ import annotations

from typing import Any

import decoder_common as common
import numpy as np
import openvino

SETTINGS: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": common.THREADS}


def last_position_only(model: Any) -> None:
    """Put a slice of the last position before the matrix product that makes the logits."""
    from openvino import opset13 as ops

    product = model.output("logits").get_node().input_value(0).get_node()
    while product.get_type_name() != "MatMul":
        product = product.input_value(0).get_node()
    one = np.int64([-1])
    cut = ops.slice(product.input_value(0), one, np.int64([np.iinfo(np.int64).max]),
                    np.int64([1]), np.int64([1]))
    product.input(0).replace_source_output(cut.output(0))
    model.validate_nodes_and_infer_types()


def loop(folder: str) -> common.Generate:
    core = openvino.Core()
    model = core.read_model(f"{folder}/openvino_model.xml")
    last_position_only(model)
    compiled = core.compile_model(model, "CPU", SETTINGS)
    request = compiled.create_infer_request()
    names = {name for port in compiled.inputs for name in port.get_names()}

    def generate(asked: common.Asked) -> common.Ids:
        request.reset_state()
        ids = np.array(asked.ids, np.int64)
        rows, length, found = len(ids), 0, []
        while len(found) < asked.new_tokens:
            length += ids.shape[1]
            inputs = {
                "input_ids": ids, "attention_mask": np.ones((rows, length), np.int64),
                "position_ids": np.broadcast_to(np.arange(length - ids.shape[1], length),
                                                ids.shape).astype(np.int64),
                "beam_idx": np.arange(rows, dtype=np.int32)}
            request.infer({key: value for key, value in inputs.items() if key in names})
            ids = request.get_tensor("logits").data[:, -1].argmax(-1)[:, None]
            found.append(ids[:, 0].tolist())
        return [list(row) for row in zip(*found)]

    return generate


def genai(folder: str) -> common.Generate:
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False  # as everybody: a prompt is read anew
    scheduler.max_num_batched_tokens = 2**14
    pipeline = openvino_genai.LLMPipeline(folder, "CPU", scheduler_config=scheduler, **SETTINGS)

    def generate(asked: common.Asked) -> common.Ids:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = asked.new_tokens
        config.ignore_eos, config.do_sample = True, False
        ids = np.array(asked.ids, np.int64)
        found = pipeline.generate(openvino_genai.TokenizedInputs(
            openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))), config)
        return [list(row) for row in found.tokens]

    return generate


def load(settings: dict[str, Any]) -> common.Generate:
    kind, precision = settings["form"].split("-")
    SETTINGS["INFERENCE_PRECISION_HINT"] = precision
    return {"loop": loop, "genai": genai}[kind](settings["model"])


if __name__ == "__main__":
    common.run(load)
