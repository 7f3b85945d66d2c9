"""Where ids, layers, heads and neurons lie in a network's weights, and a network with fewer"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import keras
import numpy as np

from tf_infer.config import HubConfig, NetworkConfig, SmallTransformerConfig
from tf_infer.errors import ConfigError
from tf_infer.networks.hub import HubDecoder, HubEncoder
from tf_infer.networks.small import Conv, EmbeddingBag, SmallDecoder, SmallTransformer

Unit: TypeAlias = Literal["heads", "neurons"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What stays of a network; every list ascends.

    Attributes:
        layers: their numbers.
        heads: of each layer that stays, the numbers of its heads; empty where they cannot be taken.
        neurons: of each layer that stays, the numbers of its feed-forward neurons.
        ids: the ids that stay, which are 0, 1, 2, ... from then on; None for all.
    """

    layers: tuple[int, ...] = ()
    heads: tuple[tuple[int, ...], ...] = ()
    neurons: tuple[tuple[int, ...], ...] = ()
    ids: tuple[int, ...] | None = None

    def of(self, unit: Unit, place: int) -> Sequence[int] | None:
        """Return the units that stay of the layer that will be at `place`; None for all."""
        lists = self.heads if unit == "heads" else self.neurons
        return lists[place] if lists else None


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a weight that `repeats` times holds all units of a layer, one after the other."""

    unit: Unit
    axis: int
    repeats: int = 1


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a transformer.

    Attributes:
        weights: path below the layer's own -> weight.
        axes: the same path of each weight that has units -> its axes with units.
        counts: how many units it has; no "heads" where single ones cannot be taken away.
        readers: path of the kernel that reads what the units found; they are its first axis.
    """

    weights: Mapping[str, keras.Variable]
    axes: Mapping[str, Axis]
    counts: Mapping[Unit, int]
    readers: Mapping[Unit, str]


@dataclass
class _Marks:
    """Collects which weights have units, by path."""

    axes: dict[str, Axis] = field(default_factory=dict)
    readers: dict[Unit, str] = field(default_factory=dict)

    def found_by(self, unit: Unit, dense: Any, repeats: int = 1) -> None:
        """Note a layer whose outputs are units."""
        self.axes[dense.kernel.path] = Axis(unit, 1, repeats)
        if dense.bias is not None:
            self.axes[dense.bias.path] = Axis(unit, 0, repeats)

    def read_by(self, unit: Unit, dense: Any) -> None:
        """Note the layer that reads them."""
        self.axes[dense.kernel.path] = Axis(unit, 0)
        self.readers[unit] = dense.kernel.path


def body(network: Any) -> Any:
    """Return the encoder of a classifier's network, or the decoder itself."""
    return getattr(network, "encoder", network)


def layers(network: Any) -> tuple[Layer, ...]:
    """Return the layers of a transformer in order; none of another network."""
    inside = body(network)
    if isinstance(inside, (SmallTransformer, SmallDecoder)):
        blocks = inside.blocks if isinstance(inside, SmallTransformer) else inside.stack
        return tuple(_small(block) for block in blocks)
    if isinstance(inside, (HubEncoder, HubDecoder)):
        heads = isinstance(inside, HubEncoder)
        return tuple(_hub(block, heads=heads) for block in inside.backbone.transformer_layers)
    return ()


def _small(block: Any) -> Layer:
    marks, config = _Marks(), block.config
    marks.found_by("heads", block.qkv, repeats=3)
    marks.read_by("heads", block.out)
    marks.found_by("neurons", block.inner)
    marks.read_by("neurons", block.outer)
    return _layer(block, marks, {"heads": config.heads, "neurons": config.hidden})


def _hub(block: Any, *, heads: bool) -> Layer:
    marks = _Marks()
    inner = block._feedforward_intermediate_dense
    counts: dict[Unit, int] = {"neurons": int(inner.units)}
    marks.found_by("neurons", inner)
    if hasattr(block, "_feedforward_gate_dense"):
        marks.found_by("neurons", block._feedforward_gate_dense)
    marks.read_by("neurons", block._feedforward_output_dense)
    if heads:
        attention = block._self_attention_layer
        for dense in (attention.query_dense, attention.key_dense, attention.value_dense):
            marks.found_by("heads", dense)
        marks.read_by("heads", attention.output_dense)
        counts["heads"] = int(attention.num_heads)
    return _layer(block, marks, counts)


