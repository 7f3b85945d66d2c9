"""Convert a Hugging Face classifier with a peer's own tools, in that peer's environment.

    peers/onnx/bin/python benchmarks/peers/classifier_forms.py onnx-float32 CHECKPOINT DIR
    peers/onnx/bin/python benchmarks/peers/classifier_forms.py onnx-int8 ONNX DIR CHECKPOINT
    peers/openvino/bin/python benchmarks/peers/classifier_forms.py openvino-w8a8 OPENVINO DIR \\
        CHECKPOINT

benchmarks/classifiers.py calls it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import classifier_common as common
import numpy as np

CALIBRATION_TEXTS = 100


def onnx_float32(source: Path, target: Path) -> None:
    """Export with torch, attention written out, so that ONNX Runtime finds and fuses it."""
    import torch
    from transformers import AutoModelForSequenceClassification

    names = ["input_ids", "attention_mask", "token_type_ids"]
    ones = torch.ones(2, 16, dtype=torch.int64)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModelForSequenceClassification.from_pretrained(
                source, attn_implementation="eager")

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask,
                              token_type_ids=token_type_ids).logits

    target.mkdir()
    torch.onnx.export(
        Logits().eval(), (ones, ones, torch.zeros_like(ones)), str(target / "model.onnx"),
        dynamo=False, input_names=names, output_names=["logits"], opset_version=17,
        dynamic_axes={name: {0: "rows", 1: "tokens"} for name in names} | {"logits": {0: "rows"}})


def onnx_int8(source: Path, target: Path, checkpoint: Path) -> None:
    """Fuse with ONNX Runtime's own optimizer for transformers, then quantize dynamically."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    model = optimizer.optimize_model(str(source / "model.onnx"), model_type="bert",
                                     num_heads=config["num_attention_heads"],
                                     hidden_size=config["hidden_size"])
    fused = target.parent / "fused.onnx"
    model.save_model_to_file(str(fused))
    target.mkdir()
    quantize_dynamic(str(fused), str(target / "model.onnx"), weight_type=QuantType.QInt8,
                     per_channel=True, extra_options={
                         "DefaultTensorType": onnx.TensorProto.FLOAT})


def openvino_w8a8(source: Path, target: Path, checkpoint: Path) -> None:
    """Quantize weights and activations with NNCF, calibrated on the texts of the checkpoint."""
    import nncf
    import openvino

    model = openvino.Core().read_model(source / "openvino_model.xml")
    encode = common.tokenizer(str(checkpoint))
    texts = json.loads((checkpoint / "texts.json").read_text(encoding="utf-8"))
    names = {name for port in model.inputs for name in port.get_names()}

    def inputs(text: str) -> dict[str, np.ndarray]:
        batch = common.padded(encode([text]))
        every = {"input_ids": batch.ids, "attention_mask": batch.mask,
                 "token_type_ids": np.zeros_like(batch.ids)}
        return {name: array for name, array in every.items() if name in names}

    some = [text for pair in zip(texts["lines"]["texts"], texts["long"]["texts"])
            for text in pair][:CALIBRATION_TEXTS]
    found = nncf.quantize(model, nncf.Dataset(some, inputs), subset_size=len(some),
                          model_type=nncf.ModelType.TRANSFORMER)
    target.mkdir()
    openvino.save_model(found, target / "openvino_model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    {"onnx-float32": onnx_float32, "onnx-int8": onnx_int8, "openvino-w8a8": openvino_w8a8}[
        sys.argv[1]](*map(Path, sys.argv[2:]))
