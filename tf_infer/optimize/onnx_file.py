"""Write an ONNX model operation by operation: one graph whose axes of rows and tokens are free.

Only operators of ONNX's own set: every runtime that reads the file knows them, TensorRT too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tf_infer.errors import ConfigError, ExportError

# The first set of operators with LayerNormalization, and the form of file that came with it.
OPERATORS, FORM = 17, 8
MAX_BYTES = 2**31 - 2**24  # of a protobuf message, with room for the graph itself
_TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "bool": TensorProto.BOOL,
          "float16": TensorProto.FLOAT16}


@dataclass(slots=True)
class Graph:
    """Operations in order, and the constants they use; a tensor is its name.

    Attributes:
        shapes: dtype and shape of tensors whose axes onnx cannot tell; a name is a free axis.
    """

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, tuple[str, Sequence[Any]]] = field(default_factory=dict)
    known: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def constant(self, values: Any, dtype: Any = None) -> str:
        """Add a few numbers; those that are there already are not added again."""
        array = np.asarray(values, dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self.known:
            self.known[key] = self.weights(f"constant_{len(self.known)}", array)
        return self.known[key]

    def weights(self, name: str, array: np.ndarray) -> str:
        """Add many numbers under a name of their own."""
        assert name not in self.constants
        self.constants[name] = array
        return name

    def op(self, kind: str, inputs: Sequence[str], *, outputs: int = 1, **attributes: Any) -> Any:
        """Add an operation; return its output, or a tuple of several."""
        number = len(self.nodes)
        names = [f"{kind.lower()}_{number}" + (f"_{place}" if outputs > 1 else "")
                 for place in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}_{number}",
                                           **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def cast(self, tensor: str, dtype: str) -> str:
        """The same numbers in another type."""
        return str(self.op("Cast", [tensor], to=_TYPES[dtype]))

    def reshape(self, tensor: str, shape: Sequence[int]) -> str:
        """Another shape; 0 keeps an axis, -1 is what is left."""
        return str(self.op("Reshape", [tensor, self.constant(shape, np.int64)]))

    def model(self, name: str, inputs: Mapping[str, tuple[str, Sequence[Any]]],
              outputs: Mapping[str, tuple[str, str, Sequence[Any]]], notes: Mapping[str, str]
              ) -> bytes:
        """Return the file of a graph, after onnx's own checker went through all of it.

        Args:
            name: of the graph.
            inputs: name -> dtype and shape; a name in place of a size is a free axis.
            outputs: name -> tensor, dtype and shape.
            notes: of the file, for those who look into it.

        Raises:
            ConfigError: the file would be too large for one message.
            ExportError: the checker refuses it.
        """
        size = sum(array.nbytes for array in self.constants.values())
        if size > MAX_BYTES:
            raise ConfigError(f"engine onnx: expected weights of at most {MAX_BYTES} bytes, got "
                              f"{size}. Take a smaller precision.")
        for told, (tensor, _, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [tensor], [told], name=told))
        graph = helper.make_graph(
            self.nodes, name, _told(inputs),
            _told({told: (dtype, shape) for told, (_, dtype, shape) in outputs.items()}),
            [numpy_helper.from_array(array, told) for told, array in self.constants.items()],
            value_info=_told(self.shapes))
        made = helper.make_model(graph, ir_version=FORM, producer_name="tf_infer",
                                 opset_imports=[helper.make_opsetid("", OPERATORS)])
        helper.set_model_props(made, dict(notes))
        try:
            onnx.checker.check_model(made, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"engine onnx: expected a model that onnx's checker passes, got: "
                              f"{error}") from error
        return bytes(made.SerializeToString())


def _told(tensors: Mapping[str, tuple[str, Sequence[Any]]]) -> list[Any]:
    return [helper.make_tensor_value_info(name, _TYPES[dtype], list(shape))
            for name, (dtype, shape) in tensors.items()]