def _layer(block: Any, marks: _Marks, counts: Mapping[Unit, int]) -> Layer:
    def below(path: str) -> str:
        return path.split(f"{block.name}/", 1)[1]

    return Layer({below(weight.path): weight for weight in block.weights},
                 {below(path): axis for path, axis in marks.axes.items()}, counts,
                 {unit: below(path) for unit, path in marks.readers.items()})


def tables(network: Any) -> Iterator[tuple[keras.Variable, int]]:
    """Yield each weight with a place for every id, and the axis of those.

    Raises:
        ConfigError: a network in another form than the one that is trained.
    """
    inside = body(network)
    if isinstance(inside, HubEncoder):
        lookup = inside.backbone if inside.takes_segments else inside.backbone.embeddings
        yield lookup.token_embedding.embeddings, 0
    elif isinstance(inside, HubDecoder):
        embedding = inside.backbone.token_embedding
        yield embedding.embeddings, 0
        if not embedding.tie_weights:
            yield embedding.reverse_embeddings, 1
    elif isinstance(inside, (Conv, EmbeddingBag, SmallTransformer, SmallDecoder)):
        yield inside.words.embeddings, 0
    else:
        raise ConfigError("network: expected one in the form that is trained, got a "
                          f"{type(inside).__name__}. Prune before a plan is applied.")


def everything(network: Any) -> Kept:
    """Return what keeps all of a network."""
    found = layers(network)

    def every(unit: Unit) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(range(layer.counts[unit])) for layer in found if unit in layer.counts)

    return Kept(layers=tuple(range(len(found))), heads=every("heads"), neurons=every("neurons"))


def only(kept: Kept, places: Sequence[int]) -> Kept:
    """Return what stays when of the layers only those at these places do."""
    return replace(kept, layers=tuple(kept.layers[place] for place in places),
                   heads=tuple(kept.heads[place] for place in places if kept.heads),
                   neurons=tuple(kept.neurons[place] for place in places))


def smaller(config: NetworkConfig, kept: Kept) -> NetworkConfig:
    """Return the configuration of what stays; every layer must keep as many units as the others."""
    counts: dict[str, int] = {"layers": len(kept.layers)}
    for name, lists in (("heads", kept.heads), ("neurons", kept.neurons)):
        assert len({len(units) for units in lists}) <= 1, f"{name}: layers keep different numbers"
        if lists:
            counts[name] = len(lists[0])
    if isinstance(config, SmallTransformerConfig):
        size = config.size_of_heads
        return replace(config, layers=counts["layers"], heads=counts["heads"],
                       hidden=counts["neurons"],
                       head_size=None if counts["heads"] * size == config.width else size)
    if not isinstance(config, HubConfig):
        return config
    given: dict[str, Any] = {**config.arguments, "num_layers": counts["layers"],
                             "intermediate_dim": counts["neurons"]}
    if kept.ids is not None:
        given["vocabulary_size"] = len(kept.ids)
    head_size = config.head_size
    if "heads" in counts:
        width = given["hidden_dim"]
        size = head_size or width // given["num_heads"]
        given["num_heads"] = counts["heads"]
        head_size = None if counts["heads"] * size == width else size
    return replace(config, arguments=given, head_size=head_size)


def fill(target: Any, source: Any, kept: Kept) -> None:
    """Give a network of the configuration `smaller` made the weights that stay of `source`."""
    filled: set[str] = set()

    def put(variable: keras.Variable, array: np.ndarray) -> None:
        variable.assign(array)
        filled.add(variable.path)

    old_layers = layers(source)
    for place, (number, new) in enumerate(zip(kept.layers, layers(target))):
        old = old_layers[number]
        for name, variable in new.weights.items():
            array, axis = old.weights[name].numpy(), new.axes.get(name)
            units = None if axis is None else kept.of(axis.unit, place)
            put(variable, array if axis is None or units is None
                else taken(array, axis, old.counts[axis.unit], units))
    for (variable, axis_of_ids), (old_table, _) in zip(tables(target), tables(source)):
        array = old_table.numpy()
        put(variable, array if kept.ids is None else array.take(kept.ids, axis_of_ids))
    others = {weight.path: weight for weight in source.weights}
    for variable in target.weights:
        if variable.path not in filled:
            put(variable, others[variable.path].numpy())


def taken(array: np.ndarray, axis: Axis, count: int, units: Sequence[int]) -> np.ndarray:
    """Return what stays of an array of which an axis holds `count` units of equal size."""
    before, after = array.shape[:axis.axis], array.shape[axis.axis + 1:]
    parts = array.reshape(*before, axis.repeats, count, -1, *after)
    return parts.take(units, axis.axis + 1).reshape(*before, -1, *after)
