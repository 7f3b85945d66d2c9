"""`tf-infer optimize`: try the forms of a model on this machine, choose the best, export it."""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer import config as configs
from tf_infer.cli import texts
from tf_infer.cli.json_text import json_text
from tf_infer.config import CausalLMConfig, ClassifierConfig, TaskConfig, check
from tf_infer.errors import BackendMissing, ConfigError, DataError

if TYPE_CHECKING:
    from tf_infer.train.data import Example
    from tf_infer.tuning.build import BuildOrder
    from tf_infer.tuning.candidates import Candidate
    from tf_infer.tuning.choice import Choice
    from tf_infer.tuning.search import Search
    from tf_infer.tuning.state import Folder, Settings

EPILOG = """what is tried (docs/tuning.md): the model as it is, its plans (docs/optimisation.md)
and its engines (docs/engines.md), each exported and proven once, then asked about the same texts
in turns, each in a process of its own. What this machine would only emulate or has not installed
is left out, and that is said. A form that cannot be built is a row of the table with a note.

examples:
  tf-infer optimize models/intents --texts test.jsonl
  tf-infer optimize models/intents --texts test.jsonl --objective throughput@32 --budget 10m
  tf-infer optimize models/writer --texts prompts.txt --max-drop 1% --base-dir saved_models/writer
  tf-infer optimize models/intents --texts test.jsonl --plans "plan int8,litert int8" --no-export
  tf-infer optimize models/intents --texts test.jsonl --plan entropy.json --calibrate train.jsonl
  tf-infer optimize task.json --tokenizer models/intents/tokenizer --texts test.jsonl --no-export

files: .jsonl or .csv with "text", perhaps "text_pair", "label" or "labels"; .txt, a text a line.
On texts with labels a form may lose --max-drop points of accuracy. Where none has one, so many of
100 texts may get another label than the reference gives. A decoder's perplexity may be so many per
cent higher.
After Ctrl-C, or a crash, the same command goes on where it was. Texts are never shown; the
versions that are built hold some of them, as golden samples and warm-up requests.
"""

