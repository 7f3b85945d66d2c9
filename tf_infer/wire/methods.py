"""Every gRPC method of the API: its full path and its request and response types.

The client calls by these paths, the server registers its generic handlers by them. Sources:
tensorflow_serving/apis/{prediction_service,model_service}.proto, grpc/health/v1/health.proto,
tsl/profiler/protobuf/profiler_service.proto; generation.proto is our own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from tf_infer.errors import InvalidRequest
from tf_infer.wire import generation_pb2, profiler_pb2, serving_pb2

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
HEALTH_SERVICE = "grpc.health.v1.Health"
PROFILER_SERVICE = "tensorflow.ProfilerService"
GENERATION_SERVICE = "tf_infer.GenerationService"


@dataclass(frozen=True, slots=True)
class Method:
    """One gRPC method: unary, or with a stream of responses.

    Attributes:
        service: full service name.
        name: method name.
        request, response: message classes of `serving_pb2`, `profiler_pb2` or `generation_pb2`.
        streams: whether there are many responses.
    """

    service: str
    name: str
    request: Callable[..., Any]
    response: Callable[..., Any]
    streams: bool = False

    @property
    def path(self) -> str:
        """What stands in the HTTP/2 `:path` header."""
        return f"/{self.service}/{self.name}"


PREDICT = Method(PREDICTION_SERVICE, "Predict",
                 serving_pb2.PredictRequest, serving_pb2.PredictResponse)
CLASSIFY = Method(PREDICTION_SERVICE, "Classify",
                  serving_pb2.ClassificationRequest, serving_pb2.ClassificationResponse)
REGRESS = Method(PREDICTION_SERVICE, "Regress",
                 serving_pb2.RegressionRequest, serving_pb2.RegressionResponse)
MULTI_INFERENCE = Method(PREDICTION_SERVICE, "MultiInference",
                         serving_pb2.MultiInferenceRequest, serving_pb2.MultiInferenceResponse)
GET_MODEL_METADATA = Method(PREDICTION_SERVICE, "GetModelMetadata",
                            serving_pb2.GetModelMetadataRequest,
                            serving_pb2.GetModelMetadataResponse)
GET_MODEL_STATUS = Method(MODEL_SERVICE, "GetModelStatus",
                          serving_pb2.GetModelStatusRequest, serving_pb2.GetModelStatusResponse)
RELOAD_CONFIG = Method(MODEL_SERVICE, "HandleReloadConfigRequest",
                       serving_pb2.ReloadConfigRequest, serving_pb2.ReloadConfigResponse)
HEALTH_CHECK = Method(HEALTH_SERVICE, "Check",
                      serving_pb2.HealthCheckRequest, serving_pb2.HealthCheckResponse)
HEALTH_WATCH = Method(HEALTH_SERVICE, "Watch", serving_pb2.HealthCheckRequest,
                      serving_pb2.HealthCheckResponse, streams=True)
PROFILE = Method(PROFILER_SERVICE, "Profile",
                 profiler_pb2.ProfileRequest, profiler_pb2.ProfileResponse)
TERMINATE = Method(PROFILER_SERVICE, "Terminate",
                   profiler_pb2.TerminateRequest, profiler_pb2.TerminateResponse)
GENERATE = Method(GENERATION_SERVICE, "Generate", generation_pb2.GenerateRequest,
                  generation_pb2.GenerateResponse, streams=True)


def parse(message_type: Callable[..., Any], data: bytes, *, where: str) -> Any:
    """Return the message that `data` holds.

    Args:
        message_type: class of the message.
        data: its bytes.
        where: what it is, for the error ("PredictResponse of the server").

    Raises:
        InvalidRequest: the bytes are not such a message; the cause is protobuf's own error.
    """
    message: Message = message_type()
    try:
        message.ParseFromString(data)
    except (DecodeError, RuntimeError) as error:
        raise InvalidRequest(f"{where}: expected a {message.DESCRIPTOR.name} message, "
                             f"got {len(data)} bytes that are none.") from error
    return message
