"""The one table of dtypes: name <-> DataType <-> numpy <-> typed field of a TensorProto.

Source: tensorflow/core/framework/{types,tensor}.proto; which field holds which dtype: statement
PR17 of TensorFlow Serving's observed behaviour.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import numpy as np

from tf_infer.errors import ShapeError
from tf_infer.wire import serving_pb2 as pb

Form = Literal["raw", "varint", "bits", "strings"]


class DType(NamedTuple):
    """One line of the table.

    Attributes:
        name: what we call it in manifests, messages and `dtypes=`.
        enum: its number in a TensorProto.
        array: numpy dtype of `tensor_content`, little-endian; of bfloat16 the 16-bit pattern.
        field: typed field of the TensorProto.
        form: how that field holds a number: "raw" as in memory, "varint", or "bits" (a 16-bit
            pattern as varint); "strings" for bytes.
    """

    name: str
    enum: int
    array: np.dtype
    field: str
    form: Form


TABLE: tuple[DType, ...] = (
    DType("float32", pb.DT_FLOAT, np.dtype("<f4"), "float_val", "raw"),
    DType("float64", pb.DT_DOUBLE, np.dtype("<f8"), "double_val", "raw"),
    DType("float16", pb.DT_HALF, np.dtype("<f2"), "half_val", "bits"),
    DType("bfloat16", pb.DT_BFLOAT16, np.dtype("<u2"), "half_val", "bits"),
    DType("int8", pb.DT_INT8, np.dtype("<i1"), "int_val", "varint"),
    DType("int16", pb.DT_INT16, np.dtype("<i2"), "int_val", "varint"),
    DType("int32", pb.DT_INT32, np.dtype("<i4"), "int_val", "varint"),
    DType("int64", pb.DT_INT64, np.dtype("<i8"), "int64_val", "varint"),
    DType("uint8", pb.DT_UINT8, np.dtype("<u1"), "int_val", "varint"),
    DType("uint16", pb.DT_UINT16, np.dtype("<u2"), "int_val", "varint"),
    DType("uint32", pb.DT_UINT32, np.dtype("<u4"), "uint32_val", "varint"),
    DType("uint64", pb.DT_UINT64, np.dtype("<u8"), "uint64_val", "varint"),
    DType("bool", pb.DT_BOOL, np.dtype("?"), "bool_val", "varint"),
    DType("complex64", pb.DT_COMPLEX64, np.dtype("<c8"), "scomplex_val", "raw"),
    DType("complex128", pb.DT_COMPLEX128, np.dtype("<c16"), "dcomplex_val", "raw"),
    DType("string", pb.DT_STRING, np.dtype("O"), "string_val", "strings"),
    DType("qint8", pb.DT_QINT8, np.dtype("<i1"), "int_val", "varint"),
    DType("qint16", pb.DT_QINT16, np.dtype("<i2"), "int_val", "varint"),
    DType("qint32", pb.DT_QINT32, np.dtype("<i4"), "int_val", "varint"),
    DType("quint8", pb.DT_QUINT8, np.dtype("<u1"), "int_val", "varint"),
    DType("quint16", pb.DT_QUINT16, np.dtype("<u2"), "int_val", "varint"),
)

_BY_ENUM = {row.enum: row for row in TABLE}
_BY_NAME = {row.name: row for row in TABLE}


def by_enum(enum: int) -> DType:
    """Return the row of a DataType number.

    Raises:
        ShapeError: a dtype that numpy has no form for (resource, variant, float8, int4, ...).
    """
    try:
        return _BY_ENUM[enum]
    except KeyError:
        raise ShapeError(f"dtype: expected one of {sorted(_BY_NAME)}, "
                         f"got {enum_name(enum)}.") from None


def by_name(name: str) -> DType:
    """Return the row called `name`.

    Raises:
        ShapeError: there is none.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise ShapeError(f"dtype: expected one of {sorted(_BY_NAME)}, got {name!r}.") from None


def by_array(dtype: np.dtype) -> DType:
    """Return the row of a numpy dtype; text and objects are strings.

    Raises:
        ShapeError: a dtype that cannot be sent (dates, records, ...).
    """
    return _BY_NAME["string"] if dtype.kind in "OSU" else _by_number(dtype)


@functools.lru_cache(maxsize=256)  # a dtype takes longer to tell its name than to be looked up
def _by_number(dtype: np.dtype) -> DType:
    return by_name(dtype.name)


def label(enum: int) -> str:
    """Return our name of a DataType, else types.proto's ("DT_RESOURCE"); never raises."""
    row = _BY_ENUM.get(enum)
    return row.name if row else enum_name(enum)


def enum_name(enum: int) -> str:
    """Return what a DataType number is called in types.proto; never raises."""
    known: dict[int, str] = {value: name for name, value in pb.DataType.items()}
    if enum > 100 and enum - 100 in known:  # reference dtypes of TensorFlow 1
        return known[enum - 100] + "_REF"
    return known.get(enum, f"DataType {enum}")


def bfloat16_type() -> np.dtype | None:
    """Return ml_dtypes' bfloat16 when that package is installed, else None."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    kind: np.dtype = np.dtype(ml_dtypes.bfloat16)
    return kind
