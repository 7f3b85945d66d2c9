"""`tf-infer serve --backend=tensorflow_model_server`: start the real server, prove it, pass signals

It is asked through our client, and so outside of `tf_infer.server`, which knows none.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer.errors import DeadlineExceeded, InvalidRequest, TfInferError

if TYPE_CHECKING:
    import numpy as np

    from tf_infer.client.client import Client
    from tf_infer.client.credentials import Credentials
    from tf_infer.manifest import ModelManifest
    from tf_infer.server.contracts import Arrays, Signatures
    from tf_infer.server.launcher import Child
    from tf_infer.wire.messages import ModelRef, SignatureInfo

SLICE_S = 0.5  # of waiting, between looks at the process
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(values: Mapping[str, Any], words: Sequence[str]) -> int:
    """Serve until the server ends; return its exit code.

    Args:
        values: what the command line says.
        words: the command line itself, for what is passed on.

    Raises:
        TfInferError: it cannot be started, does not become ready, or gives other answers than the
            golden samples; it does not run any more then.
    """
    from tf_infer.server import config, flags, launcher, tf_serving

    launcher.check_flags(values)
    credentials = _credentials(values)
    models = flags.models_of(values)
    config.check_models(models)
    binary = launcher.find(values["server_binary"])
    found = list(launcher.versions(models))
    examined = launcher.examine(found, values, binary.release)
    if values["enable_preflight"]:
        launcher.refuse(binary, examined.problems)
    if not examined.known_release:
        print(f"no list of operations of {launcher.BINARY} {binary.release or '(no release)'}: "
              "nothing was held against it", flush=True)
    grids = [grid for model in models if "://" not in model.base_path
             and (grid := tf_serving.newest_grid(model)) is not None]
    with tempfile.TemporaryDirectory(prefix="tf-infer-") as scratch:
        folder = Path(values["server_config_dir"] or scratch).resolve()
        launch = launcher.plan(words, values, models, binary=binary, folder=folder, grids=grids,
                               socket=Path(scratch) / "s", compiled=examined.compiled)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in launch.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        return _serve(launch, values, models, found, credentials, binary.release)


def _serve(launch: Any, values: Mapping[str, Any], models: Sequence[Any], found: Sequence[Any],
           credentials: Credentials, release: str) -> int:
    """Start it, wait until it is proven, then until it ends."""
    from tf_infer.client.client import Client
    from tf_infer.server import launcher

    started: list[Child] = []
    told: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        told.append(number)
        for one in started:
            one.send(number)

    # before it starts, so that no signal ends us and leaves it behind
    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        child = launcher.Child(launch.command)
        started.append(child)
        for number in told:
            child.send(number)
        lines = [f"{launcher.BINARY} {release} answers gRPC at port {values['port']}"
                 if values["port"] else f"{launcher.BINARY} {release} answers gRPC"]
        if values["ready_seconds"] > 0:
            with Client(launch.address, credentials=credentials, timeout_s=None) as client:
                lines += _prove(client, child, values, models, found)
        print("\n".join(lines), flush=True)
    except TfInferError:
        if told:  # it was ended while it started, as it was asked to
            return child.wait()
        raise
    else:
        return child.wait()
    finally:
        for one in started:
            one.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _prove(client: Client, child: Child, values: Mapping[str, Any], models: Sequence[Any],
           found: Sequence[Any]) -> list[str]:
    """Wait for every model, replay the golden samples of its versions; return what to print."""
    from tf_infer.server.warmup import replay_golden
    from tf_infer.wire.messages import ModelRef

    lines = []
    paths = {(one.model, one.number): one.path for one in found}
    end_s = time.monotonic() + values["ready_seconds"]
    for model in models:
        for version in wait_ready(client, child, ModelRef(model.name), end_s=end_s):
            began_s, path = time.monotonic(), paths.get((model.name, version))
            samples = 0
            if path is not None and values["enable_golden_replay"]:
                samples = replay_golden(Remote(client, ModelRef(model.name, version)), path)
            equal = (f"{samples} golden samples equal in {time.monotonic() - began_s:.2f} s"
                     if samples else "no golden samples replayed")
            lines.append(f"  {model.name} version {version}: available, {equal}")
    return lines


def wait_ready(client: Client, child: Child, ref: ModelRef, *, end_s: float) -> tuple[int, ...]:
    """Return the versions that are available, as soon as there is one.

    Args:
        client: asks the server.
        child: its process.
        ref: the model.
        end_s: of time.monotonic.

    Raises:
        DeadlineExceeded: there was none in time.
        ServerUnavailable: the process ended.
        ServerFailure: every version failed to load.
    """
    while True:
        child.check()
        try:
            return client.wait_until_ready(
                ref, timeout_s=max(0.0, min(SLICE_S, end_s - time.monotonic()))).available
        except DeadlineExceeded as error:
            if time.monotonic() >= end_s:
                raise DeadlineExceeded(f"--ready_seconds is over. {error.details}") from error


class Remote:
    """A version on a server as a Servable, so that its golden samples are replayed as at a load.

    Args:
        client: asks the server.
        ref: model and version.
    """

    def __init__(self, client: Client, ref: ModelRef) -> None:
        self._client, self._ref = client, ref
        self.manifest: ModelManifest | None = None
        self.signatures: Signatures = {name: _definition(one) for name, one
                                       in client.metadata(ref).signatures.items()}

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> Arrays:
        """Ask for one run."""
        return dict(self._client.predict(self._ref, inputs, signature=signature, outputs=outputs,
                                         timeout_s=timeout_s).outputs)

    def close(self) -> None:
        """Do nothing: the client is its maker's."""


def _definition(info: SignatureInfo) -> Any:
    from tf_infer.wire import serving_pb2

    made = serving_pb2.SignatureDef(method_name=info.method_name)
    for tensors, infos in ((info.inputs, made.inputs), (info.outputs, made.outputs)):
        for one in tensors:
            infos[one.name].name = one.name
    return made


def _credentials(values: Mapping[str, Any]) -> Credentials:
    """Return how the server is asked on its own socket, which speaks as its port does.

    Raises:
        InvalidRequest: it cannot be asked, and is to be.
    """
    from tf_infer.client.credentials import INSECURE, tls
    from tf_infer.server.config import read_ssl_config

    if values["ready_seconds"] <= 0:
        return INSECURE
    if values["use_alts_credentials"]:
        raise InvalidRequest("--use_alts_credentials: this launcher cannot ask such a server. Add "
                             "--ready_seconds=0, which neither waits nor replays golden samples.")
    if not values["ssl_config_file"]:
        return INSECURE
    if not values["tls_server_name"]:
        raise InvalidRequest("--tls_server_name: expected a name in the certificate of "
                             "--ssl_config_file, by which this launcher asks its server, got none. "
                             "Add it, or --ready_seconds=0 not to ask.")
    message = read_ssl_config(values["ssl_config_file"])
    ca, key, certificate = (text.encode() for text in (
        message.custom_ca or message.server_cert, message.server_key, message.server_cert))
    if not message.client_verify:
        return tls(ca=ca, server_name=values["tls_server_name"])
    return tls(ca=ca, key=key, certificate=certificate, server_name=values["tls_server_name"])
