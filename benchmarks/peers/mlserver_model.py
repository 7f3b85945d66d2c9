"""MLServer's runtime for the classifier; contestants.py writes its two settings files."""

from __future__ import annotations

import asyncio

import common
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Classifier(MLModel):
    async def load(self) -> bool:
        self.answer = common.load()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        texts = [text if isinstance(text, str) else text.decode()
                 for text in payload.inputs[0].data]
        answers = await asyncio.get_running_loop().run_in_executor(None, self.answer, texts)
        return InferenceResponse(model_name=self.name, outputs=[
            ResponseOutput(name="label", shape=[len(texts)], datatype="BYTES",
                           data=[one["label"] for one in answers]),
            ResponseOutput(name="score", shape=[len(texts)], datatype="FP32",
                           data=[one["score"] for one in answers])])
