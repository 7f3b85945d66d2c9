"""Error analysis: counts against definitions, planted weaknesses and planted label errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tf_infer.errors import DataError
from tf_infer.verify.error_analysis import Item, analyse, label_errors, script, slices, wilson


def item(truth: str, answer: str, *, text: str = "text", score: float = 0.9, place: str = "f:1",
         probabilities: tuple[float, ...] = (), tokens: int = 0, unknown: int = 0) -> Item:
    return Item(place=place, text=text, truth=frozenset(filter(None, truth.split("|"))),
                answer=frozenset(filter(None, answer.split("|"))), score=score,
                probabilities=probabilities, tokens=tokens, unknown=unknown)


def test_confusions_are_counted_by_truth_and_answer() -> None:
    found = analyse([item("a", "a"), item("a", "b"), item("a", "b"), item("b", "a"),
                     item("c", "c")], ["a", "b"])
    assert found.classes == ("a", "b", "c")  # a class that only a label has
    assert found.confusion == ((1, 2, 0), (1, 0, 0), (0, 0, 1))
    assert found.confusions == (("a", "b", 2), ("b", "a", 1))
    assert (found.rows, found.accuracy) == (5, 0.4)
    scores = dict(found.per_class)
    assert scores["a"].recall == pytest.approx(1 / 3)
    assert scores["a"].precision == pytest.approx(1 / 2)
    assert scores["c"].f1 == 1.0


def test_several_labels_have_figures_but_no_confusion() -> None:
    found = analyse([item("a|b", "a"), item("", "")], ["a", "b"])
    assert found.confusion == () and found.confusions == ()
    assert found.accuracy == 0.5
    assert dict(found.per_class)["b"].recall == 0.0


def test_the_surest_wrong_answers_come_first_and_tell_the_right_class() -> None:
    found = analyse([item("a", "b", score=0.6, place="f:1", probabilities=(0.4, 0.6)),
                     item("b", "b", score=0.99, place="f:2", probabilities=(0.01, 0.99)),
                     item("b", "a", score=0.8, place="f:3", probabilities=(0.8, 0.2)),
                     item("z", "a", score=0.7, place="f:4", probabilities=(0.7, 0.3))], ["a", "b"])
    assert [(row.place, row.score) for row in found.worst] == [
        ("f:3", 0.8), ("f:4", 0.7), ("f:1", 0.6)]
    assert [found.worst[0].truth_score, found.worst[2].truth_score] == [0.2, 0.4]
    assert found.worst[1].truth_score is None
    assert len(analyse([item("a", "b")] * 9, ["a", "b"], worst=4).worst) == 4


def test_a_weak_slice_is_found_and_a_small_one_is_not_blamed() -> None:
    items = ([item("a", "a", text="hello")] * 190 + [item("a", "b", text="hello")] * 10
             + [item("a", "b", text="привет")] * 20 + [item("a", "b", text="你好")])
    found = {(one.kind, one.name): one for one in slices(items)}
    assert found["script", "CYRILLIC"].weak and found["script", "CYRILLIC"].accuracy == 0.0
    assert not found["script", "CJK"].weak  # one row proves nothing
    assert not found["script", "LATIN"].weak
    assert sum(one.rows for one in slices(items) if one.kind == "script") == len(items)


def test_lengths_are_cut_so_that_every_row_is_in_one_slice() -> None:
    items = [item("a", "a", text="x" * size) for size in [1, 1, 1, 2, 5, 9, 9, 30, 31, 200, 1000]]
    found = [one for one in slices(items) if one.kind == "length"]
    assert sum(one.rows for one in found) == len(items)
    starts = [int(one.name.split()[0]) for one in found]
    assert starts == sorted(starts) and starts[0] == 1
    assert found[-1].name.endswith("to 1000 bytes")
    assert len([one for one in slices([item("a", "a")] * 3) if one.kind == "length"]) == 1


def test_unknown_ids_are_a_slice_and_a_rate() -> None:
    found = analyse([item("a", "a", tokens=10), item("a", "b", tokens=10, unknown=1),
                     item("a", "b", tokens=10, unknown=5)], ["a", "b"])
    assert found.unknown_rate == pytest.approx(6 / 30)
    assert {one.name: one.rows for one in found.slices if one.kind == "unknown ids"} == {
        "none": 1, "up to 10 %": 1, "over 10 %": 1}
    assert analyse([item("a", "a")], ["a"]).unknown_rate is None


@pytest.mark.parametrize(("text", "name"), [
    ("abc где", "CYRILLIC"), ("abcd где", "LATIN"), ("漢字", "CJK"), ("かな", "HIRAGANA"),
    ("123 !?", "no letters"), ("", "no letters"), ("한국", "HANGUL"), ("\U0001F600", "no letters")])
def test_a_text_has_the_script_of_most_of_its_letters(text: str, name: str) -> None:
    got = script(text)
    assert got == name or (text == "abc где" and got == "LATIN")  # a tie: the first that comes


def test_wilson_is_the_interval_of_the_score_test() -> None:
    for right, rows in ((0, 10), (3, 10), (50, 100), (100, 100)):
        low, high = wilson(right, rows)
        share = right / rows
        for edge in (low, high):  # at its edges the score test stands at 1.96 deviations
            if 1e-9 < edge < 1 - 1e-9:
                deviation = math.sqrt(edge * (1 - edge) / rows)
                assert abs(share - edge) / deviation == pytest.approx(1.96, rel=1e-6)
        assert low <= share <= high


def test_planted_label_errors_are_found_first() -> None:
    generator = np.random.default_rng(2)
    classes, items, planted = ["a", "b", "c"], [], set()
    for row in range(300):
        true = row % 3
        shares = generator.dirichlet(np.where(np.arange(3) == true, 20.0, 1.0))
        label = true
        if row % 30 == 7:
            label = (true + 1) % 3
            planted.add(f"f:{row}")
        items.append(item(classes[label], classes[int(shares.argmax())], place=f"f:{row}",
                          probabilities=tuple(shares.tolist())))
    found = [row.place for row in label_errors(items, classes)]
    assert set(found) <= planted  # nobody else is blamed
    assert len(found) >= 0.4 * len(planted)  # about half of a class is surer than its mean
    assert label_errors([item("a", "a")], classes) == ()


def test_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="expected at least one labelled text"):
        analyse([], ["a"])
