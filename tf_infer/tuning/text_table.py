"""The table of a search as lines of text, with notes below it: 80 columns in the usual case."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tf_infer.tuning.candidates import REFERENCE
from tf_infer.tuning.table import NOT_TRIED, notes, partly_labelled

NAME = 17       # columns of a plan's name; the rest of a longer one stands in the next lines
LINE = 80       # columns of what stands below a table, unless that is wider
NOT_BUILT = "not built"
METRICS = {"accuracy": "accuracy", "agreement": "agrees", "loss": "perplexity"}


def lines(told: Mapping[str, Any]) -> list[str]:
    """Return a summary as a table, the notes to its rows, and the sentence of the choice."""
    kind, plans = told["metric"], told["plans"]
    batches = sorted({int(batch) for one in plans for batch in one["p50_ms"]})
    ratios = _told(told["objective"].partition("@")[2], batches)
    partly, below = partly_labelled(told), notes(told)
    header = _header(kind, batches, ratios, partly=partly)
    marks = {name: f"[{number}]" for number, note in enumerate(below, 1) for name in note.plans}
    table = [_row(one, marks, _cells(one, kind, batches, ratios, partly=partly)) for one in plans]
    table += [["", name, f"{NOT_TRIED} {marks[name]}"] for name in told["left_out"]]
    found = _laid_out(header, table)
    width = max(LINE, *map(len, found))
    texts = [f"[{number}] {', '.join(note.plans)}: {note.text}"
             for number, note in enumerate(below, 1)]
    if partly:
        texts.append(f"accuracy: of the {told['labelled']} labelled texts; agrees: with the "
                     f"reference, of all {told['answered']}")
    elif told["answered"] < told["texts"]:
        texts.append(f"{METRICS[kind]}: of {told['answered']} of the {told['texts']} texts")
    parts = [*([texts] if texts else []), [told["reason"]]]
    return [*found, *(line for part in parts for line in (
        "", *(row for text in part for row in _wrapped(text, width))))]


def _told(by: str, batches: Sequence[int]) -> list[int]:
    """Return the batch sizes whose ratio has a column: that of the objective, else all."""
    return [int(by)] if by and int(by) in batches else list(batches)


def _header(kind: str, batches: Sequence[int], ratios: Sequence[int], *, partly: bool
            ) -> list[list[str]]:
    """Return two rows: what a column holds, and of how many texts a call."""
    unit = "tok/s" if kind == "loss" else "ms"
    last = [METRICS[kind], *([METRICS["agreement"]] if partly else [])]
    upper = ["", "", "", *[unit] * len(batches), *["ratio"] * len(ratios), "worst",
             *[""] * len(last)]
    lower = ["", "plan", "MB", *(f"@{batch}" for batch in (*batches, *ratios)), "off by", *last]
    return [upper, lower]


def _row(one: Mapping[str, Any], marks: Mapping[str, str], cells: list[str]) -> list[str]:
    """Return the cells of a candidate; without a version a few words stand in their place."""
    mark = marks.get(one["plan"], "")
    if one["megabytes"] is None:
        return [*cells[:2], f"{NOT_BUILT} {mark}".rstrip()]
    return [*cells, mark]


def _cells(one: Mapping[str, Any], kind: str, batches: Sequence[int], ratios: Sequence[int], *,
           partly: bool) -> list[str]:
    mark = ">" if one["chosen"] else "=" if one["tied"] else ""
    times = [_number(one["per_s"].get(str(batch)), "{:,.0f}") if kind == "loss"
             else _time(one["p50_ms"].get(str(batch))) for batch in batches]
    shown = one.get("perplexity" if kind == "loss" else kind)
    metric = _number(shown, "{:.4g}") if kind == "loss" else _share(shown)
    same = one["plan"] == REFERENCE
    return [mark, one["plan"], _number(one["megabytes"], "{:.1f}"), *times,
            *(_number(one["ratio"].get(str(batch)), "{:.2f}") for batch in ratios),
            "" if same else _number(one["worst_difference"], "{:.2g}"), metric,
            *([_share(one["agreement"])] if partly else [])]


def _laid_out(header: Sequence[Sequence[str]], table: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of equal columns; a row shorter than the header has words in place of figures.
    """
    names = [textwrap.wrap(row[1], NAME, subsequent_indent=" ", break_on_hyphens=False)
             for row in table]
    whole = [row for row in table if len(row) > 3]
    widths = [max(len(row[place]) for row in (*header, *whole)) for place in range(len(header[0]))]
    widths[1] = max(len(line) for found in (*names, [header[1][1]]) for line in found)
    marks = max((len(row[-1]) for row in whole), default=0)
    rule = "  ".join("-" * width for width in widths) + (f" {'-' * marks}" if marks else "")
    made = [*(_line(row, widths) for row in header), rule]
    for row, (first, *rest) in zip(table, names):
        if len(row) > 3:
            made.append(_line([row[0], first, *row[2:]], widths))
        else:
            made.append(f"{_line([row[0], first], widths[:2], strip=False)}  {row[2]}")
        made += [_line(["", line], widths[:2]) for line in rest]
    return made


def _line(cells: Sequence[str], widths: Sequence[int], *, strip: bool = True) -> str:
    """Return one line, names to the left and figures to the right; a mark may follow them."""
    line = "  ".join(cell.ljust(width) if place == 1 else cell.rjust(width)
                     for place, (cell, width) in enumerate(zip(cells, widths)))
    line = " ".join([line, *cells[len(widths):]])
    return line.rstrip() if strip else line


def _wrapped(text: str, width: int) -> list[str]:
    """Return the lines of a note; paths stay whole."""
    return textwrap.wrap(text, width, subsequent_indent="    " if text.startswith("[") else "",
                         break_long_words=False, break_on_hyphens=False)


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return ""
    return f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:.1f}"


def _share(share: float | None) -> str:
    return _number(None if share is None else 100 * share, "{:.2f} %")


def _number(number: float | None, form: str) -> str:
    return "" if number is None else form.format(number)
