"""Sampling: exact distributions, exact filters, and one draw for one seed wherever it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding.paths import Runner, eager, graph, on_all_paths, xla
from tests.fakes.steps import TreeModel, random_trees
from tests.oracles import sampling as oracle
from tf_infer.decoding import greedy, sampling
from tf_infer.decoding.contracts import Hypotheses, Limits, SamplingOptions

EDGE = 1e-6       # float32 weights: a number this near to an edge may fall to either side
P_VALUE = 1e-4    # a right sampler fails one of the 33 fixed-seed tests in 300 such suites
Combination = tuple[float, int, float] | tuple[float, int, float, float, float]
# temperature, top_k, top_p; min_p and typical_p where they are on
COMBINATIONS = [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.8), (1.3, 12, 0.9),
                (0.5, 3, 0.5), (2.0, 1, 1.0), (1.0, 0, 1e-6), (1.0, 30, 0.999), (0.0, 5, 0.5),
                (1.0, 0, 1.0, 0.2, 1.0), (1.5, 20, 0.95, 0.1, 1.0), (1.0, 0, 1.0, 1.0, 1.0),
                (1.0, 0, 1.0, 0.0, 0.7), (2.0, 25, 0.9, 0.02, 0.5), (1.0, 0, 1.0, 0.0, 0.05)]
WIDE = 600        # more than the shortlist holds


def options(rows: int, temperature: float, top_k: int, top_p: float, min_p: float = 0.0,
            typical_p: float = 1.0, *, seeds: np.ndarray, draw: int = 0) -> SamplingOptions:
    return SamplingOptions(tf.fill([rows], temperature), tf.fill([rows], top_k),
                           tf.fill([rows], top_p), tf.constant(seeds, tf.int64),
                           tf.fill([rows], min_p), tf.fill([rows], typical_p),
                           tf.fill([rows], draw))


def choose(logits: tf.Tensor, produced: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
    return sampling.choose(logits, SamplingOptions(*rest), produced)


def draw(run: Runner, logits: np.ndarray, chosen: SamplingOptions, produced: np.ndarray
         ) -> np.ndarray:
    return run(choose, tf.constant(logits), tf.constant(produced, tf.int32), *chosen).numpy()


def many(run: Runner, row: np.ndarray, count: int, combination: Combination) -> np.ndarray:
    logits = np.repeat(row[None], count, axis=0)
    return draw(run, logits, options(count, *combination, seeds=np.arange(count)),
                np.full(count, 2))


def named(combination: Combination) -> dict[str, Any]:
    return dict(zip(("temperature", "top_k", "top_p", "min_p", "typical_p"), combination))


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("run", [graph, xla], ids=["graph", "xla"])
def test_draws_have_the_exact_distribution(run: Runner, combination: Combination) -> None:
    row = np.random.default_rng(3).normal(size=40).astype(np.float32) * 1.5
    exact = oracle.distribution(row, **named(combination))
    count = 20_000
    found = np.bincount(many(run, row, count, combination), minlength=len(row))
    assert found[exact == 0].sum() == 0
    large = exact * count >= 5
    observed = np.append(found[large], found[~large].sum())
    wanted = np.append(exact[large], exact[~large].sum()) * count
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    freedom = max(len(wanted) - 1, 1)
    assert float(tf.math.igammac(freedom / 2, statistic / 2)) > P_VALUE or statistic == 0


@on_all_paths
@pytest.mark.parametrize("combination", [
    (1.0, 0, 1.0), (1.0, 0, 0.9), (3.0, 0, 0.95), (1.0, 50, 1.0), (1.0, 300, 1.0),
    (2.0, 300, 0.9), (3.0, 0, 0.999), (1.0, WIDE, 0.5), (1.0, 10_000, 1.0),
    (2.0, 0, 1.0, 0.05, 1.0), (2.0, 0, 0.98, 0.01, 1.0), (3.0, 300, 1.0, 0.003, 1.0),
    (3.0, 0, 1.0, 0.0, 0.9), (3.0, 300, 0.97, 0.001, 0.6)])
def test_each_draw_is_the_oracles_on_and_off_the_shortlist(
        run: Runner, combination: Combination) -> None:
    generator = np.random.default_rng(11)
    logits = generator.normal(size=(48, WIDE)).astype(np.float32) * 3
    seeds = generator.integers(-2**63, 2**63 - 1, 48)
    found = draw(run, logits, options(48, *combination, seeds=seeds), np.arange(48))
    for row in range(48):
        number = oracle.uniform(int(seeds[row]), row)
        token, margin = oracle.picked(logits[row], number, **named(combination))
        assert found[row] == token or margin < EDGE, f"row {row}"


@pytest.mark.parametrize("seed", range(6))
def test_filters_keep_exactly_what_the_oracle_keeps(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, size = 64, 50
    logits = generator.normal(size=(rows, size)).astype(np.float32)
    if seed % 2:  # few distinct values: ties at every edge
        logits = np.round(logits * 2) / 2
    top_k = generator.integers(0, size + 10, rows)
    top_p = generator.choice([0.05, 0.3, 0.7123, 0.95, 1.0], rows)
    values, ids = tf.math.top_k(tf.exp(logits - logits.max(-1, keepdims=True)), k=size)
    limit = np.where((top_k > 0) & (top_k < size), top_k, size)
    kept, reached = sampling.keep(values, tf.constant(limit, tf.int32), tf.constant(top_p),
                                  tf.reduce_sum(tf.cast(values, tf.float64), -1))
    for row in range(rows):
        exact = oracle.distribution(logits[row], temperature=1.0, top_k=int(top_k[row]),
                                    top_p=float(top_p[row]))
        assert set(ids[row].numpy()[kept[row].numpy()]) == set(np.flatnonzero(exact)), f"row {row}"
    assert reached.numpy().all()


def test_top_p_that_a_set_meets_exactly_keeps_no_token_more() -> None:
    logits = np.log(np.array([[0.25, 0.5, 0.125, 0.125]], np.float32))
    values = tf.constant([[0.5, 0.25, 0.125, 0.125]])
    kept, _ = sampling.keep(values, tf.constant([4]), tf.constant([0.75], tf.float64),
                            tf.constant([1.0], tf.float64))
    assert kept.numpy().tolist() == [[True, True, False, False]]
    assert set(many(eager, logits[0], 500, (1.0, 2, 1.0))) == {0, 1}


@on_all_paths
def test_rows_of_every_kind_share_a_batch_and_draw_as_alone(run: Runner) -> None:
    generator = np.random.default_rng(5)
    kinds = [(0.0, 0, 1.0, 0.1, 0.5), (1.0, 0, 1.0, 0.0, 1.0), (1.0, 20, 0.9, 0.0, 1.0),
             (1.0, 300, 0.9, 0.05, 1.0), (9.0, 0, 0.99, 0.0, 1.0), (2.0, 0, 1.0, 0.1, 1.0),
             (2.0, 40, 0.9, 0.01, 0.8)]
    rows, many = 48, len(kinds)  # of one shape with the test above: XLA compiles it once
    logits = generator.normal(size=(rows, WIDE)).astype(np.float32) * 2
    chosen = SamplingOptions(
        *(tf.constant([kinds[i % many][option] for i in range(rows)]) for option in range(3)),
        tf.constant(generator.integers(-2**63, 2**63 - 1, rows)),
        *(tf.constant([kinds[i % many][option] for i in range(rows)]) for option in (3, 4)),
        tf.constant(generator.integers(0, 3, rows), tf.int32))
    produced = generator.integers(0, 100, rows)
    crowd = draw(run, logits, chosen, produced)
    alone = [int(draw(eager, logits[i:i + 1], SamplingOptions(*(o[i:i + 1] for o in chosen)),
                      produced[i:i + 1])[0]) for i in range(rows)]
    assert crowd.tolist() == alone
    order = generator.permutation(rows)
    moved = draw(run, logits[order], SamplingOptions(*(tf.gather(o, order) for o in chosen)),
                 produced[order])
    assert np.array_equal(moved, crowd[order])


def test_draws_with_one_seed_are_the_oracles_numbers_of_their_own_stream() -> None:
    row = np.random.default_rng(3).normal(size=40).astype(np.float32)
    seeds = np.arange(200)
    found = {}
    for number in range(3):
        chosen = options(200, 1.0, 0, 1.0, seeds=seeds, draw=number)
        found[number] = draw(graph, np.repeat(row[None], 200, axis=0), chosen, np.zeros(200))
        for seed in seeds:
            token, margin = oracle.picked(row, oracle.uniform(int(seed), 0, number), temperature=1,
                                          top_k=0, top_p=1)
            assert found[number][seed] == token or margin < EDGE
    assert (found[0] != found[1]).sum() > 100 and (found[1] != found[2]).sum() > 100


@on_all_paths
def test_broken_logits_have_a_defined_draw(run: Runner) -> None:
    inf, nan = np.inf, np.nan
    rows = np.array([[nan, 1, nan, nan], [-inf, -inf, 3, -inf], [inf, 0, 0, nan],
                     [-inf, nan, -inf, nan], [3e38, -3e38, 0, 3e38]], np.float32)
    for combination in [(1.0, 0, 1.0), (1.0, 2, 1.0), (1e-30, 0, 0.5), (1e30, 0, 1.0),
                        (1.0, 0, 1.0, 0.1, 0.5)]:
        logits = np.repeat(rows, 50, axis=0)
        found = draw(run, logits, options(250, *combination, seeds=np.arange(250)),
                     np.zeros(250, int)).reshape(5, 50)
        assert ((found >= 0) & (found < 4)).all()
        if combination[0] < 1e30:
            assert set(found[0]) == {1} and set(found[1]) == {2} and set(found[2]) == {0}
            assert set(found[4]) <= {0, 3}


def sample_trees(trees: tf.Tensor, allowed: tf.Tensor, *rest: tf.Tensor) -> Hypotheses:
    model = TreeModel(trees)
    return sampling.sample(model.step, model.start(), Limits(5, allowed, (3,), 0),
                           SamplingOptions(*rest))


def sample(run: Runner, trees: np.ndarray, allowed: list[int], chosen: SamplingOptions
           ) -> Hypotheses:
    return run(sample_trees, tf.constant(trees), tf.constant(allowed, tf.int32), *chosen)


@pytest.mark.parametrize("run", [
    pytest.param(graph, id="graph"),
    # half a minute of compiling; the tasks' suite compares a decoder's draws under XLA
    pytest.param(xla, id="xla", marks=pytest.mark.slow)])
def test_a_seed_gives_one_continuation_on_every_path_and_beside_any_neighbours(
        run: Runner) -> None:
    trees = random_trees(30, 4, 5, seed=8)
    allowed = [i % 6 for i in range(30)]
    chosen = options(30, 1.0, 0, 0.9, seeds=np.arange(30) * 10**17)
    first = sample(eager, trees, allowed, chosen)
    for one, two in zip(first, sample(run, trees, allowed, chosen)):
        np.testing.assert_allclose(one, two, atol=1e-5)
    for row in (4, 11, 29):
        alone = sample(eager, trees[row:row + 1], allowed[row:row + 1],
                       SamplingOptions(*(o[row:row + 1] for o in chosen)))
        assert np.array_equal(alone.ids[0], first.ids[row])
    other_seed = sample(eager, trees, allowed, chosen._replace(seed=chosen.seed + 1))
    assert not np.array_equal(other_seed.ids, first.ids)


def test_temperature_zero_is_greedy_search_with_its_scores() -> None:
    trees = random_trees(20, 4, 5, seed=9)
    chosen = options(20, 0.0, 2, 0.1, seeds=np.arange(20))
    found = sample(eager, trees, [5] * 20, chosen)
    model = TreeModel(trees)
    wanted = greedy.search(model.step, model.start(), Limits(5, tf.fill([20], 5), (3,), 0))
    for one, two in zip(found, wanted):
        assert np.array_equal(one, two)


def test_sequences_have_the_models_distribution() -> None:
    count = 20_000
    trees = np.repeat(random_trees(1, 3, 2, seed=10), count, axis=0)
    model = TreeModel(trees)
    found = sampling.sample(model.step, model.start(), Limits(2, tf.fill([count], 2), (), 0),
                            options(count, 1.0, 0, 1.0, seeds=np.arange(count)))
    pairs = found.ids[:, 0].numpy() @ [3, 1]
    first = np.exp(trees[0, 0]) / np.exp(trees[0, 0]).sum()
    second = np.exp(trees[0, 1:4]) / np.exp(trees[0, 1:4]).sum(-1, keepdims=True)
    wanted = (first[:, None] * second).reshape(-1) * count
    statistic = ((np.bincount(pairs, minlength=9) - wanted) ** 2 / wanted).sum()
    assert float(tf.math.igammac(4.0, statistic / 2)) > P_VALUE
    np.testing.assert_allclose(found.scores[:, 0], np.log(wanted / count)[pairs], atol=1e-5)
