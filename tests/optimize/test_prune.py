"""tf_infer.optimize.prune: planted useless parts are found, and the rest answers alike."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_infer.config import (
    CausalLMConfig,
    ClassifierConfig,
    ConvConfig,
    EmbeddingBagConfig,
    GenerationDefaults,
    HubConfig,
    PackingConfig,
    SentencePieceConfig,
    ShapeGrid,
    SmallTransformerConfig,
    WordPieceConfig,
    from_json,
    to_json,
)
from tf_infer.errors import ConfigError
from tf_infer.networks import cuts
from tf_infer.networks.fast import FastDecoder
from tf_infer.optimize.apply import apply
from tf_infer.optimize.plan import OptimizationPlan
from tf_infer.optimize.prune import PruneSettings, best, choose, count, prune, spread
from tf_infer.optimize.texts import Text
from tf_infer.tasks.base import Task
from tf_infer.tasks.build import build, load, save

pytestmark = pytest.mark.whole

GOLDEN = Path(__file__).resolve().parent.parent / "golden/text/sentencepiece"
LETTERS, PIECES = "abcdefghijklmnopqrstuvwxyz", [f"{a}{b}" for a in "aeiou" for b in "lmnrst"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{char}" for char in LETTERS),
              *PIECES, *(f"##{piece}" for piece in PIECES)]


def _texts() -> list[Text]:
    draw = random.Random(5)
    return [" ".join("".join(draw.choices(PIECES, k=2)) for _ in range(4)).encode()
            for _ in range(12)]


TEXTS = _texts()
ATOL = 1e-5  # float32; sums with fewer terms that are 0
NETWORK = SmallTransformerConfig(width=16, layers=2, heads=4, hidden=12, max_positions=40)
GRID = ShapeGrid(rows=(4,), tokens=(16, 32))
CLASSIFIER = ClassifierConfig(
    classes=("a", "b", "c"), codec=WordPieceConfig(), network=NETWORK, grid=GRID,
    packing=PackingConfig(max_tokens=32))
DECODER = CausalLMConfig(
    codec=SentencePieceConfig(), network=replace(NETWORK, max_positions=64), grid=GRID,
    packing=PackingConfig(max_tokens=32, end=False, truncation="left"), capacity=4,
    defaults=GenerationDefaults(max_new_tokens=4))
USED = 3  # of the texts: those that the vocabulary is cut by
# of each layer
USELESS: dict[Any, tuple[int, ...]] = {"heads": (2, 3), "neurons": (0, 11)}


def drawn(task: Task, scale: float = 0.2) -> Task:
    draw = np.random.default_rng(4)
    for weight in task.network.weights:
        weight.assign(weight + scale * draw.normal(size=weight.shape))
    return task


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY))
    return folder


def classifier(words: Path, **fields: Any) -> Task:
    return drawn(build(replace(CLASSIFIER, **fields), tokenizer_dir=words))


def decoder(folder: Path) -> Task:
    folder.mkdir()
    shutil.copy(GOLDEN / "unigram_bytes.model", folder / "tokenizer.model")
    task = build(DECODER, tokenizer_dir=folder)
    end = task.codec.end_id
    assert end is not None
    return drawn(build(replace(DECODER, end_ids=(end, 270)), tokenizer_dir=folder))


def silence(task: Task) -> None:
    """Make each layer ignore one of its heads and one of its neurons."""
    for place, layer in enumerate(cuts.layers(task.network)):
        for unit, numbers in USELESS.items():
            kernel = layer.weights[layer.readers[unit]]
            array = kernel.numpy()
            array.reshape(layer.counts[unit], -1)[numbers[place]] = 0.0
            kernel.assign(array)


def logits(task: Task, texts: Sequence[Text]) -> np.ndarray:
    parts = [text if isinstance(text, tuple) else (text,) for text in texts]
    inputs = {name: tf.constant([part[i] for part in parts])
              for i, name in enumerate(("text", "text_pair")[:len(parts[0])])}
    return np.array(task.core(**task.preprocess(**inputs))["logits"])


@pytest.fixture(scope="module")
def silenced(words: Path) -> Task:
    task = classifier(words)
    silence(task)
    return task


def test_planted_heads_and_neurons_are_found_and_not_missed(silenced: Task) -> None:
    settings = PruneSettings(heads=3, neurons=11)
    kept = choose(silenced, settings, TEXTS)
    for place in range(2):
        assert set(range(4)) - set(kept.heads[place]) == {USELESS["heads"][place]}
        assert set(range(12)) - set(kept.neurons[place]) == {USELESS["neurons"][place]}
    before = logits(silenced, TEXTS)
    pruned = prune(silenced, settings, TEXTS)
    np.testing.assert_allclose(logits(pruned, TEXTS), before, atol=ATOL)
    np.testing.assert_array_equal(logits(silenced, TEXTS), before)  # left as it is
    network = pruned.config.network
    assert isinstance(network, SmallTransformerConfig)
    assert (network.heads, network.head_size, network.hidden) == (3, 4, 11)


@pytest.mark.parametrize("useless", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_planted_layer_is_found_and_not_missed(useless: int, words: Path) -> None:
    task = classifier(words)
    layer = cuts.layers(task.network)[useless]
    for name in ("out/kernel", "out/bias", "outer/kernel", "outer/bias"):
        layer.weights[name].assign(tf.zeros_like(layer.weights[name]))
    settings = PruneSettings(layers=1)
    assert choose(task, settings, TEXTS).layers == (1 - useless,)
    np.testing.assert_allclose(logits(prune(task, settings, TEXTS), TEXTS), logits(task, TEXTS),
                               atol=ATOL)


@pytest.mark.slow
def test_layers_go_one_by_one_and_units_are_judged_in_what_is_left(words: Path) -> None:
    task = classifier(words, multi_label=True, network=replace(NETWORK, layers=3))
    kept = choose(task, PruneSettings(layers=1, heads=0.5, neurons=0.25), TEXTS)
    assert (len(kept.layers), [len(h) for h in kept.heads], [len(n) for n in kept.neurons]) == (
        1, [2], [3])
    alone = prune(task, PruneSettings(layers=1), TEXTS)
    again = choose(alone, PruneSettings(heads=0.5, neurons=0.25), TEXTS)
    assert (again.heads, again.neurons) == (kept.heads, kept.neurons)


def test_nothing_asked_is_nothing_changed(silenced: Task) -> None:
    same = prune(silenced, PruneSettings(), TEXTS)
    assert same.config == silenced.config
    np.testing.assert_array_equal(logits(same, TEXTS), logits(silenced, TEXTS))
    assert same.network is not silenced.network


def test_the_vocabulary_of_given_texts_gives_their_answers_and_a_smaller_file(
        tmp_path: Path, words: Path) -> None:
    task = classifier(words)
    given = TEXTS[:USED]
    small = prune(task, PruneSettings(vocabulary="used"), given)
    np.testing.assert_allclose(logits(small, given), logits(task, given), atol=ATOL)
    np.testing.assert_array_equal(small.preprocess(text=tf.constant(given))["mask"],
                                  task.preprocess(text=tf.constant(given))["mask"])
    gone = task.codec.vocab_size - small.codec.vocab_size
    assert gone > 20
    sizes = [(save(one, tmp_path / name) / "weights.safetensors").stat().st_size
             for one, name in ((task, "whole"), (small, "small"))]
    # 4 bytes for each of the 16 numbers of an id; the header may be some bytes shorter.
    assert 0 <= sizes[0] - sizes[1] - 4 * 16 * gone < 64
    again = load(tmp_path / "small")
    assert again.config == small.config
    np.testing.assert_array_equal(logits(again, TEXTS), logits(small, TEXTS))
    lines = (tmp_path / "small/tokenizer/vocab.txt").read_text().split("\n")
    assert len(lines) - 1 == small.codec.vocab_size


def test_seldom_used_ids_go_when_that_is_asked(words: Path) -> None:
    task = classifier(words)
    sizes = [len(choose(task, PruneSettings(vocabulary="used", least_uses=n), TEXTS).ids or ())
             for n in (1, 3, 50)]
    assert sizes[0] > sizes[1] > sizes[2] == 4 + 2 * len(LETTERS)


def test_a_decoder_gives_its_logits_of_the_ids_that_stay(tmp_path: Path) -> None:
    task = decoder(tmp_path / "tokenizer")
    kept = choose(task, PruneSettings(vocabulary="used"), TEXTS[:6])
    assert kept.ids is not None and 270 in kept.ids
    small = prune(task, PruneSettings(vocabulary="used"), TEXTS[:6])
    assert [kept.ids[number] for number in small.config.end_ids] == list(task.config.end_ids)
    ids = small.codec.encode(tf.constant(TEXTS[:1])).ids.to_tensor()[:, :12]
    old = tf.gather(tf.constant(kept.ids), ids)
    mask = tf.ones_like(ids, tf.bool)
    np.testing.assert_allclose(small.network(ids, mask),
                               tf.gather(task.network(old, mask), kept.ids, axis=-1), atol=ATOL)


@pytest.mark.slow
def test_a_decoder_loses_planted_units_and_layers_and_fits_into_a_plan(tmp_path: Path) -> None:
    task = decoder(tmp_path / "tokenizer")
    silence(task)
    settings = PruneSettings(heads=3, neurons=11)
    kept = choose(task, settings, TEXTS)
    assert [set(range(4)) - set(heads) for heads in kept.heads] == [{2}, {3}]
    small = prune(task, settings, TEXTS)
    ids = tf.constant(np.random.default_rng(0).integers(0, 200, (2, 10)), tf.int32)
    mask = tf.ones_like(ids, tf.bool)
    wanted = task.network(ids, mask)
    np.testing.assert_allclose(small.network(ids, mask), wanted, atol=ATOL)
    fast = FastDecoder(small.network, "float32")
    np.testing.assert_allclose(fast(ids, mask), wanted, atol=1e-4)
    assert len(choose(task, PruneSettings(layers=1), TEXTS[:8]).layers) == 1
    with pytest.raises(ConfigError, match=r"form that is trained, got a FastDecoder\. Prune"):
        prune(type(task)(task.config, task.codec, fast), settings, TEXTS)


@pytest.mark.slow
def test_pairs_are_read_as_pairs(words: Path) -> None:
    task = classifier(words, pair=True)
    pairs: list[Any] = list(zip(TEXTS[:6], TEXTS[6:]))
    silence(task)
    small = prune(task, PruneSettings(heads=3, neurons=11, vocabulary="used"), pairs)
    np.testing.assert_allclose(logits(small, pairs), logits(task, pairs), atol=ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["BertBackbone", "RobertaBackbone"])
def test_a_pruned_bert_takes_a_plan(backbone: str, words: Path) -> None:
    network = HubConfig(backbone=backbone, activation="gelu", pooler=False, arguments={
        "vocabulary_size": len(VOCABULARY), "num_layers": 2, "num_heads": 4, "hidden_dim": 16,
        "intermediate_dim": 12, "max_sequence_length": 40})
    task = classifier(words, network=network)
    silence(task)
    small = prune(task, PruneSettings(heads=3, neurons=11, vocabulary="used"), TEXTS)
    np.testing.assert_allclose(logits(small, TEXTS), logits(task, TEXTS), atol=ATOL)
    fast = apply(small, OptimizationPlan())
    np.testing.assert_allclose(logits(fast, TEXTS), logits(task, TEXTS), atol=1e-4)


@pytest.mark.parametrize(("fields", "message"), [
    ({"heads": 5}, r"PruneSettings\.heads: expected at most the 4 that there are, got 5"),
    ({"layers": 4}, r"PruneSettings\.layers: expected at most the 2"),
    ({"neurons": 1.5}, r"PruneSettings\.neurons: expected None, a share .* got 1\.5"),
    ({"heads": 0}, r"PruneSettings\.heads: expected None, a share"),
    ({"least_uses": 0}, r"PruneSettings\.least_uses: expected >= 1"),
    ({"texts": 0}, r"PruneSettings\.texts: expected >= 1"),
])
def test_settings_that_break_a_rule_are_named(fields: dict[str, Any], message: str,
                                              silenced: Task) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(silenced, PruneSettings(**fields), TEXTS)


def test_networks_that_cannot_be_cut_are_named(silenced: Task, words: Path) -> None:
    conv = classifier(words, network=ConvConfig(width=8, filters=8))
    with pytest.raises(ConfigError, match=r"heads: expected None for Conv, of which none"):
        choose(conv, PruneSettings(heads=0.5), TEXTS)
    cut = prune(conv, PruneSettings(vocabulary="used"), TEXTS[:USED])
    assert cut.codec.vocab_size < len(VOCABULARY)
    np.testing.assert_allclose(logits(cut, TEXTS[:USED]), logits(conv, TEXTS[:USED]), atol=ATOL)
    bag = classifier(words, network=EmbeddingBagConfig(width=8, hash_buckets=50))
    with pytest.raises(ConfigError, match=r"vocabulary: expected 'all' for an embedding_bag"):
        choose(bag, PruneSettings(vocabulary="used"), TEXTS)
    plain = build(ClassifierConfig(classes=("a", "b"), network=NETWORK, grid=GRID,
                                   packing=PackingConfig(max_tokens=32)))
    with pytest.raises(ConfigError, match=r"vocabulary: expected 'all' for a task without"):
        choose(plain, PruneSettings(vocabulary="used"), TEXTS)
    with pytest.raises(ConfigError, match="texts: expected at least one to judge by, got 0"):
        choose(silenced, PruneSettings(heads=1), [])


def test_weights_that_are_no_numbers_are_named(words: Path) -> None:
    task = classifier(words)
    bias = task.network.logits.bias
    bias.assign(tf.tensor_scatter_nd_update(bias.value, [[1]], [np.nan]))
    with pytest.raises(ConfigError, match=r"network: expected weights that are finite numbers, got "
                                          r"\['.*logits/bias'\]"):
        choose(task, PruneSettings(heads=2), TEXTS)


def test_counts_and_shares() -> None:
    assert [count(wanted, 8, "heads") for wanted in (None, 0.5, 0.01, 3.0, 8)] == [8, 4, 1, 3, 8]
    assert best(np.array([1.0, 3.0, 2.0, 3.0]), 2) == (1, 3)
    assert best(np.zeros(4), 2) == (0, 1)
    assert spread([b"%d" % i for i in range(10)], 3) == [b"0", b"4", b"9"]
    assert spread([b"a", b"b"], 5) == [b"a", b"b"]
    settings = PruneSettings(heads=0.5, layers=2, vocabulary="used")
    assert from_json(PruneSettings, json.loads(json.dumps(to_json(settings)))) == settings
