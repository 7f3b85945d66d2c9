"""A smaller task: without the layers, heads, neurons and ids that given texts need least"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import tensorflow as tf

from tf_infer.config import CausalLMConfig, EmbeddingBagConfig, TaskConfig, check
from tf_infer.networks import build, cuts
from tf_infer.networks.cuts import Kept, Unit
from tf_infer.optimize import importance
from tf_infer.optimize.importance import Ticker, silent
from tf_infer.optimize.texts import Text
from tf_infer.tasks.base import Task
from tf_infer.text import fewer_ids
from tf_infer.text.build import build as build_codec

TaskT = TypeVar("TaskT", bound=Task)
# A layer is judged by running the network without it, heads and neurons by one gradient for all.
LAYER_SHARE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneSettings:
    """What a pruned network keeps; a number below 1 is a share, any other one a count.

    Attributes:
        layers: of a transformer; None keeps all. Those go first.
        heads: of each layer, then; None keeps all.
        neurons: of each layer's feed-forward part; None keeps all.
        vocabulary: "used" keeps the ids that the texts use, and what every tokenizer needs so that
            no text becomes impossible to encode (text/fewer_ids.py).
        least_uses: so often must the texts use an id for it to stay.
        texts: so many of the texts, evenly spread, judge heads and neurons, and a fourth of them
            the layers. The vocabulary looks at all.
    """

    layers: float | None = None
    heads: float | None = None
    neurons: float | None = None
    vocabulary: Literal["all", "used"] = "all"
    least_uses: int = 1
    texts: int = 256

    def __post_init__(self) -> None:
        where = "PruneSettings"
        for name in ("layers", "heads", "neurons"):
            value = getattr(self, name)
            check(value is None or 0 < value < 1 or (value >= 1 and value == int(value)),
                  f"{where}.{name}", "None, a share between 0 and 1, or a whole number >= 1", value)
        check(self.least_uses >= 1, f"{where}.least_uses", ">= 1", self.least_uses)
        check(self.texts >= 1, f"{where}.texts", ">= 1", self.texts)


def prune(task: TaskT, settings: PruneSettings, texts: Sequence[Text], *,
          ticker: Ticker = silent) -> TaskT:
    """Return a smaller task: an ordinary one that is saved, trained and exported like any other.

    Args:
        task: left as it is.
        settings: how much stays.
        texts: what it will be asked; of a pair classifier pairs of them.
        ticker: wraps what is gone through, to show how far it is: (items, what) -> items.

    Raises:
        ConfigError: no texts; a setting that asks for more than there is, or for heads of a network
            that has none to give; a vocabulary that cannot be made smaller.

    What was removed is missed: answers change, and `train.loop.fit` with the task as its teacher
    brings most of them back.
    """
    return take(task, choose(task, settings, texts, ticker=ticker))


def choose(task: Task, settings: PruneSettings, texts: Sequence[Text], *,
           ticker: Ticker = silent) -> Kept:
    """Decide what stays; arguments and errors as of `prune`."""
    check(len(texts) > 0, "texts", "at least one to judge by", len(texts))
    _check_finite(task)
    whole = cuts.everything(task.network)
    list(cuts.tables(task.network))  # refuses a network in another form
    _check_possible(task, settings, whole)
    kept = whole
    if settings.layers is not None or settings.heads is not None or settings.neurons is not None:
        rows = importance.read(task, spread(texts, settings.texts), ticker)
        check(len(rows) > 0, "texts", "one of at least two ids", 0)
        kept = _layers(task, settings, kept, rows, ticker)
        kept = _units(task, settings, kept, rows, ticker)
    if settings.vocabulary == "used":
        uses = count_ids(task, texts, ticker)
        kept = replace(kept, ids=needed_ids(task, np.flatnonzero(uses >= settings.least_uses)))
    return kept


def take(task: TaskT, kept: Kept) -> TaskT:
    """Return the task with what is kept of its network and tokenizer."""
    network_config = cuts.smaller(task.config.network, kept)
    if kept.ids is None:
        config = replace(task.config, network=network_config)
        network = _blank(config, task.codec.vocab_size)
        cuts.fill(network, task.network, kept)
        return task.replaced(config=config, network=network)
    assert task.tokenizer_dir is not None
    folder = Path(tempfile.mkdtemp(prefix="tf_infer_tokenizer_"))
    try:
        codec_config = fewer_ids.rewrite(task.config.codec, task.tokenizer_dir, kept.ids, folder)
        config = replace(task.config, codec=codec_config, network=network_config)
        if isinstance(config, CausalLMConfig):
            new = {old: number for number, old in enumerate(kept.ids)}
            config = replace(config, end_ids=tuple(new[number] for number in config.end_ids))
        codec = build_codec(codec_config, folder)
        network = _blank(config, codec.vocab_size)
        cuts.fill(network, task.network, kept)
        draft = {"draft": None} if isinstance(config, CausalLMConfig) else {}  # of the old ids
        result = task.replaced(config=config, codec=codec, network=network, tokenizer_dir=folder,
                               **draft)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # The codec reads its files again when it is saved or exported.
    weakref.finalize(result.codec, shutil.rmtree, folder, ignore_errors=True)
    return result


def _blank(config: TaskConfig, vocab_size: int) -> Any:
    if isinstance(config, CausalLMConfig):
        return build.decoder(config.network, vocab_size=vocab_size)
    return build.classifier(config, vocab_size=vocab_size)


# ---------------------------------------------------------------------------- decisions


def count(wanted: float | None, there: int, name: str) -> int:
    """Return how many of `there` stay.

    Raises:
        ConfigError: more are asked for than there are.
    """
    if wanted is None:
        return there
    kept = max(1, round(wanted * there)) if wanted < 1 else int(wanted)
    check(kept <= there, f"PruneSettings.{name}", f"at most the {there} that there are", kept)
    return kept


def best(scores: np.ndarray, how_many: int) -> tuple[int, ...]:
    """Return the places of the highest scores, ascending; of equals the first stay."""
    return tuple(sorted(np.argsort(-scores, kind="stable")[:how_many].tolist()))


def spread(texts: Sequence[Text], most: int) -> list[Text]:
    """Return at most so many texts, from all parts of the list."""
    places = np.unique(np.linspace(0, len(texts) - 1, min(most, len(texts))).round().astype(int))
    return [texts[place] for place in places]


def _check_finite(task: Task) -> None:
    """Refuse weights that are no numbers: by answers of NaN every part is worth the same."""
    faults = [weight.path for weight in task.network.weights
              if weight.dtype.startswith(("float", "bfloat"))
              and not np.isfinite(np.asarray(weight.value, np.float32)).all()]
    check(not faults, "network", "weights that are finite numbers", faults,
          "Train it again, with a smaller learning rate.")


def _check_possible(task: Task, settings: PruneSettings, whole: Kept) -> None:
    name = type(cuts.body(task.network)).__name__
    for field, lists in (("layers", whole.layers), ("heads", whole.heads),
                         ("neurons", whole.neurons)):
        wanted = getattr(settings, field)
        check(wanted is None or bool(lists), f"PruneSettings.{field}",
              f"None for {name}, of which none can be taken away", wanted)
    if settings.vocabulary == "used":
        network = task.config.network
        check(not (isinstance(network, EmbeddingBagConfig) and network.ngrams > 1),
              "PruneSettings.vocabulary", "'all' for an embedding_bag of n-grams, whose vectors "
              "are found by the numbers of the ids", settings.vocabulary)
        check(task.tokenizer_dir is not None, "PruneSettings.vocabulary", "'all' for a task "
              "without tokenizer files", settings.vocabulary)


def _layers(task: Task, settings: PruneSettings, kept: Kept, rows: Sequence[importance.Row],
            ticker: Ticker) -> Kept:
    wanted = count(settings.layers, len(kept.layers), "layers")
    if wanted == len(kept.layers):
        return kept
    some = rows[::LAYER_SHARE]

    def blank(part: Kept) -> Any:
        config = replace(task.config, network=cuts.smaller(task.config.network, part))
        return _blank(config, task.codec.vocab_size)

    stay = importance.lasting_layers(task, wanted, some, blank=blank, ticker=ticker)
    return cuts.only(kept, stay)


def _units(task: Task, settings: PruneSettings, kept: Kept, rows: Sequence[importance.Row],
           ticker: Ticker) -> Kept:
    """Choose heads and neurons by what they do in the network of the layers that stay."""
    units: tuple[tuple[Unit, float | None, tuple[tuple[int, ...], ...]], ...] = (
        ("heads", settings.heads, kept.heads), ("neurons", settings.neurons, kept.neurons))
    wanted = {unit: count(asked, len(lists[0]), unit) for unit, asked, lists in units if lists}
    changed = {unit for unit, _, lists in units if lists and wanted[unit] < len(lists[0])}
    if not changed:
        return kept
    network = task.network
    if kept != cuts.everything(network):
        network = _blank(replace(task.config, network=cuts.smaller(task.config.network, kept)),
                         task.codec.vocab_size)
        cuts.fill(network, task.network, kept)
    scores = importance.units(task, network, rows, ticker)
    stay = {unit: tuple(best(layer, wanted[unit]) for layer in scores[unit]) for unit in changed}
    return replace(kept, heads=stay.get("heads", kept.heads),
                   neurons=stay.get("neurons", kept.neurons))


# ---------------------------------------------------------------------------- vocabulary


def count_ids(task: Task, texts: Sequence[Text], ticker: Ticker = silent) -> np.ndarray:
    """Return how often each id comes in the texts, [V] int64; special ids are not put around."""
    flat = [part for text in texts for part in (text if isinstance(text, tuple) else (text,))]
    uses = np.zeros(task.codec.vocab_size, np.int64)
    for begin in ticker(range(0, len(flat), importance.ENCODE_ROWS), "vocabulary"):
        some = tf.constant(flat[begin:begin + importance.ENCODE_ROWS])
        uses += np.bincount(task.codec.encode(some).ids.values.numpy(), minlength=len(uses))
    return uses


def needed_ids(task: Task, used: np.ndarray) -> tuple[int, ...]:
    """Return the ids that stay where `used` shall: with special ones and those that stand in."""
    codec = task.codec
    special = {number for number in (codec.pad_id, codec.start_id, codec.end_id, codec.unknown_id)
               if number is not None}
    if isinstance(task.config, CausalLMConfig):
        special |= set(task.config.end_ids)
    assert task.tokenizer_dir is not None
    return fewer_ids.needed(task.config.codec, task.tokenizer_dir, {*used.tolist(), *special})
