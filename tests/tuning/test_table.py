"""The table of a search: what stands in it, as text, JSON, page and hyper-parameters."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tf_infer.config import to_json
from tf_infer.optimize.plan import OptimizationPlan
from tf_infer.tuning.candidates import REFERENCE_CANDIDATE, Candidate, EngineChoice, sensible
from tf_infer.tuning.choice import choose, read_objective
from tf_infer.tuning.table import notes, summary
from tf_infer.tuning.text_table import lines
from tf_infer.tuning.trial import Times, Trial

INT8 = Candidate(plan=OptimizationPlan(precision="int8"))
ENGINE = Candidate(engine=EngineChoice(kind="litert", precision="int8"))
BROKEN = Candidate(plan=OptimizationPlan(precision="bfloat16"))


def trial(candidate: Candidate, one_s: float, eight_s: float, **facts: Any) -> Trial:
    return Trial(candidate=candidate, rounds={
        batch: tuple(Times(median_s=seconds * swing, mean_s=1.25 * seconds * swing)
                     for swing in (0.9, 1.0, 1.2))
        for batch, seconds in ((1, one_s), (8, eight_s))}, **facts)


def told(kind: Any = "accuracy", objective: str = "p50@1", **changes: Any) -> dict[str, Any]:
    metrics = (2.0, 2.0 + math.log(1.001), 2.5) if kind == "loss" else (0.91, 0.9, 0.5)
    trials = [
        trial(REFERENCE_CANDIDATE, 0.004, 0.002, size_bytes=4_200_000, worst=0.0,
              metric=metrics[0]),
        trial(INT8, 0.002, 0.0005, size_bytes=1_100_000, worst=0.0125, metric=metrics[1]),
        trial(ENGINE, 0.001, 0.0002, size_bytes=5_000_000, worst=3.0, metric=metrics[2]),
        Trial(candidate=BROKEN, failed="plan: expected a causal_lm task")]
    if kind != "loss":
        trials = [replace(one, agreement=share)
                  for one, share in zip(trials, (1.0, 0.97, 0.6, None))]
    choice = choose(trials, kind=kind, objective=read_objective(objective), max_drop=2.0)
    return summary(trials, choice, kind, (1, 8), max_drop=2.0, seed=3,
                   machine={"cpu": "A & B", "cpus": "2"},
                   **{"left_out": {"onnx int8": "onnxruntime is not installed"}, "texts": 100,
                      "answered": 80, "labelled": 80} | changes)


def test_a_row_says_all_of_a_candidate() -> None:
    found = told()["plans"][1]
    assert (found["plan"], found["chosen"], found["tied"]) == ("plan int8", True, False)
    assert found["megabytes"] == pytest.approx(1.1)
    assert found["p50_ms"] == {"1": pytest.approx(2.0), "8": pytest.approx(4.0)}  # of a call
    assert found["spread_ms"]["8"] == [pytest.approx(3.6), pytest.approx(4.8)]
    assert found["per_s"] == {"1": pytest.approx(400.0), "8": pytest.approx(1600.0)}
    assert found["ratio"] == {"1": pytest.approx(2.0), "8": pytest.approx(4.0)}
    assert found["drop"] == pytest.approx(1.0) and found["accuracy"] == 0.9
    assert found["candidate"]["plan"]["precision"] == "int8" and found["why_not"] == ""


def test_the_table_reads_as_text() -> None:
    text = "\n".join(lines(told()))
    assert re.search(r"^ +ms +ms +ratio +worst\n +plan +MB +@1 +@8 +@1 +off by +accuracy$", text,
                     re.M)
    assert re.search(r"^ +reference +4\.2 +4\.00 +16\.0 +1\.00 +91\.00 %$", text, re.M)
    assert re.search(r"^> +plan int8 +1\.1 +2\.00 +4\.00 +2\.00 +0\.013 +90\.00 %$", text, re.M)
    assert re.search(r"^ +litert int8 .* 50\.00 % \[1\]$", text, re.M)
    assert re.search(r"^ +plan bfloat16 +not built \[2\]$", text, re.M)
    assert re.search(r"^ +onnx int8 +not tried \[3\]$", text, re.M)
    below = text.split("\n\n")[1].splitlines()
    assert below == ["[1] litert int8: accuracy is 41.00 points lower, 2 are allowed",
                     "[2] plan bfloat16: plan: expected a causal_lm task",
                     "[3] onnx int8: not tried: onnxruntime is not installed",
                     "accuracy: of 80 of the 100 texts"]
    assert text.endswith("nothing else could be chosen.") or "comes next" in text


def test_a_decoder_is_told_in_tokens_a_second_and_perplexity() -> None:
    found = told("loss")
    assert found["plans"][1]["p50_ms"]["8"] == pytest.approx(0.5)  # of a token
    assert found["plans"][1]["perplexity"] == pytest.approx(math.exp(2.0) * 1.001)
    text = "\n".join(lines(found))
    assert re.search(r"^ +tok/s +tok/s +ratio +worst\n +plan +MB +@1 +@8 +@1 +off by +perplexity$",
                     text, re.M)
    assert re.search(r"^> +plan int8 +1\.1 +400 +1,600 +2\.00 +0\.013 +7\.396$", text, re.M)
    assert "perplexity is 64.87 % higher, 2 are allowed" in text


def test_of_partly_labelled_texts_it_says_how_many_and_who_agrees() -> None:
    found = told(labelled=30)
    assert (found["texts"], found["answered"], found["labelled"]) == (100, 80, 30)
    assert found["plans"][1]["agreement"] == 0.97 and found["plans"][1]["accuracy"] == 0.9
    text = "\n".join(lines(found))
    assert re.search(r"off by +accuracy +agrees$", text, re.M)
    assert re.search(r"^> +plan int8 .* 90\.00 % +97\.00 %$", text, re.M)
    assert "accuracy: of the 30 labelled texts; agrees: with the reference, of all 80" in text
    assert "agrees" not in "\n".join(lines(told()))


LONG = Candidate(plan=OptimizationPlan(precision="int8", activations="static", smoothing=0.5))
REPORT = ("/data/runs/optimize-intents/candidates/plan-int8-static-smoothing-0-5-830075e7/"
          "report.json")


def test_long_names_and_reasons_leave_the_table_80_columns_wide() -> None:
    found = told(left_out=dict.fromkeys(("plan float32 storage=int8", "plan float32 xla"), "slow"))
    row = found["plans"][2] | {"plan": LONG.name, "megabytes": 1760.3, "why_not": "broken " * 30,
                               "p50_ms": {"1": 105.3, "8": 700.1, "32": 2801.2},
                               "ratio": {"1": 17.37}}
    found["plans"][2] = row
    found["plans"][3] |= {"why_not": f"differs. Report: {REPORT}"}
    text = lines(found)
    end = text.index("")
    table, below = text[:end], text[end + 1:]
    assert max(map(len, text[:end])) == len(text[2]) <= 80 and set(text[2]) == {"-", " "}
    place = next(number for number, line in enumerate(table) if "plan int8 static" in line)
    assert table[place + 1] == "    smoothing=0.5" and table[place].endswith(" [1]")
    assert all(len(line) <= 80 or REPORT in line for line in below)
    assert [line for line in below if REPORT in line] == [f"    {REPORT}"]  # whole, to be opened
    assert "[3] plan float32 storage=int8, plan float32 xla: not tried: slow" in below
    assert len(notes(found)) == 3


def test_a_form_that_rounds_and_gains_no_time_says_so() -> None:
    trials = [trial(REFERENCE_CANDIDATE, 0.004, 0.002, size_bytes=4_200_000, metric=0.91),
              trial(INT8, 0.005, 0.002, size_bytes=1_100_000, metric=0.91)]
    choice = choose(trials, kind="accuracy", objective=read_objective("p50@1"), max_drop=2.0)
    found = summary(trials, choice, "accuracy", (1, 8), max_drop=2.0, seed=3, machine={},
                    left_out={}, texts=9, answered=9, labelled=9)
    assert [one["not_faster"] for one in found["plans"]] == ["", "reference"]
    text = "\n".join(lines(found))
    assert re.search(r"^ +plan int8 .* 91\.00 % \[1\]$", text, re.M)
    assert "[1] plan int8: not faster than reference by p50@1" in text
    picture = pytest.importorskip("tf_infer.tuning.picture", reason="needs the extra `report`")
    page = picture.html(found, title="intents")
    assert re.search(r'<td>plan int8</td>[^\n]*(\n[^\n]*)*href="#note1">\[1\]</a></td>', page)
    assert '<li id="note1">plan int8: not faster than reference by p50@1</li>' in page
    assert 'class="out"' not in page


def test_size_shows_the_ratios_of_every_batch() -> None:
    text = "\n".join(lines(told(objective="size")))
    assert re.search(r"^ +plan +MB +@1 +@8 +@1 +@8 +off by +accuracy$", text, re.M)
    assert text.endswith("accuracy is 41.00 points lower, 2 are allowed") or "smaller" in text


def test_all_of_it_is_json() -> None:
    found = told()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["rounds"] == 3 and found["texts"] == 100 and found["seed"] == 3


@pytest.mark.parametrize("kind", ["accuracy", "agreement", "loss"])
def test_the_page_holds_table_and_picture_and_nothing_from_elsewhere(kind: str) -> None:
    picture = pytest.importorskip("tf_infer.tuning.picture", reason="needs the extra `report`")
    found = told(kind)
    page = picture.html(found, title="intents <1>")
    assert "intents &lt;1&gt;" in page and "A &amp; B" in page
    assert found["reason"] in page
    data = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert data is not None and base64.b64decode(data[1]).startswith(b"\x89PNG")
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for one in found["plans"]:
        assert f"<td>{one['plan']}</td>" in page
    assert page.count('class="chosen"') == 1 and page.count('class="out"') == 2 + 1
    assert re.search(r'<td>onnx int8</td>.*not tried <a href="#note3">\[3\]</a></td>', page)
    assert '<li id="note3">onnx int8: not tried: onnxruntime is not installed</li>' in page
    assert same_columns(page) and "agrees" not in page
    metric = "perplexity" if kind == "loss" else kind
    assert f"100 texts, 80 of them answered for the {metric}, 3 rounds" in page
    assert "answered" not in picture.html(told(kind, texts=80), title="intents")


def test_the_page_of_partly_labelled_texts_says_who_agrees() -> None:
    picture = pytest.importorskip("tf_infer.tuning.picture", reason="needs the extra `report`")
    page = picture.html(told(labelled=30), title="intents")
    assert same_columns(page) and ">agrees</th>" in page
    assert "30 of the 80 answered ones labelled" in page and ">97.00 %</td>" in page


def same_columns(page: str) -> bool:
    """Return whether all rows of the first table fill as many columns."""
    rows = page.split("<tbody>")[1].split("</tbody>")[0].split("<tr")[1:]
    cells = [re.findall(r'<td(?: class="\w+")?(?: colspan="(\d+)")?>', row) for row in rows]
    return len({sum(int(span or 1) for span in row) for row in cells}) == 1


def test_the_picture_marks_the_chosen_form_and_the_bound() -> None:
    picture = pytest.importorskip("tf_infer.tuning.picture", reason="needs the extra `report`")
    figure = picture.draw(told())
    first, second, sizes = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["batch 1", "batch 8", "size"]
    dots = {tuple(one.get_offsets()[0]): one for one in first.collections
            if len(one.get_offsets())}
    assert (pytest.approx(2.0), pytest.approx(90.0)) in [
        (pytest.approx(x), pytest.approx(y)) for x, y in dots] or any(
            abs(x - 2.0) < 1e-9 and abs(y - 90.0) < 1e-9 for x, y in dots)
    bounds = [line.get_ydata()[0] for line in second.get_lines() if line.get_linestyle() == "--"]
    assert bounds == [pytest.approx(89.0)]
    assert [label.get_text() for label in sizes.get_yticklabels()] == [
        "litert int8", "plan int8", "reference"]
    assert picture.draw(told("loss")).axes[0].yaxis_inverted()


def test_names_in_the_picture_do_not_cover_each_other() -> None:
    picture = pytest.importorskip("tf_infer.tuning.picture", reason="needs the extra `report`")
    found = told()
    for number, one in enumerate(found["plans"][:3]):  # all at nearly one place
        one |= {"p50_ms": {"1": 2.0 + number / 100, "8": 4.0}, "accuracy": 0.9}
    figure = picture.draw(found)
    figure.draw_without_rendering()
    for axes in figure.axes[:2]:
        boxes = [one.get_window_extent() for one in axes.texts]
        assert len(boxes) == 3
        assert not any(box.overlaps(other) for number, box in enumerate(boxes)
                       for other in boxes[:number])


def test_hyper_parameters_are_what_tensorboard_reads(tmp_path: Path) -> None:
    hparams = pytest.importorskip("tf_infer.tuning.hparams", reason="needs tensorboard")
    found = told()
    (tmp_path / "reference").mkdir()  # what is there of an earlier search goes
    (tmp_path / "reference" / "events.out.tfevents.1.search").write_bytes(b"")
    hparams.write(found, tmp_path)
    runs = {path.parent.name: events(path) for path in tmp_path.rglob("events.*")}
    assert set(runs) == {tmp_path.name, "reference", "plan_int8", "litert_int8", "plan_bfloat16"}
    assert len(list(tmp_path.rglob("events.*"))) == 5
    values = {value.tag: value for event in runs["plan_int8"] for value in event.summary.value}
    assert values["p50 ms, batch 1"].simple_value == pytest.approx(2.0)
    assert values["accuracy"].simple_value == pytest.approx(0.9)
    data = hparams.plugin_data_pb2.HParamsPluginData.FromString(
        values["_hparams_/session_start_info"].metadata.plugin_data.content)
    assert {name: value.string_value or value.bool_value
            for name, value in data.session_start_info.hparams.items()} == {
        "precision": "int8", "compile": "none", "engine": "none", "activations": "dynamic",
        "floats": "none", "keep": "[]", "ranges": "percentile", "percentile": "99.99",
        "smoothing": "none", "sensitive": "0", "storage": "none", "atol": "none",
        "loss_atol": "none", "prune": "none"}
    (experiment,) = (value for event in runs[tmp_path.name] for value in event.summary.value)
    columns = hparams.plugin_data_pb2.HParamsPluginData.FromString(
        experiment.metadata.plugin_data.content).experiment.hparam_infos
    assert {one.name for one in columns if one.differs} == {
        "precision", "engine", "activations", "keep", "ranges", "percentile", "sensitive"}
    assert {one.name: list(one.domain_discrete) for one in columns}["engine"] == ["litert", "none"]
    ended = {run: hparams.plugin_data_pb2.HParamsPluginData.FromString(
        value.metadata.plugin_data.content).session_end_info.status
        for run, found in runs.items() for event in found for value in event.summary.value
        if value.tag == "_hparams_/session_end_info"}
    assert ended["plan_int8"] == hparams.api_pb2.STATUS_SUCCESS
    assert ended["plan_bfloat16"] == hparams.api_pb2.STATUS_FAILURE
    assert not any(value.tag == "accuracy" for event in runs["plan_bfloat16"]
                   for value in event.summary.value)


def test_forms_that_differ_have_hyper_parameters_that_differ() -> None:
    hparams = pytest.importorskip("tf_infer.tuning.hparams", reason="needs tensorboard")
    flags, packages = frozenset({"avx512_bf16", "avx512_vnni"}), frozenset({
        "ai_edge_litert", "onnxruntime"})
    static = OptimizationPlan(precision="int8", activations="static")
    asked = [static, *(replace(static, **other) for other in (
        {"ranges": "largest"}, {"ranges": "entropy"}, {"percentile": 99.0}, {"sensitive": 4},
        {"floats": "float32"}, {"keep": ("words",)}, {"keep": ("layers[0].inner",)},
        {"atol": 2.0}, {"loss_atol": 2.0}))]
    for kind in ("classifier", "causal_lm"):
        forms, _ = sensible(kind, flags=flags, installed=packages, small=True, asked=asked,
                            prune=[{"heads": 0.5}, {"heads": 0.25}])
        told = [hparams.parameters({"candidate": to_json(one)}) for one in forms]
        assert len({tuple(sorted(one.items())) for one in told}) == len(forms) > 5
        assert len({tuple(one) for one in told}) == 1  # the same columns


def test_an_engine_tells_its_ranges_to_tensorboard_as_plans_do() -> None:
    hparams = pytest.importorskip("tf_infer.tuning.hparams", reason="needs tensorboard")
    told = [hparams.parameters({"candidate": to_json(Candidate(engine=EngineChoice(
        kind="litert", precision="int8", ranges=ranges)))}) for ranges in ("found", "percentile")]
    assert [(one["activations"], one["ranges"]) for one in told] == [
        ("none", "none"), ("static", "percentile")]


def events(path: Path) -> list[Any]:
    """Return the events of a file; reading it with TensorBoard would import TensorFlow."""
    from tensorboard.compat.proto.event_pb2 import Event

    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")  # then a checksum, the event, another one
        found.append(Event.FromString(data[12:12 + size]))
        data = data[16 + size:]
    return found


def test_what_others_wrote_for_tensorboard_stays(tmp_path: Path) -> None:
    hparams = pytest.importorskip("tf_infer.tuning.hparams", reason="needs tensorboard")
    training = tmp_path / "events.out.tfevents.1.host.7.v2"
    training.write_bytes(b"scalars")
    hparams.write(told(), tmp_path)
    hparams.write(told(), tmp_path)
    assert training.read_bytes() == b"scalars"
    assert len(list(tmp_path.glob("events.*"))) == 2
