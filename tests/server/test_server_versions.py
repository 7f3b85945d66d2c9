"""Version folders and their life, seen through GetModelStatus and Predict; no model behind it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.server.serverkit import (
    call,
    lent,
    make_versions,
    predict_request,
    refused,
    running,
    wait_until,
)
from tf_infer.errors import (
    Cancelled,
    Code,
    InvalidRequest,
    ModelNotFound,
    ServerFailure,
    ServingError,
)
from tf_infer.server.config import ModelConfig, VersionPolicy
from tf_infer.server.contracts import LoadTimes, Servable
from tf_infer.server.decide import State
from tf_infer.server.fakes import EchoServable, load_echo
from tf_infer.server.versions import ModelRef, Versions
from tf_infer.wire import methods, serving_pb2

WAIT_S = 20.0
ALL = VersionPolicy(kind="all")


def load_unless_bad(path: Path) -> tuple[Servable, LoadTimes]:
    """Load any directory but those that hold a file named `bad`."""
    if (path / "bad").exists():
        raise ServerFailure(f"{path.name} is broken", code=Code.DATA_LOSS)
    return load_echo(path)


@contextmanager
def table(load: Callable[[Path], Any] = load_unless_bad, **settings: Any) -> Iterator[Versions]:
    settings = {"max_load_retries": 0, "load_retry_interval_s": 0.01, "poll_s": 0, **settings}
    versions = Versions(load, **settings)
    try:
        yield versions
    finally:
        versions.stop()


def states(versions: Versions, name: str = "m") -> dict[int, State]:
    return {row.version: row.state for row in versions.status(name)}


def wait(versions: Versions, expected: dict[int, State], name: str = "m") -> None:
    def holds() -> bool:
        try:
            return states(versions, name) == expected
        except ModelNotFound:
            return False

    assert wait_until(versions, holds, WAIT_S), states(versions, name)


def model(base: Path, **settings: Any) -> ModelConfig:
    return ModelConfig(name="m", base_path=str(base), **settings)


UP, END = State.AVAILABLE, State.END


def test_VR05_VR06_a_new_version_takes_over_and_the_old_one_goes(tmp_path: Path) -> None:
    with table() as versions:
        versions.configure([model(make_versions(tmp_path, "1", "2", "x3"))])
        assert states(versions) == {2: UP}
        make_versions(tmp_path, "10")
        assert versions.poll()
        wait(versions, {10: UP, 2: END})
        assert versions.status("m", 2)[0].error is None  # VR19
        with lent(versions, ModelRef("m")) as lease:
            assert lease.version == 10
        with pytest.raises(ModelNotFound, match=r"Specific\(m, 2\)"), \
                lent(versions, ModelRef("m", 2)):
            pass


def test_VR06_every_request_is_answered_while_versions_change(tmp_path: Path) -> None:
    with table() as versions:
        versions.configure([model(make_versions(tmp_path, "1"))])
        stop, seen = threading.Event(), set()
        failures: list[Exception] = []

        def ask() -> None:
            while not stop.is_set():
                try:
                    with lent(versions, ModelRef("m")) as lease:
                        seen.add(lease.version)
                        assert isinstance(lease.servable, EchoServable)
                        assert not lease.servable.closed  # VR17
                except Exception as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for version in range(2, 12):
            make_versions(tmp_path, str(version))
            versions.poll()
            wait_until(versions, lambda v=version: states(versions).get(v) is UP, WAIT_S)
        end_s = time.monotonic() + WAIT_S
        while 11 not in seen and not failures and time.monotonic() < end_s:
            time.sleep(0.002)  # a thread may have slept since an earlier version
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert 11 in seen


def test_VR08_VR09_removed_versions(tmp_path: Path) -> None:
    with table() as versions:
        versions.configure([model(make_versions(tmp_path, "1", "2"))])
        shutil.rmtree(tmp_path / "2")
        versions.poll()
        wait(versions, {1: UP, 2: END})
        shutil.rmtree(tmp_path / "1")
        versions.poll()
        wait(versions, {1: END, 2: END})
        make_versions(tmp_path, "2")
        versions.poll()
        wait(versions, {1: END, 2: UP})


def test_VR10_a_base_path_that_disappears_leaves_what_is_loaded(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = make_versions(tmp_path / "base", "1")
    with table() as versions:
        versions.configure([model(base)])
        shutil.rmtree(base)
        assert not versions.poll()
        assert not versions.poll()
        assert states(versions) == {1: UP}
        assert caplog.text.count("No such file") == 1


def test_VR11_VR12_a_version_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    with table() as versions:
        versions.configure([model(make_versions(tmp_path, "1"))])
        make_versions(tmp_path, "2/bad")
        versions.poll()
        wait(versions, {1: UP, 2: END})
        row = versions.status("m", 2)[0]
        assert row.error is not None  # MS10
        assert (row.error.code, row.error.details) == (Code.DATA_LOSS, "2 is broken")
        (tmp_path / "2" / "bad").rmdir()
        versions.poll()
        assert states(versions) == {1: UP, 2: END}  # not tried again while it stays
        shutil.move(tmp_path / "2", tmp_path / "aside")
        versions.poll()
        shutil.move(tmp_path / "aside", tmp_path / "2")
        versions.poll()
        wait(versions, {1: END, 2: UP})


def test_VR12_a_further_version_is_loaded_after_a_failed_one(tmp_path: Path) -> None:
    with table() as versions:
        versions.configure([model(make_versions(tmp_path, "1"))])
        make_versions(tmp_path, "2/bad")
        versions.poll()
        wait(versions, {1: UP, 2: END})
        make_versions(tmp_path, "3")
        versions.poll()
        wait(versions, {1: END, 2: END, 3: UP})


def test_FL31_a_load_is_tried_again(tmp_path: Path) -> None:
    tries: list[Path] = []

    def third_time(path: Path) -> tuple[Servable, LoadTimes]:
        tries.append(path)
        if len(tries) < 3:
            raise OSError("not yet")
        return load_echo(path)

    with table(third_time, max_load_retries=5) as versions:
        versions.configure([model(make_versions(tmp_path, "1"))])
        assert len(tries) == 3
        assert versions.status("m")[0].error is None


def test_FL27_CF22_every_version_at_its_first_attempt_is_waited_for(tmp_path: Path) -> None:
    def slow_first(path: Path) -> tuple[Servable, LoadTimes]:
        time.sleep(0.3 if path.name == "1" else 0.0)
        return load_echo(path)

    with table(slow_first) as versions:
        versions.configure([model(make_versions(tmp_path, "1", "2"), policy=ALL)])
        with lent(versions, ModelRef("m", 1)) as lease:
            assert lease.version == 1


def test_FL27_FL31_a_version_that_fails_again_and_again_holds_nothing_up(tmp_path: Path) -> None:
    with table(max_load_retries=5, load_retry_interval_s=60.0) as versions:
        versions.configure([model(make_versions(tmp_path, "1", "2/bad"), policy=ALL)],
                           timeout_s=WAIT_S)
        assert states(versions) == {2: State.LOADING, 1: State.AVAILABLE}


def test_FL30_a_model_that_fails_for_good_at_the_start(tmp_path: Path) -> None:
    good = ModelConfig(name="good", base_path=str(make_versions(tmp_path / "good", "1")))
    with table(max_load_retries=1) as versions:
        with pytest.raises(ServingError, match=r"did not become available.*2 is broken") as caught:
            versions.configure([good, model(make_versions(tmp_path / "m", "2/bad"))])
        assert caught.value.code is Code.UNKNOWN
        wait(versions, {1: UP}, "good")  # MS14


def test_VR20_models_load_together_at_the_start_and_by_load_threads_later(tmp_path: Path) -> None:
    together, inside, most = threading.Barrier(3), threading.Semaphore(1), []

    def load(path: Path) -> tuple[Servable, LoadTimes]:
        if path.parent.name in ("a", "b", "c"):
            together.wait(WAIT_S)  # or the load fails
        else:
            most.append(inside.acquire(blocking=False))
            time.sleep(0.02)
            inside.release()
        return load_echo(path)

    def named(*names: str) -> list[ModelConfig]:
        return [ModelConfig(name=name, base_path=str(make_versions(tmp_path / name, "1")))
                for name in names]

    with table(load, load_threads=1, start_load_threads=3) as versions:
        versions.configure(named("a", "b", "c"))
        versions.configure(named("a", "b", "c", "d", "e", "f"))
        assert most == [True] * 3


def test_VR20_loads_that_wait_are_dropped_by_a_stop(tmp_path: Path) -> None:
    begun: list[str] = []
    leave = threading.Event()

    def load(path: Path) -> tuple[Servable, LoadTimes]:
        begun.append(path.parent.name)
        leave.wait(WAIT_S)
        return load_echo(path)

    models = [ModelConfig(name=name, base_path=str(make_versions(tmp_path / name, "1")))
              for name in ("a", "b", "c")]
    with ThreadPoolExecutor(1) as pool, table(load, start_load_threads=1) as versions:
        with pytest.raises(TimeoutError):
            versions.configure(models, timeout_s=0.2)
        waiting = pool.submit(versions.configure, models)
        versions.cancel()
        leave.set()
        waiting.exception(WAIT_S)
        versions._pools[0].shutdown(wait=True)
        assert len(begun) == 1


def test_FL28_FL29_a_missing_base_path_holds_up_all_models(tmp_path: Path) -> None:
    good = ModelConfig(name="good", base_path=str(make_versions(tmp_path / "good", "1")))
    with table(poll_s=0.05) as versions:
        with pytest.raises(TimeoutError):
            versions.configure([good, model(tmp_path / "late")], timeout_s=0.3)
        with pytest.raises(ModelNotFound):
            versions.status("good")
        make_versions(tmp_path / "late", "1")
        wait(versions, {1: UP})
        wait(versions, {1: UP}, "good")


def test_FL28_a_base_path_without_a_version_is_waited_for(tmp_path: Path) -> None:
    base = make_versions(tmp_path / "m", "not-a-version")
    with ThreadPoolExecutor(1) as pool, table(poll_s=0.05) as versions:
        waiting = pool.submit(versions.configure, [model(base)])
        assert wait_until(versions, lambda: bool(versions._models), WAIT_S)
        assert not waiting.done()
        make_versions(base, "1")
        waiting.result(WAIT_S)
        assert states(versions) == {1: UP}


@pytest.mark.parametrize(("poll_s", "found"), [
    pytest.param(0.05, {1: END, 2: UP}, id="FL32"), pytest.param(0, {1: UP}, id="FL32-once")])
def test_how_often_the_folders_are_looked_at(
        tmp_path: Path, poll_s: float, found: dict[int, State]) -> None:
    with table(poll_s=poll_s) as versions:
        versions.configure([model(make_versions(tmp_path, "1"))])
        make_versions(tmp_path, "2")
        if poll_s:
            wait(versions, found)
        else:
            time.sleep(0.3)
            assert states(versions) == found
            versions.configure([model(tmp_path)])  # a reload looks once more
            wait(versions, {1: END, 2: UP})


def test_FL32_a_negative_time_never_looks(tmp_path: Path) -> None:
    with table(poll_s=-1) as versions:
        with pytest.raises(TimeoutError):
            versions.configure([model(make_versions(tmp_path, "1"))], timeout_s=0.3)
        with pytest.raises(ModelNotFound):
            versions.status("m")


def test_MS14_a_model_that_comes_back_and_fails_is_told(tmp_path: Path) -> None:
    with table(poll_s=0.05) as versions:
        versions.configure([model(make_versions(tmp_path, "1"))])
        versions.configure([])
        wait(versions, {1: END})
        make_versions(tmp_path, "2/bad")
        with pytest.raises(ServingError, match=r"\{name: m version: 2\} due to error"):
            versions.configure([model(tmp_path)], timeout_s=WAIT_S)


def test_LI05_a_reload_waits_for_another_one_only_until_its_deadline(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool, table(poll_s=0.05) as versions:
        first = pool.submit(versions.configure, [model(tmp_path / "late")])
        assert wait_until(versions, lambda: bool(versions._models), WAIT_S)
        second = pool.submit(versions.configure, [], timeout_s=0.2)
        with pytest.raises(TimeoutError, match="another reload"):
            second.result(WAIT_S)
        assert not first.done()
        make_versions(tmp_path / "late", "1")
        first.result(WAIT_S)


def test_a_stop_ends_the_wait_for_models(tmp_path: Path) -> None:
    with table(poll_s=0.05) as versions:
        threading.Timer(0.2, versions.stop).start()
        with pytest.raises(Cancelled):
            versions.configure([model(tmp_path / "never")])


def test_a_version_whose_load_ends_after_the_stop_is_closed(tmp_path: Path) -> None:
    loading, leave, servable = threading.Event(), threading.Event(), EchoServable()

    def slowly(path: Path) -> tuple[Servable, LoadTimes]:
        loading.set()
        leave.wait(WAIT_S)
        return servable, LoadTimes()

    with ThreadPoolExecutor(1) as pool, table(slowly) as versions:
        waiting = pool.submit(versions.configure, [model(make_versions(tmp_path, "1"))])
        assert loading.wait(WAIT_S)
        versions.stop()
        with pytest.raises(Cancelled):
            waiting.result(WAIT_S)
        leave.set()
        wait(versions, {1: END})
        assert servable.closed


def test_VR18_all_versions(tmp_path: Path) -> None:
    with table() as versions:
        versions.configure([model(make_versions(tmp_path, "1", "2"), policy=ALL)])
        wait(versions, {1: UP, 2: UP})
        make_versions(tmp_path, "3")
        versions.poll()
        wait(versions, {1: UP, 2: UP, 3: UP})
        with lent(versions, ModelRef("m", 1)) as lease:
            assert lease.version == 1
        with lent(versions, ModelRef("m")) as lease:  # VR16, GE13
            assert lease.version == 3


def test_VR17_an_unload_waits_for_the_request_that_runs(tmp_path: Path) -> None:
    with table() as versions:
        versions.configure([model(make_versions(tmp_path, "1"))])
        with lent(versions, ModelRef("m")) as lease:
            versions.configure([])
            assert not wait_until(versions, lambda: states(versions) != {1: State.UNLOADING}, 0.3)
            assert isinstance(lease.servable, EchoServable)
            assert not lease.servable.closed
            with pytest.raises(ModelNotFound), lent(versions, ModelRef("m")):
                pass
        wait(versions, {1: END})
        assert lease.servable.closed


def test_CF11_to_CF20_labels(tmp_path: Path) -> None:
    base = make_versions(tmp_path, "1", "2")
    with table() as versions:
        with pytest.raises(InvalidRequest, match="Request to assign label to version 1 of model m"
                           ", which is not currently available for inference") as caught:
            versions.configure([model(base, policy=ALL, labels={"old": 1})])   # CF13, CF20
        assert caught.value.code is Code.FAILED_PRECONDITION
        with pytest.raises(ModelNotFound):
            versions.status("m")                                               # CF18
        versions.configure([model(base, policy=ALL)])
        wait(versions, {1: UP, 2: UP})
        versions.configure([model(base, policy=ALL, labels={"old": 1, "new": 2})])
        with lent(versions, ModelRef("m", label="old")) as lease:
            assert lease.version == 1
        with pytest.raises(InvalidRequest):
            versions.configure([model(base, policy=ALL, labels={"old": 7})])
        with lent(versions, ModelRef("m", label="old")):                       # CF18
            pass
        versions.configure([model(base, policy=ALL, labels={"new": 2})])
        with pytest.raises(InvalidRequest, match="Unrecognized servable version label: old"), \
                lent(versions, ModelRef("m", label="old")):                    # CF17, CF19
            pass


def test_CF14_to_CF16_labels_for_versions_that_are_not_loaded(tmp_path: Path) -> None:
    base = make_versions(tmp_path, "1")
    with table(labels_for_unavailable=True) as versions:
        versions.configure([model(base, labels={"next": 9, "now": 1})])
        with pytest.raises(ModelNotFound, match=r"Specific\(m, 9\)"), \
                lent(versions, ModelRef("m", label="next")):
            pass
        with pytest.raises(InvalidRequest, match="not currently available"):
            versions.configure([model(base, labels={"now": 9})])


# ---------------------------------------------------------------------------- over gRPC


def status_request(name: str | None = "m", version: int | None = None,
                   label: str = "") -> serving_pb2.GetModelStatusRequest:
    request = serving_pb2.GetModelStatusRequest()
    if name is not None:
        request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    if label:
        request.model_spec.version_label = label
    return request


def test_MS01_to_MS09_model_status(tmp_path: Path) -> None:
    base = make_versions(tmp_path, "1", "2/bad", "3")
    with running((model(base, policy=ALL),), load_unless_bad) as (server, channel):
        wait(server.versions, {3: UP, 2: END, 1: UP})

        def ask(**arguments: Any) -> list[tuple[int, int, int, str]]:
            response = call(channel, methods.GET_MODEL_STATUS, status_request(**arguments))
            return [(row.version, row.state, row.status.error_code, row.status.error_message)
                    for row in response.model_version_status]

        every = [(3, 30, 0, ""), (2, 50, 15, "2 is broken"), (1, 30, 0, "")]
        assert ask() == every
        assert ask(version=2) == every[1:2]
        assert ask(label="no such label") == every                              # MS07
        method = methods.GET_MODEL_STATUS
        assert refused(channel, method, status_request(version=9)) == (
            "NOT_FOUND", "Could not find version 9 of model m")                 # MS04
        assert refused(channel, method, status_request(name="no")) == (
            "NOT_FOUND", "Could not find any versions of model no")             # MS05
        assert refused(channel, method, status_request(name=None)) == (
            "INVALID_ARGUMENT", "Missing ModelSpec")                            # MS06
        assert refused(channel, method, status_request(name=""))[0] == "NOT_FOUND"  # MS08


def reload_request(*models: tuple[str, Path]) -> serving_pb2.ReloadConfigRequest:
    request = serving_pb2.ReloadConfigRequest()
    request.config.model_config_list.SetInParent()
    for name, base in models:
        request.config.model_config_list.config.add(
            name=name, base_path=str(base), model_platform="tensorflow")
    return request


def test_MS11_to_MS18_CF21_reload_over_the_network(tmp_path: Path) -> None:
    first, second = make_versions(tmp_path / "a", "1"), make_versions(tmp_path / "b", "5")
    broken = make_versions(tmp_path / "c", "1/bad")
    with running((model(first),), load_unless_bad) as (_, channel):
        reload = methods.RELOAD_CONFIG
        request = reload_request(("n", second))
        request.metric_names.append("/no/such/metric")
        response = call(channel, reload, request)
        assert (response.status.error_code, response.metric[0].int64_value_increase) == (0, 0)
        assert call(channel, methods.PREDICT,
                    predict_request("n", text=["x"])).model_spec.version.value == 5
        assert refused(channel, methods.PREDICT, predict_request("m", text=["x"]))[1] == (
            "Servable not found for request: Latest(m)")                        # VR15
        call(channel, reload, request)                                          # MS16
        call(channel, reload, reload_request(("m", first), ("n", second)))      # MS18
        assert call(channel, methods.PREDICT,
                    predict_request("m", text=["x"])).model_spec.version.value == 1
        code, text = refused(channel, reload, reload_request(("m", first), ("x", broken)))
        assert (code, "did not become available" in text) == ("UNKNOWN", True)  # MS14
        assert refused(channel, reload, serving_pb2.ReloadConfigRequest()) == (
            "INVALID_ARGUMENT", "Only ModelConfigList is currently supported")  # MS13
        code, text = refused(channel, reload, reload_request(("m", Path("relative"))))
        assert (code, "absolute path" in text) == ("INVALID_ARGUMENT", True)
        assert refused(channel, reload, reload_request(("m", first), ("late", tmp_path / "none")),
                       timeout=0.5)[0] == "DEADLINE_EXCEEDED"                   # MS15
        assert call(channel, methods.PREDICT, predict_request("m", text=["x"]),
                    timeout=5).model_spec.version.value == 1


def test_CF21_FL29_what_is_not_listed_goes_though_a_listed_folder_is_missing(
        tmp_path: Path) -> None:
    base, missing = make_versions(tmp_path / "m", "1"), tmp_path / "none"
    with table() as versions:
        versions.configure([model(base)])
        with pytest.raises(TimeoutError):
            versions.configure([ModelConfig(name="late", base_path=str(missing))], timeout_s=0.01)
        wait(versions, {1: END})
        make_versions(missing, "7")
        versions.poll()
        wait(versions, {7: UP}, "late")


def test_MS15_the_server_ends_while_a_reload_waits(tmp_path: Path) -> None:
    with running((), load_unless_bad, poll_s=0.05) as (server, channel):
        waiting = channel.unary_unary(methods.RELOAD_CONFIG.path).future(
            reload_request(("late", tmp_path / "none")).SerializeToString())
        assert wait_until(server.versions, lambda: bool(server.versions._models), WAIT_S)
        ending = threading.Thread(target=server.stop, daemon=True)
        ending.start()
        ending.join(WAIT_S)
        assert not ending.is_alive()
        assert waiting.code() is grpc.StatusCode.CANCELLED