TEXTS, DECODER_TEXTS = 2000, 64   # that are answered for the metric, at most
NEW_TOKENS = 32
SUMMARY, PAGE, PICTURE = "report.json", "report.html", "report.png"
VERIFICATION, EXPORTED = "verification.json", "exported.json"
BUILDER = "tf_infer.cli.candidate:build_version"
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("model", type=Path, metavar="MODEL",
                        help="a model directory, or a task configuration (.json), for which new "
                             "weights are drawn: to see speeds before training")
    parser.add_argument("--texts", type=Path, required=True, metavar="FILE",
                        help="texts like those that will be asked, with or without labels")
    parser.add_argument("--budget", default="5m", metavar="TIME",
                        help="for timing, building comes before: 90s, 5m, 1h (default 5m)")
    parser.add_argument("--objective", default="p50@1", metavar="WHAT",
                        help="p50@N: median time of a call of N texts; throughput@N; size "
                             "(default p50@1)")
    parser.add_argument("--max-drop", default="0.5%", metavar="POINTS",
                        help="of the metric, in points of 100 (default 0.5%%)")
    parser.add_argument("--plans", metavar="A,B",
                        help="try these alone, by the names of the table, and the reference")
    parser.add_argument("--plan", action="append", default=[], metavar="FILE.json",
                        help="try this plan, too (docs/optimisation.md); may be given again")
    parser.add_argument("--calibrate", type=Path, metavar="FILE",
                        help="texts for forms that set ranges or smooth (default: --texts; others "
                             "are the better test)")
    parser.add_argument("--prune", type=Path, metavar="FILE",
                        help="try pruned forms, too: a JSON list of what `tf-infer prune` takes; "
                             "--texts say what is least needed")
    parser.add_argument("--no-xla", action="store_true",
                        help="nothing that XLA compiles, and no comparison with XLA")
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help="the search itself, its table and picture (default: "
                             "runs/optimize-NAME)")
    parser.add_argument("--base-dir", type=Path, metavar="DIR",
                        help="folder of the model's versions, where the chosen form is exported "
                             "(default: NAME in --output)")
    parser.add_argument("--no-export", action="store_true", help="only measure and tell")
    parser.add_argument("--name", help="of the model (default: of its directory)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR",
                        help="tokenizer files of a configuration")
    parser.add_argument("--max-texts", type=int, metavar="N",
                        help=f"answered for the metric, drawn by the seed (default {TEXTS}, of "
                             f"decoders {DECODER_TEXTS})")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS, metavar="N",
                        help=f"of a decoder's answers that are timed (default {NEW_TOKENS})")
    parser.add_argument("--max-rows", type=int, metavar="N",
                        help="largest batch of a golden sample (default: that of the grid)")
    parser.add_argument("--seed", type=int, default=0, help="of all draws and turns")
    parser.add_argument("--tensorboard", type=Path, metavar="DIR",
                        help="write a table of hyper-parameters for tensorboard --logdir DIR")
    parser.add_argument("--no-picture", action="store_true", help="no picture and no page")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def run(arguments: argparse.Namespace) -> int:
    """Search, tell, export; 130 and the way to go on after Ctrl-C."""
    from tf_infer.cli.backend import require_models

    require_models("optimize")
    output = arguments.output or Path("runs") / f"optimize-{_name(arguments)}"
    try:
        return _run(arguments, output)
    except KeyboardInterrupt:
        print(f"tf-infer optimize: interrupted; what is done is in {output}. Run the same command "
              "again to go on.", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace, output: Path) -> int:
    from tf_infer.tuning.choice import choose, read_objective
    from tf_infer.tuning.machine import machine
    from tf_infer.tuning.search import Search
    from tf_infer.tuning.state import open_folder
    from tf_infer.tuning.table import summary
    from tf_infer.tuning.text_table import lines

    objective = read_objective(arguments.objective)
    max_drop = read_drop(arguments.max_drop)
    budget_s = read_duration(arguments.budget)
    for name in ("max_texts", "new_tokens", "max_rows"):
        given = getattr(arguments, name)
        check(given is None or given >= 1, f"--{name.replace('_', '-')}", "at least 1", given)
    draw = None if arguments.no_picture else _drawing()
    board = None if arguments.tensorboard is None else _board()
    task = read_task(arguments.model)
    examples = read_examples(arguments.texts, task, seed=arguments.seed,
                             most=_most_answered(arguments, task))
    settings, left_out, given = _search_of(arguments, task, examples, budget_s)
    bar = Bar(quiet=arguments.quiet or arguments.json)
    with open_folder(output, settings) as (folder, again), bar:
        if again and not arguments.quiet:
            print(f"going on with the search in {output}", file=sys.stderr)
        search = Search(settings, folder, given, _hire(settings, examples), progress=bar)
        trials = search.run()
        choice = choose(trials, kind=settings.metric, objective=objective, max_drop=max_drop)
        told = summary(trials, choice, settings.metric, settings.batches, max_drop=max_drop,
                       left_out=left_out, machine=machine(), texts=len(examples),
                       answered=settings.answered, seed=settings.seed,
                       labelled=sum(one is not None for one in given.truth or ()))
        written = _write(told, output, draw, board, arguments)
        if not arguments.no_export:
            chosen = next(one.candidate for one in trials if one.name == choice.name)
            told["exported"] = str(_exported(arguments, folder, search, chosen, choice, told,
                                             given.order, bar))
    if arguments.json:
        print(json_text(told))
        return 0
    print("\n".join(lines(told)))
    print("\n".join(f"written: {path}" for path in written))
    if "exported" in told:
        name = given.order.name
        print(f"exported: {told['exported']}\nnext: tf-infer serve --model_name={name} "
              f"--model_base_path={Path(told['exported']).resolve().parent}")
    return 0


# ---------------------------------------------------------------------------- what is asked


