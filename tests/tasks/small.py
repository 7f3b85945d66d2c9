"""Small tasks of every kind, with drawn weights; built anew in each process, the same each time."""

from __future__ import annotations

from dataclasses import replace

from tf_infer.config import (
    CausalLMConfig,
    ClassifierConfig,
    ConvConfig,
    EmbeddingBagConfig,
    GenerationDefaults,
    PackingConfig,
    ShapeGrid,
    SmallTransformerConfig,
)

GRID = ShapeGrid(rows=(1, 4), tokens=(8, 32))
ONE_SIZE = ShapeGrid(rows=(4,), tokens=(8, 32))  # a decoder's core takes seconds to compile
NETWORK = SmallTransformerConfig(width=16, layers=2, heads=2, hidden=32, max_positions=36)
PACKING = PackingConfig(max_tokens=32)
PROMPT = PackingConfig(max_tokens=32, end=False, truncation="left")

CLASSIFIER = ClassifierConfig(
    classes=("parcel", "支付", "other"), network=NETWORK, packing=PACKING, grid=GRID,
    temperature=0.5)
MULTI_LABEL_PAIR = ClassifierConfig(
    classes=("a", "b"), network=ConvConfig(width=8, filters=8), packing=PACKING, grid=GRID,
    pair=True, multi_label=True, thresholds=(0.5, 0.4), pooling="max", hidden=(4,))
BAG = ClassifierConfig(
    classes=("a", "b"), network=EmbeddingBagConfig(width=8, hash_buckets=100), packing=PACKING,
    grid=GRID, explain=True)
# A third of the vocabulary ends a text, so that drawn weights give texts of all lengths.
DECODER = CausalLMConfig(
    network=NETWORK, packing=PROMPT, grid=ONE_SIZE, capacity=7, end_ids=(2, *range(180, 259)),
    defaults=GenerationDefaults(max_new_tokens=6, temperature=0.8, top_p=0.95, seed=-5))
NO_START = CausalLMConfig(
    network=NETWORK, packing=PackingConfig(max_tokens=32, start=False, end=False,
                                           truncation="left"),
    grid=GRID, capacity=5, defaults=GenerationDefaults(max_new_tokens=5))
# One layer: the suite traces it for every signature and path. test_causal_lm.py has two.
SHALLOW_DECODER = replace(DECODER, network=replace(NETWORK, layers=1))
ALL = {"classifier": CLASSIFIER, "multi_label_pair": MULTI_LABEL_PAIR, "bag": BAG,
       "decoder": SHALLOW_DECODER}
