"""Whether the graph and the signatures of a SavedModel run on a release of tensorflow_model_server

Pure: messages and lists in, findings out. What is found is laid at the door of the load, or of the
signatures that run it: the server looks at a function only when it is called.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from tf_infer.errors import ServingError
from tf_infer.server import inference, op_lists
from tf_infer.server.findings import LOAD, Finding, of_signatures
from tf_infer.server.op_lists import Release
from tf_infer.server.reach import Program, Reached, Use
from tf_infer.wire import dtypes
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire.messages import SERVING_DEFAULT

XLA_FLAG = "--xla_cpu_compilation_enabled"
INIT_OP = "__saved_model_init_op"  # runs at load
PYTHON_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
NOT_SENT = frozenset({pb.DT_INVALID, pb.DT_RESOURCE, pb.DT_VARIANT})
NOT_IN_JSON = frozenset({pb.DT_HALF, pb.DT_BFLOAT16, pb.DT_UINT16, pb.DT_COMPLEX64,
                         pb.DT_COMPLEX128})  # RP29
METHODS = {"": "none", "tensorflow/serving/predict": "Predict"}


def findings(graph: pb.MetaGraphDef, program: Program, release: Release) -> list[Finding]:
    """Return what is found in one meta graph, whose nodes and functions `program` holds."""
    signatures = {name: graph.signature_def[name] for name in sorted(graph.signature_def)
                  if not name.startswith("__")}
    reached = {name: program.reached(_names(graph.signature_def[name].outputs.values()))
               for name in sorted(graph.signature_def) if name in signatures or name == INIT_OP}
    found = [*_version(graph.graph_def.versions, release), *_ops(program, reached, release),
             *_compiled(reached), *_callable(signatures)]
    for name, signature in signatures.items():
        found += _signature(name, signature, program)
        found += _batching(name, signature)
    return found


# ---------------------------------------------------------------------------- operations


def _version(versions: pb.VersionDef, release: Release) -> Iterator[Finding]:
    mine = release.graph_def_version
    if versions.min_consumer > mine or mine in versions.bad_consumers:
        yield Finding(
            level="stop", where=LOAD, what=f"the graph asks for a TensorFlow that reads version "
            f"{versions.min_consumer} of graphs, this one reads up to {mine}",
            fix="Export with an older TensorFlow, or take a newer server.")


class Fault(NamedTuple):
    """What is wrong with one operation.

    Attributes:
        at_load: whether a graph with it does not load; else its run fails, or differs. No load
            looks inside a function.
        what, fix: as of a Finding.
    """

    at_load: bool
    what: str
    fix: str


def _ops(program: Program, reached: Mapping[str, Reached], release: Release) -> Iterator[Finding]:
    """Yield what the release does not know, once for each fault."""
    places: dict[Fault, set[str]] = {}

    def look(uses: Iterable[Use], place: str, *, compiled: bool = False) -> None:
        for use in uses:
            for fault in _faults(use, release, compiled=compiled):
                if place != LOAD or fault.at_load:
                    places.setdefault(fault, set()).add(place)

    look(program.all_uses(), "", compiled=True)
    look(program.graph_uses(), LOAD)
    for name, one in reached.items():
        look(one.uses, name)
        look(one.compiled_uses, name, compiled=True)
    for fault, where in sorted(places.items()):
        names = where - {"", LOAD, INIT_OP}
        if where & {LOAD, INIT_OP}:
            yield Finding(level="stop", where=LOAD, what=fault.what, fix=fault.fix)
        elif names:
            yield Finding(level="stop", where=of_signatures(*names), what=fault.what,
                          fix=fault.fix)
        else:
            yield Finding(level="note", where="graph",
                          what=f"{fault.what}; no signature runs it, so it does no harm")


def _faults(use: Use, release: Release, *, compiled: bool) -> Iterator[Fault]:
    """Yield each fault of one operation; what is compiled needs no kernel."""
    op = release.ops.get(use.op)
    if op is None:
        yield _unknown(use.op, release)
        return
    library = release.libraries[use.op]
    for name in sorted(use.attributes - op.required - op.optional):
        yield Fault(False, f"operation {use.op}: attribute {name!r} is unknown to {library}, which "
                    "ignores it: other answers",
                    _elsewhere(use.op, name) or "Export with an older TensorFlow.")
    for name in sorted(op.required - use.attributes):
        yield Fault(True, f"operation {use.op}: attribute {name!r} has no default in {library} and "
                    "is not in the graph",
                    "Export with an older TensorFlow, or without stripping defaults.")
    if op.on_cpu or compiled:
        return
    if use.op in PYTHON_OPS:
        yield Fault(False, f"operation {use.op} runs Python code, which no server has",
                    "Write the function in TensorFlow operations (no tf.py_function).")
    else:
        yield Fault(False, f"operation {use.op} has no kernel for a CPU",
                    "Take a server with the device it was exported for, or export on a CPU.")


def _unknown(op: str, release: Release) -> Fault:
    linked = release.linked
    fix = _elsewhere(op, None)
    if op.startswith("TFText>"):
        return Fault(True, f"operation {op} is not in TF-Text {linked.tensorflow_text}, which is "
                     "linked", fix or "Export with an older TF-Text, or tokenize in the caller.")
    if op.startswith("SimpleML"):
        return Fault(True, f"operation {op} is not among the inference operations of TensorFlow "
                     f"Decision Forests {linked.decision_forests}, which are linked",
                     fix or "Export with an older version of it.")
    if op in release.newer:
        return Fault(True, f"operation {op} is newer than TensorFlow {linked.tensorflow}, which is "
                     "linked", fix or "Export with an older TensorFlow.")
    return Fault(True, f"operation {op} is not linked: a custom operation, or newer than all that "
                 "is known here", "Build a server with its library (TensorFlow Serving's guide "
                 "custom_op), or leave it out.")


def _elsewhere(op: str, attribute: str | None) -> str:
    """Return which releases of the server know an operation, or an attribute of it."""
    knowing = []
    for name in op_lists.RELEASES:
        known = op_lists.release(name).ops.get(op)
        if known is not None and (attribute is None
                                  or attribute in known.required | known.optional):
            knowing.append(name)
    return f"Known to tensorflow_model_server {', '.join(knowing)}." if knowing else ""


def _compiled(reached: Mapping[str, Reached]) -> Iterator[Finding]:
    names = [name for name, one in reached.items() if one.compiled and name != INIT_OP]
    if names:
        yield Finding(
            level="flag", where=of_signatures(*names), flag=f"{XLA_FLAG}=true",
            what="compiled by XLA, which the server does only when it is told to (on a GPU: "
                 "--xla_gpu_compilation_enabled)")


# ---------------------------------------------------------------------------- signatures


def _callable(signatures: Collection[str]) -> Iterator[Finding]:
    if not signatures:
        yield Finding(level="stop", where=LOAD, what="no signature: there is nothing to call",
                      fix="Export with signatures (tf.saved_model.save(..., signatures=...)).")
    elif SERVING_DEFAULT not in signatures:
        yield Finding(level="note", where=of_signatures(*signatures),
                      what=f"no {SERVING_DEFAULT!r}: callers have to name a signature")


def _names(infos: Iterable[pb.TensorInfo]) -> list[str]:
    """Return the tensors behind the infos, those of sparse and composite ones too."""
    found = []
    for info in infos:
        kind = info.WhichOneof("encoding")
        if kind == "composite_tensor":
            found += _names(info.composite_tensor.components)
        elif kind == "coo_sparse":
            found += [info.coo_sparse.values_tensor_name, info.coo_sparse.indices_tensor_name,
                      info.coo_sparse.dense_shape_tensor_name]
        else:
            found.append(info.name)
    return found


def _signature(name: str, signature: pb.SignatureDef, program: Program) -> Iterator[Finding]:
    where = of_signatures(name)
    both = [*signature.inputs.items(), *signature.outputs.items()]
    for key, info in sorted(both, key=lambda item: item[0]):
        missing = program.missing(_names([info]))
        if info.WhichOneof("encoding") in ("coo_sparse", "composite_tensor"):
            yield Finding(level="stop", where=where,
                          what=f"{key!r} is a sparse, ragged or composite tensor; requests carry "
                               "dense ones only", fix="Export its parts as tensors of their own.")
        elif missing:
            yield Finding(level="stop", where=where,
                          what=f"{key!r} stands for a tensor that the graph does not have",
                          fix="Export again.")
        elif info.dtype in NOT_SENT:
            yield Finding(level="stop", where=where,
                          what=f"{key!r} is {dtypes.enum_name(info.dtype)}, which no request and "
                               "no answer can carry", fix="Leave it out of the signature.")
    in_json = sorted(key for key, info in both if info.dtype in NOT_IN_JSON)
    if in_json:
        yield Finding(level="note", where=where, what=f"REST cannot carry {', '.join(in_json)} "
                      "(half precision, uint16 or complex); gRPC does")
    if not signature.inputs:
        yield Finding(level="note", where=where, what="no inputs: REST cannot call it, gRPC can")
    yield from _defaults(where, signature)
    yield from _method(where, signature)


def _defaults(where: str, signature: pb.SignatureDef) -> Iterator[Finding]:
    given = sorted(set(signature.defaults) & set(signature.inputs))
    if given:
        yield Finding(level="note", where=where, what=f"{', '.join(given)} may be left out of "
                      "Predict over gRPC; REST still asks for every input")


def _method(where: str, signature: pb.SignatureDef) -> Iterator[Finding]:
    """Hold the method name against the form that its request asks for."""
    checks = {inference.CLASSIFY_METHOD: ("Classify", inference.check_classify),
              inference.REGRESS_METHOD: ("Regress", inference.check_regress)}
    method = signature.method_name
    if method in checks:
        request, check = checks[method]
        try:
            check(signature)
        except ServingError as error:
            yield Finding(level="stop", where=where,
                          what=f"its method is {request}, which would be refused: {error.details}",
                          fix=f"Export it as Predict, or in the form of {request}.")
        return
    if method not in METHODS:
        yield Finding(level="note", where=where, what=f"its method {method!r} is not known; "
                      "Predict runs it, unless --enable_signature_method_name_check")
    for request, check in checks.values():
        try:
            check(signature)
        except ServingError:
            continue
        yield Finding(level="note", where=where, what=f"has the form of {request}; its method is "
                      f"{METHODS.get(method, method)}, so --enable_signature_method_name_check "
                      f"refuses {request}")


def _batching(name: str, signature: pb.SignatureDef) -> Iterator[Finding]:
    """Yield what --enable_batching cannot take (BA10 to BA15)."""
    where = of_signatures(name)
    fix = "Give it a first axis of rows, or serve it without --enable_batching."
    for side, infos in (("input", signature.inputs), ("output", signature.outputs)):
        for key in sorted(infos):
            shape = infos[key].tensor_shape
            if shape.unknown_rank or infos[key].WhichOneof("encoding") != "name":
                continue
            if not shape.dim:
                yield Finding(level="batching", where=where, fix=fix,
                              what=f"{side} {key!r} is a scalar: no axis of rows to join")
            elif shape.dim[0].size >= 0:
                yield Finding(level="batching", where=where, fix=fix,
                              what=f"{side} {key!r} has {shape.dim[0].size} rows, always: joined "
                                   "requests have another number")
    free = sorted(key for key, info in signature.inputs.items()
                  if any(dim.size < 0 for dim in info.tensor_shape.dim[1:]))
    if free:
        yield Finding(level="note", where=where, what="--enable_batching joins only requests that "
                      f"agree in every later axis of {', '.join(free)}, unless "
                      "pad_variable_length_inputs is set")
