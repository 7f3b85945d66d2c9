"""NVIDIA's GPUs of this machine, as the driver names them: libcuda through ctypes."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

LIBRARY = "libcuda.so.1"
_NAME_BYTES = 256
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class Gpu(NamedTuple):
    """A GPU.

    Attributes:
        name: such as "NVIDIA H100 80GB HBM3".
        capability: such as "9.0"; kernels are made for one.
    """

    name: str
    capability: str


def found(library: str = LIBRARY) -> tuple[Gpu, ...]:
    """Return the GPUs that this process may use, in CUDA's order; none without a driver."""
    cuda, count = _driver(library)
    return tuple(_gpu(cuda, number) for number in range(count))


def used(library: str = LIBRARY) -> bool:
    """Whether anything in this process computes on a GPU already, or that cannot be told."""
    cuda, count = _driver(library)
    return any(_holds(cuda, number) for number in range(count))


def _driver(library: str) -> tuple[Any, int]:
    """Return the driver's library, and how many GPUs it has for this process; without one, 0."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return None, 0
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return None, 0
    return cuda, count.value


def _holds(cuda: ctypes.CDLL, number: int) -> bool:
    device, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
    return bool(cuda.cuDeviceGet(ctypes.byref(device), number)
                or cuda.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags),
                                                   ctypes.byref(active))
                or active.value)


def _gpu(cuda: ctypes.CDLL, number: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(name, _NAME_BYTES, device)
    parts = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        parts.append(str(value.value))
    return Gpu(name.value.decode("utf-8", "replace"), ".".join(parts))
