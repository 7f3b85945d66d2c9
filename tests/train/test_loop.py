"""fit and evaluate: they learn, repeat themselves, go on after Ctrl-C, stop early and on NaN."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_infer.config import (
    CausalLMConfig,
    ClassifierConfig,
    ConvConfig,
    EmbeddingBagConfig,
    PackingConfig,
    ShapeGrid,
    SmallTransformerConfig,
    TrainConfig,
)
from tf_infer.errors import CheckpointError, ConfigError, DataError
from tf_infer.tasks.base import Task
from tf_infer.tasks.build import build
from tf_infer.train import checkpoint
from tf_infer.train.data import Example
from tf_infer.train.loop import best_epoch, differences, evaluate, fit, ran_out

pytestmark = pytest.mark.whole

GRID = ShapeGrid(rows=(1, 4), tokens=(8, 16, 32))
NETWORK = SmallTransformerConfig(width=16, layers=1, heads=2, hidden=16, max_positions=40)
# A bag is traced in a second, a transformer in five; dropout draws in both.
CLASSIFIER = ClassifierConfig(
    classes=("animal", "colour", "number"),
    network=EmbeddingBagConfig(width=16, ngrams=3, hash_buckets=500, dropout=0.2),
    packing=PackingConfig(max_tokens=32), grid=GRID)
DECODER = CausalLMConfig(
    network=NETWORK, packing=PackingConfig(max_tokens=32, end=False, truncation="left"),
    grid=GRID, capacity=32)
WORDS = {"animal": ["cat", "dog", "horse", "cow", "sheep"],
         "colour": ["red", "green", "blue", "white"],
         "number": ["one", "two", "three", "four", "five"]}
TRAIN = TrainConfig(epochs=4, batch_rows=8, learning_rate=3e-3, patience=None, token_dropout=0.1,
                    average_decay=0.9, seed=3)


def examples(count: int = 60, *, seed: int = 0) -> list[Example]:
    """Sentences that name an animal, a colour or a number."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = str(draw.choice(list(WORDS)))
        padding = " ".join(draw.choice(["the", "a", "so", "of"], draw.integers(0, 6)))
        rows.append(Example(f"{padding} {draw.choice(WORDS[label])}", labels=(label,)))
    return rows


def weights(task: Task) -> list[np.ndarray]:
    return [variable.numpy() for variable in task.network.weights]


def same(first: Task, second: Task) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(weights(first), weights(second)))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Path]:
    task, folder = build(CLASSIFIER), tmp_path_factory.mktemp("run")
    fit(task, examples(), TRAIN, run_dir=folder)
    return task, folder


def test_a_classifier_learns_and_is_judged() -> None:
    task = build(CLASSIFIER)
    config = TrainConfig(epochs=8, batch_rows=16, learning_rate=1e-2, patience=None)
    history = fit(task, examples(200), config)
    assert history.epochs[-1]["loss"] < 0.5 * history.epochs[0]["loss"]
    judged = evaluate(task, examples(60, seed=1))
    assert judged["accuracy"] > 0.9
    assert judged["rows"] == 60
    assert set(judged["classes"]) == set(CLASSIFIER.classes)
    assert sum(score["rows"] for score in judged["classes"].values()) == 60
    answer = task.signatures()["serving_default"].function(
        text=tf.constant([example.text for example in examples(60, seed=1)]))
    named = [label.decode() == example.labels[0]
             for label, example in zip(answer["label"].numpy(), examples(60, seed=1))]
    assert np.mean(named) == pytest.approx(judged["accuracy"])


def test_the_same_seed_gives_the_same_weights(uninterrupted: tuple[Task, Path]) -> None:
    again = build(CLASSIFIER)
    fit(again, examples(), TRAIN)
    assert same(again, uninterrupted[0])
    other = build(CLASSIFIER)
    fit(other, examples(), TrainConfig(**{**_fields(TRAIN), "seed": 4}))
    assert not same(other, uninterrupted[0])


