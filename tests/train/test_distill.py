"""Distillation: what a student learns from a teacher, without labels too, and again on resume."""

from __future__ import annotations

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
    DistillConfig,
    PackingConfig,
    ShapeGrid,
    SmallTransformerConfig,
    TrainConfig,
)
from tf_infer.errors import ConfigError, DataError
from tf_infer.tasks.base import Task
from tf_infer.tasks.build import build
from tf_infer.train import losses
from tf_infer.train.data import Example
from tf_infer.train.distill import Teacher, distilled
from tf_infer.train.loop import evaluate, fit

GRID = ShapeGrid(rows=(8,), tokens=(8, 16))
CLASSES = tuple("abcdefgh")
STUDENT = ClassifierConfig(
    classes=CLASSES, network=ConvConfig(width=8, filters=8, kernel_sizes=(1, 2), dropout=0.0),
    packing=PackingConfig(max_tokens=16), grid=GRID, dropout=0.0, pooling="max")
TRAIN = TrainConfig(epochs=5, batch_rows=8, learning_rate=0.02, validation_fraction=0.0,
                    patience=None)


def examples(count: int, *, seed: int, wrong: float = 0.0) -> list[Example]:
    """Return texts in which one letter is in upper case, which is the label; some labels wrong."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        letters = draw.choice(list(CLASSES), size=10)
        place = int(draw.integers(10))
        label = str(letters[place])
        letters[place] = label.upper()
        if draw.random() < wrong:
            label = str(draw.choice(list(CLASSES)))
        found.append(Example("".join(letters), None, (label,)))
    return found


@pytest.fixture(scope="module")
def teacher() -> Task:
    """A classifier that has seen many right labels."""
    task = build(replace(STUDENT, network=ConvConfig(width=16, filters=16, kernel_sizes=(1,),
                                                     dropout=0.0)))
    fit(task, examples(800, seed=0), TRAIN)
    assert evaluate(task, examples(200, seed=9))["accuracy"] > 0.97
    return task


def accuracy(task: Task) -> float:
    return float(evaluate(task, examples(300, seed=9))["accuracy"])


def student(seed: int = 1, **fields: Any) -> Task:
    return build(replace(STUDENT, **fields), seed=seed)


def without_labels(rows: list[Example]) -> list[Example]:
    return [row._replace(labels=()) for row in rows]


def test_a_student_with_few_wrong_labels_is_better_with_a_teacher(teacher: Task) -> None:
    rows = examples(100, seed=2, wrong=0.6)
    # The teacher's classes are found by name, in whatever order the student has them.
    alone, unlabelled = student(), student(classes=CLASSES[::-1])
    fit(alone, rows, TRAIN)
    fit(unlabelled, without_labels(rows), TRAIN,
        teacher=Teacher(task=teacher, config=DistillConfig(labels=0.0)))
    assert accuracy(unlabelled) > accuracy(alone) + 0.1


@pytest.mark.slow
def test_wrong_labels_do_less_harm_beside_a_teacher(teacher: Task) -> None:
    rows = examples(100, seed=2, wrong=0.6)
    alone, taught = student(), student()
    fit(alone, rows, TRAIN)
    fit(taught, rows, TRAIN, teacher=Teacher(task=teacher))
    assert accuracy(taught) > accuracy(alone) + 0.05


@pytest.mark.slow
def test_labels_alone_are_training_without_a_teacher(teacher: Task) -> None:
    rows, config = examples(40, seed=3), replace(TRAIN, epochs=2)
    alone, taught = student(), student()
    fit(alone, rows, config)
    fit(taught, rows, config, teacher=Teacher(task=teacher, config=DistillConfig(labels=1.0)))
    for one, other in zip(alone.network.get_weights(), taught.network.get_weights()):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.slow
def test_rows_without_labels_are_judged_by_the_teacher(teacher: Task) -> None:
    rows = without_labels(examples(60, seed=4))
    config = DistillConfig(labels=0.0)
    history = fit(student(), rows, replace(TRAIN, epochs=1, validation_fraction=0.2),
                  teacher=Teacher(task=teacher, config=config))
    assert history.epochs[0]["validation"]["rows"] == 12
    with pytest.raises(DataError, match="label: expected one class, got 0"):
        fit(student(), rows, TRAIN, teacher=Teacher(task=teacher))


@pytest.mark.slow
def test_a_run_goes_on_only_with_its_teacher(teacher: Task, tmp_path: Path) -> None:
    rows = examples(40, seed=5)
    whole, parts = student(), student()
    config = replace(TRAIN, epochs=2)
    fit(whole, rows, config, teacher=Teacher(task=teacher))
    fit(parts, rows, config, teacher=Teacher(task=teacher), run_dir=tmp_path)
    again = student()
    fit(again, rows, config, teacher=Teacher(task=teacher), run_dir=tmp_path, resume=True)
    for one, other in zip(whole.network.get_weights(), again.network.get_weights()):
        np.testing.assert_array_equal(one, other)
    other_teacher = build(teacher.config, seed=7)
    for given in (Teacher(task=other_teacher),
                  Teacher(task=teacher, config=DistillConfig(temperature=3.0)), None):
        with pytest.raises(ConfigError, match=r"got others: .*teacher"):
            fit(student(), rows, config, teacher=given, run_dir=tmp_path, resume=True)


@pytest.mark.slow
def test_pooled_vectors_come_nearer_when_they_count(teacher: Task) -> None:
    rows = examples(60, seed=6)
    network = teacher.config.network

    def apart(hidden: float) -> float:
        task = student(network=network, seed=11)
        fit(task, rows, replace(TRAIN, epochs=12, learning_rate=0.03), teacher=Teacher(
            task=teacher, config=DistillConfig(labels=0.0, hidden=hidden)))
        given = tf.constant([row.text for row in rows])
        vectors = []
        for one in (task, teacher):
            dense = one.preprocess(text=given)
            hidden_states = one.network.encoder(dense["ids"], dense["mask"], dense["segments"])
            vectors.append(one.network.vector(hidden_states, dense["mask"]))
        return float(tf.reduce_mean(tf.math.squared_difference(*vectors)))

    assert apart(10.0) < 0.5 * apart(0.0)


@pytest.mark.slow
def test_several_labels_are_taught_one_by_one() -> None:
    config = replace(STUDENT, multi_label=True)
    rows = [row._replace(labels=(row.labels[0], "a" if row.labels[0] != "a" else "b"))
            for row in examples(300, seed=1)]
    task = build(config)
    fit(task, rows, TRAIN)
    taught = build(config, seed=3)
    fit(taught, without_labels(rows), TRAIN,
        teacher=Teacher(task=task, config=DistillConfig(labels=0.0)))
    assert evaluate(taught, rows)["micro_f1"] > 0.8 * evaluate(task, rows)["micro_f1"] > 0.5


@pytest.mark.slow
def test_a_decoder_learns_what_its_teacher_says() -> None:
    config = CausalLMConfig(
        network=SmallTransformerConfig(width=16, layers=1, heads=2, hidden=16, max_positions=32,
                                       dropout=0.0),
        packing=PackingConfig(max_tokens=16, end=False, truncation="left"), grid=GRID, capacity=8,
        defaults=CausalLMConfig().defaults.within(8))
    task, taught = build(config, seed=1), build(config, seed=2)
    rows = [Example("abcabcabcabcabc"), Example("xyzxyzxyzxyz")] * 8
    train = replace(TRAIN, epochs=20, block_tokens=16)
    fit(task, rows, train)
    other = [Example("abcabcabc"), Example("xyxyxyxy")] * 8
    fit(taught, other, train, teacher=Teacher(task=task, config=DistillConfig(labels=0.0)))
    ids = tf.constant([[1, *b"xyzxyzxyz"]]) + 3
    mask = tf.ones_like(ids, tf.bool)
    student_says, teacher_says = (tf.nn.softmax(one.network(ids, mask)) for one in (taught, task))
    untaught = tf.nn.softmax(build(config, seed=2).network(ids, mask))
    distance = [float(tf.reduce_mean(tf.abs(one - teacher_says)))
                for one in (student_says, untaught)]
    assert distance[0] < 0.5 * distance[1]
    with pytest.raises(ConfigError, match=r"DistillConfig\.hidden: expected 0 for a decoder"):
        distilled(taught, train, Teacher(task=task, config=DistillConfig(hidden=1.0)))
    with pytest.raises(ConfigError, match=r"max_positions: expected at least .* = 32, got 20"):
        short = build(replace(config, network=replace(config.network, max_positions=20)))
        distilled(build(config), replace(train, block_tokens=32), Teacher(task=short))


@pytest.mark.parametrize(("fields", "message"), [
    ({"classes": ("a", "z")}, r"teacher\.classes: expected the student's classes"),
    ({"multi_label": True}, r"teacher\.multi_label: expected True as the student's, got False"),
    ({"pair": True}, r"teacher\.pair: expected True"),
    ({"frozen": True}, r"frozen: expected False for a student"),
])
def test_a_teacher_of_other_questions_is_refused(teacher: Task, fields: dict[str, Any],
                                                 message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distilled(student(**fields), TRAIN, Teacher(task=teacher))


def test_settings_that_break_a_rule_are_named(teacher: Task) -> None:
    for fields, message in (({"temperature": 0.0}, "temperature: expected a number > 0"),
                            ({"labels": 1.5}, "labels: expected a share from 0 to 1"),
                            ({"hidden": -1.0}, "hidden: expected a number >= 0")):
        with pytest.raises(ConfigError, match=message):
            DistillConfig(**fields)
    with pytest.raises(ConfigError, match="hidden: expected 0 where teacher and student are not"):
        distilled(student(network=ConvConfig(width=8, filters=3)), TRAIN,
                  Teacher(task=teacher, config=DistillConfig(hidden=1.0)))
    with pytest.raises(ConfigError, match="teacher: expected a causal_lm as the student is"):
        distilled(build(CausalLMConfig()), TRAIN, Teacher(task=teacher))


def test_divergence_is_that_of_kullback_and_leibler_times_the_square_of_the_temperature() -> None:
    draw = np.random.default_rng(0)
    mine, theirs = draw.normal(size=(2, 4, 3))
    found = losses.teacher_divergence(tf.constant(mine), tf.constant(theirs), temperature=2.0)
    p, q = (np.exp(x / 2) / np.exp(x / 2).sum(axis=-1, keepdims=True) for x in (theirs, mine))
    np.testing.assert_allclose(found, 4.0 * (p * np.log(p / q)).sum(axis=-1), rtol=1e-6)
    np.testing.assert_allclose(
        losses.teacher_divergence(tf.constant(mine), tf.constant(mine), temperature=3.0),
        np.zeros(4), atol=1e-12)
    several = losses.teacher_divergences(tf.constant(mine), tf.constant(theirs), temperature=2.0)
    p, q = (1 / (1 + np.exp(-x / 2)) for x in (theirs, mine))
    wanted = 4.0 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(axis=-1)
    np.testing.assert_allclose(several, wanted, rtol=1e-6)