def read_duration(word: str) -> float:
    """Return the seconds of "90s", "5m", "1h" or "300".

    Raises:
        ConfigError: it is none of these, or not above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([smh]?)", word.strip().lower())
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    check(0.0 < seconds <= 7 * 86400, "--budget", "a time such as 90s, 5m or 1h, at most a week",
          word)
    return seconds


def read_drop(word: str) -> float:
    """Return the points of "0.5%" or "0.5".

    Raises:
        ConfigError: no number from 0 to 100.
    """
    try:
        points = float(word.strip().removesuffix("%"))
    except ValueError:
        points = -1.0
    check(0.0 <= points <= 100.0, "--max-drop", "points from 0 to 100 such as 0.5%", word)
    return points


def read_task(model: Path) -> ClassifierConfig | CausalLMConfig:
    """Return the configuration of a model directory, or of a file that is one.

    Raises:
        ConfigError: there is none.
    """
    path = model if model.suffix == ".json" else model / "task.json"
    check(path.is_file(), "MODEL", "a model directory (tf-infer build) or a task configuration",
          str(model))
    found: ClassifierConfig | CausalLMConfig = configs.load(TaskConfig, path)
    return found


def read_examples(path: Path, task: TaskConfig, *, seed: int, most: int = TEXTS) -> list[Example]:
    """Return the rows of a file in the order in which they are asked about.

    Args:
        path: of the file.
        task: of the model.
        seed: of the order.
        most: rows that are answered for the metric; where only some are labelled (of several labels
            a row may have none of them), these are among them first.

    Raises:
        DataError: the file cannot be read, has no text, or its rows do not fit the task: pairs,
            labels that are no classes.
    """
    from tf_infer.train import data

    found = [one for one in texts.examples(path) if one.text.strip() or one.text_pair]
    if not found:
        raise DataError(f"{path}: expected at least one text, got none.")
    texts.check_pairs(found, task)
    if isinstance(task, ClassifierConfig):
        data.class_targets([one for one in found if one.labels], task)
    random.Random(seed).shuffle(found)
    several = isinstance(task, ClassifierConfig) and task.multi_label
    return found if several else _labelled_first(found, most, seed)


def _labelled_first(examples: Sequence[Example], most: int, seed: int) -> list[Example]:
    """Let as many as there are of the labelled be among the first `most`, in a drawn order."""
    ordered = sorted(examples, key=lambda one: not one.labels)
    if ordered == list(examples):
        return ordered
    first = ordered[:most]
    random.Random(seed).shuffle(first)
    return first + ordered[most:]


def _most_answered(arguments: argparse.Namespace, task: TaskConfig) -> int:
    return int(arguments.max_texts or (
        DECODER_TEXTS if isinstance(task, CausalLMConfig) else TEXTS))


def _search_of(arguments: argparse.Namespace, task: ClassifierConfig | CausalLMConfig,
               examples: Sequence[Example], budget_s: float
               ) -> tuple[Settings, dict[str, str], Any]:
    """Return what is searched, what is not tried and why, and what the search is given."""
    from tf_infer.optimize.plan import read_plan
    from tf_infer.processor import cpu_flags
    from tf_infer.tuning import candidates, search, state
    from tf_infer.tuning.build import BuildOrder
    from tf_infer.tuning.choice import batches_for, read_objective
    from tf_infer.tuning.judge import joined
    from tf_infer.tuning.machine import float16_lacks, installed, machine
    from tf_infer.tuning.trial import MetricKind

    for name, path, there in (("--tokenizer", arguments.tokenizer, Path.is_dir),
                              ("--calibrate", arguments.calibrate, Path.is_file)):
        if path is not None and not there(path):
            raise ConfigError(f"{name}: expected a {'folder' if there is Path.is_dir else 'file'} "
                              f"that is there, got {path}.")
    objective = read_objective(arguments.objective)
    asked = [read_plan(given) for given in arguments.plan]
    found, left_out = candidates.sensible(
        task.kind, flags=cpu_flags(), installed=installed(), float16_lacks=float16_lacks(),
        xla=not arguments.no_xla, prune=_pruned(arguments), small=objective.kind == "size",
        asked=asked)
    if arguments.plans:
        found, left_out = candidates.chosen_by(
            [*(word.strip() for word in arguments.plans.split(",")),
             *(one.name for one in candidates.asked_for(asked, task.kind, cpu_flags()))],
            found, left_out)
    decoder = isinstance(task, CausalLMConfig)
    labels = texts.truth(examples, several=task.multi_label) if isinstance(
        task, ClassifierConfig) else None
    kind: MetricKind = "loss" if decoder else "agreement" if labels is None else "accuracy"
    settings = state.Settings(
        model=state.digest_folder(arguments.model) + (
            state.digest_folder(arguments.tokenizer) if arguments.tokenizer else ""),
        texts=state.digest_texts([(one.text, one.text_pair or "", joined(one.labels))
                                  for one in examples]) + (
            state.digest_folder(arguments.calibrate) if arguments.calibrate else ""),
        machine=machine(), seed=arguments.seed, metric=kind, candidates=found,
        batches=batches_for(objective),
        new_tokens=arguments.new_tokens if decoder else 0,
        answered=min(len(examples), _most_answered(arguments, task)))
    order = BuildOrder(
        model=str(arguments.model), tokenizer=str(arguments.tokenizer or ""),
        candidate=found[0], base_dir="", name=_name(arguments), texts=str(arguments.texts),
        calibrate=str(arguments.calibrate or ""),
        xla=not arguments.no_xla, max_rows=arguments.max_rows)
    given = search.Given(
        order=order, budget_s=budget_s, free_bytes=search.free_bytes(),
        truth=None if labels is None else [None if one is None else joined(sorted(one))
                                           for one in labels[:settings.answered]])
    return settings, left_out, given


def _pruned(arguments: argparse.Namespace) -> Sequence[Mapping[str, Any]]:
    if arguments.prune is None:
        return ()
    found: Sequence[Mapping[str, Any]] = configs.load(tuple[Mapping[str, Any], ...],
                                                      arguments.prune)
    return found


def _name(arguments: argparse.Namespace) -> str:
    if arguments.name:
        return str(arguments.name)
    model = arguments.model.resolve()
    return str(model.stem if model.suffix == ".json" else model.name)


def _hire(settings: Settings, examples: Sequence[Example]) -> Callable[[Path], Any]:
    from tf_infer.tuning.process import Process

    rows = [[one.text] if one.text_pair is None else [one.text, one.text_pair]
            for one in examples]
    return lambda folder: Process(folder, builder=BUILDER, rows=rows, answered=settings.answered,
                                  new_tokens=settings.new_tokens)


# ---------------------------------------------------------------------------- what is told


class Bar:
    """One progress bar at a time on standard error, of what is under way."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._what = quiet, ""
        self._bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that so much of `what` is done."""
        if self._quiet:
            return
        from tqdm import tqdm

        phase = what.split(" ", 1)[0]
        if self._bar is None or phase != self._what or self._bar.total != total:
            self._close()
            self._bar = tqdm(total=total, unit="round" if phase == "timing" else "plan",
                             file=sys.stderr, dynamic_ncols=True)
            self._what = phase
        self._bar.set_description(what, refresh=False)
        self._bar.update(done - self._bar.n)
        self._bar.refresh()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _drawing() -> Any:
    """Return what draws, before minutes are spent on what it is to draw."""
    try:
        from tf_infer.tuning import picture
    except ImportError as error:
        raise BackendMissing("optimize draws with matplotlib and jinja2: pip install "
                             "'tf_infer[report]', or leave the picture out: --no-picture"
                             ) from error
    return picture


def _board() -> Any:
    try:
        from tf_infer.tuning import hparams
    except ImportError as error:
        raise BackendMissing("--tensorboard needs tensorboard: pip install 'tf_infer[models]'"
                             ) from error
    return hparams


def _write(told: dict[str, Any], output: Path, draw: Any, board: Any,
           arguments: argparse.Namespace) -> list[Path]:
    """Write table, picture, page and hyper-parameters, each whole or not at all; return the files.
    """
    written = [output / SUMMARY]
    configs.write_whole(f"{json_text(told, indent=1)}\n".encode(), written[0])
    if draw is not None:
        configs.write_whole(draw.png(told), output / PICTURE)
        configs.write_whole(draw.html(told, title=_name(arguments)).encode(), output / PAGE)
        written += [output / PICTURE, output / PAGE]
    if board is not None:
        board.write(told, arguments.tensorboard)
        written.append(arguments.tensorboard)
    return written


def _exported(arguments: argparse.Namespace, folder: Folder, search: Search,
              candidate: Candidate, choice: Choice, told: dict[str, Any], order: BuildOrder,
              bar: Bar) -> Path:
    """Export the chosen form, unless this search has done so already.

    Raises:
        VerificationError: its paths differ; names the report. Nothing is exported then.
    """
    base_dir = arguments.base_dir or folder.path / order.name
    record = folder.path / EXPORTED
    this = {"plan": choice.name, "base_dir": str(base_dir), "name": order.name}
    before = _read(record)
    if this.items() <= before.items() and Path(before["version"]).is_dir():
        return Path(before["version"])
    bar(f"exporting {choice.name}", 0, 1)
    version = search.export(candidate, base_dir, told, folder.path / VERIFICATION)
    bar(f"exporting {choice.name}", 1, 1)
    configs.dump_whole(this | {"version": str(version)}, record)
    return version


def _read(record: Path) -> dict[str, str]:
    """Return what an earlier export left; nothing where it left nothing that can be read."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "version" in found else {}