def _fields(config: TrainConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def _interrupt_after_first_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send what Ctrl-C sends, behind the first checkpoint; a watching thread may come too late."""
    write = checkpoint.write

    def write_then_interrupt(state: checkpoint.State, folder: Path) -> None:
        write(state, folder)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(checkpoint, "write", write_then_interrupt)


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
        uninterrupted: tuple[Task, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        _interrupt_after_first_checkpoint(patched)
        with pytest.raises(KeyboardInterrupt):
            fit(build(CLASSIFIER), examples(), TRAIN, run_dir=tmp_path)
    state = checkpoint.read(tmp_path)
    assert state is not None
    assert 1 <= len(state.about["epochs"]) < TRAIN.epochs
    fresh = build(CLASSIFIER)
    history = fit(fresh, examples(), TRAIN, run_dir=tmp_path, resume=True)
    assert len(history.epochs) == TRAIN.epochs
    assert same(fresh, uninterrupted[0])


def test_a_finished_run_resumes_to_its_result_at_once(
        uninterrupted: tuple[Task, Path]) -> None:
    task, folder = uninterrupted
    fresh = build(CLASSIFIER)
    history = fit(fresh, examples(), TRAIN, run_dir=folder, resume=True)
    assert same(fresh, task)
    assert len(history.epochs) == TRAIN.epochs


def test_a_run_directory_is_not_overwritten_and_not_mixed(
        uninterrupted: tuple[Task, Path]) -> None:
    _, folder = uninterrupted
    with pytest.raises(ConfigError, match=r"run_dir: .*--resume"):
        fit(build(CLASSIFIER), examples(), TRAIN, run_dir=folder)
    other = TrainConfig(**{**_fields(TRAIN), "learning_rate": 0.1})
    with pytest.raises(ConfigError, match=r"got others: config\.learning_rate"):
        fit(build(CLASSIFIER), examples(), other, run_dir=folder, resume=True)
    with pytest.raises(ConfigError, match="got others: data"):
        fit(build(CLASSIFIER), examples(seed=9), TRAIN, run_dir=folder, resume=True)
    with pytest.raises(ConfigError, match="resume: expected a run_dir"):
        fit(build(CLASSIFIER), examples(), TRAIN, resume=True)


def test_a_cut_checkpoint_says_so(uninterrupted: tuple[Task, Path], tmp_path: Path) -> None:
    shutil.copy(uninterrupted[1] / checkpoint.FILE, tmp_path)
    path = tmp_path / checkpoint.FILE
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="Delete it and train again"):
        fit(build(CLASSIFIER), examples(), TRAIN, run_dir=tmp_path, resume=True)


def test_scalars_are_written_once_for_each_step(uninterrupted: tuple[Task, Path]) -> None:
    found: dict[str, list[int]] = {}
    for path in uninterrupted[1].glob("events.*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    steps = found["train/step_loss"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(found["validation/accuracy"]) == TRAIN.epochs
    assert found["train/learning_rate"][-1] == steps[-1]


def test_early_stop_keeps_the_best_epoch() -> None:
    # A rate this high spoils what the first epochs learned, so the best is not the last.
    config = TrainConfig(epochs=30, batch_rows=8, learning_rate=0.3, decay="none", patience=2,
                         warmup_fraction=0.0)
    task, held = build(CLASSIFIER), examples(30, seed=1)
    history = fit(task, examples(), config, validation=held)
    assert history.stopped_early
    assert len(history.epochs) == history.best_epoch + 2
    best = history.epochs[history.best_epoch - 1]["validation"]
    judged = evaluate(task, held)
    assert {name: judged[name] for name in best} == best


def test_without_validation_every_epoch_is_run() -> None:
    config = TrainConfig(epochs=3, batch_rows=32, validation_fraction=0.0, patience=1)
    history = fit(build(CLASSIFIER), examples(), config)
    assert (len(history.epochs), history.best_epoch, history.stopped_early) == (3, 3, False)
    assert "validation" not in history.epochs[0]


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    task = build(CLASSIFIER)
    config = TrainConfig(epochs=30, batch_rows=8, learning_rate=1e30, clip_norm=None)
    with pytest.raises(ConfigError, match=r"TrainConfig\.learning_rate: .* epoch \d+, step \d+"):
        fit(task, examples(), config)
    assert all(np.isfinite(array).all() for array in weights(task))


def test_data_that_teach_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="expected at least one"):
        fit(build(CLASSIFIER), [], TRAIN)
    with pytest.raises(DataError, match="expected at least one"):
        evaluate(build(CLASSIFIER), [])
    with pytest.raises(DataError, match="at least two classes"):
        fit(build(CLASSIFIER), [Example("a", labels=("animal",))] * 4, TRAIN)


def test_a_frozen_backbone_is_read_once_and_stays_as_it_is() -> None:
    config = ClassifierConfig(classes=CLASSIFIER.classes, network=NETWORK, grid=GRID,
                              packing=CLASSIFIER.packing, frozen=True, normalize=True, hidden=(8,),
                              dropout=0.0)
    task = build(config)
    backbone = [variable.numpy() for variable in task.network.encoder.weights]
    head = [variable.numpy() for variable in task.network.logits.weights]
    history = fit(task, examples(), TrainConfig(epochs=8, learning_rate=3e-2))
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    for before, variable in zip(backbone, task.network.encoder.weights):
        np.testing.assert_array_equal(before, variable.numpy())
    assert any(not np.array_equal(before, variable.numpy())
               for before, variable in zip(head, task.network.logits.weights))
    # The head on stored vectors and the whole network judge alike.
    stored = evaluate(task, examples(30, seed=1))
    answer = task.signatures()["serving_default"].function(
        text=tf.constant([example.text for example in examples(30, seed=1)]))
    right = [label.decode() == example.labels[0]
             for label, example in zip(answer["label"].numpy(), examples(30, seed=1))]
    assert stored["accuracy"] == pytest.approx(np.mean(right))
    with pytest.raises(ConfigError, match="token_dropout: expected 0 with a frozen backbone"):
        fit(task, examples(), TRAIN)


def test_several_labels_of_pairs_are_trained() -> None:
    config = ClassifierConfig(classes=CLASSIFIER.classes, network=ConvConfig(width=16, filters=16,
                                                                          kernel_sizes=(3,)),
                              packing=CLASSIFIER.packing, grid=GRID, pooling="max", pair=True,
                              multi_label=True)
    rows = [Example(a.text, b.text, tuple(sorted({a.labels[0], b.labels[0]})))
            for a, b in zip(examples(150), examples(150, seed=1))]
    task = build(config)
    history = fit(task, rows, TrainConfig(epochs=10, batch_rows=8, learning_rate=1e-2))
    judged = evaluate(task, rows)
    assert judged["micro_f1"] > 0.8
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]


def test_a_decoder_learns_its_texts() -> None:
    task = build(DECODER)
    rows = [Example("abcabcabcabc " * 8), Example("xyz")]
    before = evaluate(task, rows, block_tokens=24)
    # Of 1 + 104 + 1 ids each but the first is asked for once, cut into rows or not.
    config = TrainConfig(epochs=25, batch_rows=4, learning_rate=2e-2, block_tokens=24,
                         validation_fraction=0.0)
    history = fit(task, rows, config)
    after = evaluate(task, rows, block_tokens=24)
    assert before["perplexity"] > 100
    assert after["perplexity"] < 3
    assert len(history.epochs) == 25
    with pytest.raises(ConfigError, match="block_tokens: expected at most the decoder's 40"):
        fit(task, rows, TrainConfig(block_tokens=64))


@pytest.mark.parametrize("block_tokens", [16, 24, 40])
def test_how_a_document_is_cut_changes_no_count(block_tokens: int) -> None:
    from tf_infer.train.objectives import NextId

    objective = NextId(build(DECODER), TrainConfig(block_tokens=block_tokens))
    rows = objective.rows([Example("0123456789" * 9), Example("")], training=True,
                          ticker=lambda items, what: items)
    # start, 90 bytes, end: 91 ids to ask for; of the empty text only its end.
    assert objective.weights(rows).sum() == 91 + 1
    assert rows.lengths().max() <= block_tokens


# ---------------------------------------------------------------------------- decisions


def test_the_first_of_equals_is_the_best_and_patience_counts_from_it() -> None:
    ranks = [(0.5, -1.0), (0.8, -2.0), (0.8, -2.0), (0.8, -3.0)]
    assert best_epoch(ranks) == 1
    assert [ran_out(ranks[:count], 2) for count in range(5)] == [False, False, False, False, True]
    assert not ran_out(ranks, None)


def test_differences_are_named_by_their_path() -> None:
    assert differences({"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"b": 1, "c": 3}}) == ["a.c", "d"]
