"""Server reflection: which gRPC services there are, and what they take, for grpcurl and its like.

The services bear their own names, TensorFlow Serving's too; its messages are described under the
names that ours have (`tf_infer.wire.PredictRequest`): the wire carries numbers alone, and a copy
under TensorFlow's names would have to be TensorFlow's own files. The descriptors lie in a pool of
their own, so that a process that also has TensorFlow's is not disturbed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tf_infer.wire.methods import Method

# one protocol under two names: clients ask for the first, older ones for the second
SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
THREADS = 4  # a caller holds one as long as he may ask on; the others' threads are not theirs


def pool_of(methods: Iterable[Method]) -> descriptor_pool.DescriptorPool:
    """Return a pool that describes services by their methods, with all their messages."""
    pool = descriptor_pool.DescriptorPool()
    known: set[str] = set()
    services: dict[str, list[Method]] = {}
    for method in methods:
        services.setdefault(method.service, []).append(method)
        for message in (method.request, method.response):
            _add(pool, message.DESCRIPTOR.file, known)  # type: ignore[attr-defined]
    for service, offered in services.items():
        if not _has(pool, service):
            pool.Add(_service_file(service, offered))
    return pool


def _has(pool: Any, service: str) -> bool:
    try:
        pool.FindServiceByName(service)
    except KeyError:
        return False
    return True


def _add(pool: Any, file: Any, known: set[str]) -> None:
    """Add a file and all that it needs."""
    if file.name in known:
        return
    known.add(file.name)
    for one in file.dependencies:
        _add(pool, one, known)
    copy = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(copy)
    pool.Add(copy)


def _service_file(service: str, methods: Iterable[Method]) -> descriptor_pb2.FileDescriptorProto:
    """Return a file that holds one service, whose messages are ours."""
    package, _, name = service.rpartition(".")
    file = descriptor_pb2.FileDescriptorProto(
        name=f"tf_infer/services/{service}.proto", package=package, syntax="proto3")
    described = file.service.add(name=name)
    for method in methods:
        kinds = [message.DESCRIPTOR  # type: ignore[attr-defined]
                 for message in (method.request, method.response)]
        for kind in kinds:
            if kind.file.name not in file.dependency:
                file.dependency.append(kind.file.name)
        described.method.add(name=method.name, input_type=f".{kinds[0].full_name}",
                             output_type=f".{kinds[1].full_name}",
                             server_streaming=method.streams)
    return file


def handlers(methods: Iterable[Method]) -> list[Any]:
    """Return what a gRPC server adds so that it tells of these methods."""
    listed = list(methods)
    names = {method.service for method in listed}
    servicer: Any = reflection.ReflectionServicer((*names, *SERVICES), pool_of(listed))

    def tell(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        yield from servicer.ServerReflectionInfo(requests, context)

    tell.experimental_thread_pool = ThreadPoolExecutor(  # type: ignore[attr-defined]
        THREADS, thread_name_prefix="tf-infer-reflection")
    handler = grpc.stream_stream_rpc_method_handler(
        tell, reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString)
    return [grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": handler})
            for service in SERVICES]
