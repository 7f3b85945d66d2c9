"""What is trained and how it is judged: a classifier, its head alone, or a decoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, Union

import keras
import numpy as np
import tensorflow as tf

from tf_infer import metrics
from tf_infer.config import CausalLMConfig, ClassifierConfig, TrainConfig
from tf_infer.errors import ConfigError, DataError
from tf_infer.tasks.base import Task
from tf_infer.train import losses
from tf_infer.train.batches import (
    Plan,
    Rows,
    Vectors,
    dataset,
    draw,
    plan,
    vector_dataset,
)
from tf_infer.train.data import Example, check_several_classes, class_targets, to_bytes

ENCODE_ROWS = 256
FEATURE_ROWS = 64
Batch = tuple[tf.Tensor, ...]
RowSet = Union[Rows, Vectors]
Ticker = Callable[[Iterable[Any], str], Iterable[Any]]


class Objective(Protocol):
    """One way of training.

    Attributes:
        variables: what is changed.
        buckets: ascending lengths of rows; (0,) where rows have none.
        pad_id: stands in the padding.
    """

    variables: list[keras.Variable]
    buckets: tuple[int, ...]
    pad_id: int

    def rows(self, examples: Sequence[Example], *, training: bool, ticker: Ticker) -> RowSet:
        """Encode examples once; with `training`, check that something can be learned from them."""

    def epoch_rows(self, rows: Any, epoch: int) -> RowSet:
        """Return the rows that an epoch reads, of those that `rows` gave for training."""

    def weights(self, rows: RowSet) -> np.ndarray:
        """Return how much each row counts in the mean loss, [N]."""

    def dataset(self, rows: Any, batches: Plan) -> tf.data.Dataset:
        """Return the batches that `losses` and `answers` take."""

    def losses(self, batch: Batch, *, training: bool, seed: tf.Tensor | None = None
               ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return each row's loss [B] in nats, its weight [B], and its answer [B, ...].

        `seed` [2] int32 draws the ids that `TrainConfig.token_dropout` hides.
        """

    def judge(self, answers: np.ndarray, targets: np.ndarray, loss: float) -> dict[str, Any]:
        """Return what is reported of an evaluation: answers [N, ...] as `losses` gave them."""

    def rank(self, judged: dict[str, Any]) -> tuple[float, ...]:
        """Return what must grow for an epoch to count as better."""


def objective_for(task: Task, config: TrainConfig) -> Objective:
    """Return the objective of a task.

    A classifier with `frozen` trains its head on vectors that the backbone computes once.
    """
    if isinstance(task.config, CausalLMConfig):
        return NextId(task, config)
    if task.config.frozen:
        return Head(task, config)
    return Classifier(task, config)


# ---------------------------------------------------------------------------- classifiers


class Classifier:
    """All weights of a classifier."""

    def __init__(self, task: Task, config: TrainConfig) -> None:
        assert isinstance(task.config, ClassifierConfig)
        if config.epoch_steps is not None:
            raise ConfigError("TrainConfig.epoch_steps: expected None for a classifier, which "
                              f"reads every text as a whole, got {config.epoch_steps!r}.")
        self.task = task
        self.config: ClassifierConfig = task.config
        self.train = config
        self.network = task.network
        self.variables = list(self.network.trainable_variables)
        self.buckets = self.config.grid.tokens
        self.pad_id = pad_id(task)
        self.hidden_id = hidden_id(task, config)

    def rows(self, examples: Sequence[Example], *, training: bool, ticker: Ticker) -> RowSet:
        """Read labels and texts; what a text becomes is what the served signature makes of it."""
        return self._encode(examples, training=training, ticker=ticker)

    def _encode(self, examples: Sequence[Example], *, training: bool, ticker: Ticker) -> Rows:
        targets = class_targets(examples, self.config)
        if training:
            check_several_classes(targets, self.config)
        return self.encode(examples, targets, ticker)

    def encode(self, examples: Sequence[Example], targets: np.ndarray, ticker: Ticker) -> Rows:
        """Encode the texts of examples; `targets` [N, ...] go with them as they are."""
        ids, segments = [], []
        for begin in ticker(range(0, len(examples), ENCODE_ROWS), "encode"):
            dense = self.task.preprocess(**self._texts(examples[begin:begin + ENCODE_ROWS]))
            lengths = tf.reduce_sum(tf.cast(dense["mask"], tf.int64), axis=1)
            ids.append(tf.RaggedTensor.from_tensor(dense["ids"], lengths=lengths))
            segments.append(tf.RaggedTensor.from_tensor(dense["segments"], lengths=lengths))
        return Rows(tf.concat(ids, axis=0), tf.concat(segments, axis=0), targets)

    def _texts(self, examples: Sequence[Example]) -> dict[str, tf.Tensor]:
        inputs = {"text": tf.constant([to_bytes(e.text) for e in examples])}
        if self.config.pair:
            inputs["text_pair"] = tf.constant([to_bytes(e.text_pair or "") for e in examples])
        return inputs

    def epoch_rows(self, rows: Any, epoch: int) -> RowSet:
        """All of them."""
        del epoch
        return rows

    def weights(self, rows: RowSet) -> np.ndarray:
        """Every row counts 1."""
        return np.ones(len(rows.targets), np.float32)

    def dataset(self, rows: Any, batches: Plan) -> tf.data.Dataset:
        """Yield ids, mask, segments [B, T], targets [B] or [B, C]."""
        return dataset(rows, batches, pad_id=self.pad_id)

    def losses(self, batch: Batch, *, training: bool, seed: tf.Tensor | None = None
               ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Cross-entropy; the answers are logits [B, C]."""
        ids, mask, segments, targets = batch
        if training:
            ids = hide(ids, mask, self.hidden_id, self.train.token_dropout, seed)
        logits = self.network(ids, mask, segments, training=training)
        return self._compare(logits, targets, training=training)

    def _compare(self, logits: tf.Tensor, targets: tf.Tensor, *, training: bool
                 ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        if self.config.multi_label:
            nats = losses.binary_cross_entropy(logits, targets)
        else:
            smoothing = self.train.label_smoothing if training else 0.0
            nats = losses.cross_entropy(logits, targets, label_smoothing=smoothing)
        return nats, tf.ones_like(nats), logits

    def judge(self, answers: np.ndarray, targets: np.ndarray, loss: float) -> dict[str, Any]:
        """Compare logits [N, C] with targets."""
        logits, count = answers / self.config.temperature, len(self.config.classes)
        if self.config.multi_label:
            found = (tf.sigmoid(logits).numpy() >= np.array(self.config.thresholds)).astype(int)
            extra = {"micro_f1": metrics.micro_f1(found, targets, count)}
        else:
            scores, found = tf.nn.softmax(logits).numpy(), logits.argmax(axis=1)
            extra = {"calibration_error": metrics.calibration_error(
                scores.max(axis=1), found == targets)}
        classes = metrics.per_class(found, targets, count)
        return {"rows": len(targets), "loss": loss, "accuracy": metrics.accuracy(found, targets),
                "macro_f1": metrics.macro_f1(classes), **extra,
                "classes": {name: score._asdict()
                            for name, score in zip(self.config.classes, classes)}}

    def rank(self, judged: dict[str, Any]) -> tuple[float, ...]:
        """Accuracy (of several labels: F1 of all decisions); of equals the lower loss."""
        first = "micro_f1" if self.config.multi_label else "accuracy"
        return judged[first], -judged["loss"]


class Head(Classifier):
    """The dense layers of a classifier whose backbone stays as it is.

    The backbone reads every text once, before the first epoch, without dropout; its pooled vectors
    are the rows from then on. An epoch over 10,000 texts then takes a second instead of minutes.
    """

    def __init__(self, task: Task, config: TrainConfig) -> None:
        super().__init__(task, config)
        if config.token_dropout:
            raise ConfigError("TrainConfig.token_dropout: expected 0 with a frozen backbone, whose "
                              f"vectors are computed once, got {config.token_dropout!r}.")
        self.read_buckets, self.buckets = self.buckets, (0,)

    def rows(self, examples: Sequence[Example], *, training: bool, ticker: Ticker) -> RowSet:
        """Encode, then run the backbone over batches of like length."""
        rows = self._encode(examples, training=training, ticker=ticker)

        def vector(ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor) -> tf.Tensor:
            hidden = self.network.encoder(ids, mask, segments, training=False)
            return self.network.vector(hidden, mask)

        return Vectors(read_all(rows, vector, buckets=self.read_buckets, pad_id=self.pad_id,
                                ticker=ticker, what="read"), rows.targets)

    def dataset(self, rows: Any, batches: Plan) -> tf.data.Dataset:
        """Yield vectors [B, D], targets [B] or [B, C]."""
        return vector_dataset(rows, batches)

    def losses(self, batch: Batch, *, training: bool, seed: tf.Tensor | None = None
               ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Cross-entropy; the answers are logits [B, C]."""
        vectors, targets = batch
        return self._compare(self.network.head(vectors, training=training), targets,
                             training=training)


def read_all(rows: Rows, read: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor], *,
             buckets: Sequence[int], pad_id: int, ticker: Ticker, what: str) -> np.ndarray:
    """Ask a network about every row once, over batches of like length.

    Args:
        rows: N of them.
        read: ids, mask, segments [B, T] -> [B, D].
        buckets: ascending lengths.
        pad_id: stands in the padding.
        ticker: shows how far it is.
        what: it is called there.

    Returns:
        [N, D] float32.
    """
    batches = plan(rows.lengths(), buckets, batch_rows=FEATURE_ROWS, seed=None)
    data = dataset(rows, batches, pad_id=pad_id)
    traced = tf.function(read, input_signature=data.element_spec[:3], autograph=False)
    found = [traced(*batch[:3]).numpy() for batch in ticker(data, what)]
    every = np.empty((len(rows.targets), found[0].shape[1]), np.float32)  # [N, D]
    every[np.concatenate(batches.rows)] = np.concatenate(found)
    return every


# ---------------------------------------------------------------------------- decoders


class NextId:
    """All weights of a decoder.

    Every text is a document of its own: start id (where the packing has one), ids, end id. A long
    one is cut into rows of `TrainConfig.block_tokens` that overlap by one id, so that each id but
    the document's first is asked for once. With `TrainConfig.epoch_steps` training rows are drawn
    anew for each epoch, and begin anywhere.
    """

    def __init__(self, task: Task, config: TrainConfig) -> None:
        assert isinstance(task.config, CausalLMConfig)
        most = task.network.max_positions
        if config.block_tokens > most:
            raise ConfigError(f"TrainConfig.block_tokens: expected at most the decoder's {most} "
                              f"positions, got {config.block_tokens!r}.")
        self.task = task
        self.config: CausalLMConfig = task.config
        self.train = config
        self.network = task.network
        self.variables = list(self.network.trainable_variables)
        # Drawn rows are all of one bucket, so that their number fixes the number of steps.
        shorter = self.config.grid.tokens if config.epoch_steps is None else ()
        self.buckets = (*(width for width in shorter if width < config.block_tokens),
                        config.block_tokens)
        self.pad_id = pad_id(task)
        self.hidden_id = hidden_id(task, config)

    def rows(self, examples: Sequence[Example], *, training: bool, ticker: Ticker) -> RowSet:
        """Encode documents and cut them; the targets are empty, [N, 0].

        Training rows that each epoch draws anew are the whole documents.
        """
        codec = self.task.codec
        start = [codec.start_id] if self.config.packing.start else []
        ends = self.config.end_ids[:1] or ((codec.end_id,) if codec.end_id is not None else ())
        whole = training and self.train.epoch_steps is not None
        step = None if whole else self.train.block_tokens - 1
        blocks: list[np.ndarray] = []
        for example in ticker(examples, "encode"):
            # As a whole, as serving reads a prompt: cut, each part would begin like a text.
            ids = codec.encode(tf.constant([to_bytes(example.text)])).ids.values.numpy()
            blocks += cut(np.concatenate([start, ids, ends]).astype(np.int32), step)
        if not blocks:
            raise DataError("text: expected texts of at least two ids, got none.")
        return _id_rows(blocks)

    def epoch_rows(self, rows: Any, epoch: int) -> RowSet:
        """All of them, or as many as `epoch_steps` steps take, drawn from the documents."""
        steps, width = self.train.epoch_steps, self.train.block_tokens
        if steps is None:
            return rows
        drawn = draw(rows.lengths(), block_tokens=width, count=steps * self.train.batch_rows,
                     seed=self.train.seed, epoch=epoch)
        values, splits = rows.ids.values.numpy(), rows.ids.row_splits.numpy()
        return _id_rows([values[splits[document] + start:splits[document + 1]][:width]
                         for document, start in zip(*drawn)])

    def weights(self, rows: RowSet) -> np.ndarray:
        """Every id that is asked for counts 1."""
        return (rows.lengths() - 1).astype(np.float32)

    def dataset(self, rows: Any, batches: Plan) -> tf.data.Dataset:
        """Yield ids, mask, segments [B, T], targets [B, 0]."""
        return dataset(rows, batches, pad_id=self.pad_id)

    def losses(self, batch: Batch, *, training: bool, seed: tf.Tensor | None = None
               ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Cross-entropy of each next id; there are no answers, [B, 0]."""
        ids, mask, _, targets = batch
        seen = (hide(ids, mask, self.hidden_id, self.train.token_dropout, seed) if training
                else ids)
        nats, counts = losses.next_id(self.network(seen, mask, training=training), ids, mask)
        return nats, counts, targets

    def judge(self, answers: np.ndarray, targets: np.ndarray, loss: float) -> dict[str, Any]:
        """Report the loss of an id and the perplexity."""
        return {"rows": len(targets), "loss": loss, "perplexity": metrics.perplexity(loss)}

    def rank(self, judged: dict[str, Any]) -> tuple[float, ...]:
        """The lower loss."""
        return (-judged["loss"],)


# ---------------------------------------------------------------------------- ids


def cut(document: np.ndarray, step: int | None) -> list[np.ndarray]:
    """Cut ids [T] into rows of at most step + 1 that overlap by one id; None cuts nothing.

    A document of fewer than two ids asks for none, and gives no row.
    """
    asked = max(len(document) - 1, 0)
    step = step or max(asked, 1)
    return [document[begin:begin + step + 1] for begin in range(0, asked, step)]


def _id_rows(blocks: Sequence[np.ndarray]) -> Rows:
    """Ids of each row, one segment, no targets."""
    ids = tf.RaggedTensor.from_row_lengths(
        np.concatenate(blocks), [len(block) for block in blocks])
    return Rows(ids, tf.zeros_like(ids), np.zeros((len(blocks), 0), np.float32))


def hide(ids: tf.Tensor, mask: tf.Tensor, hidden_id: int, share: float, seed: tf.Tensor | None
         ) -> tf.Tensor:
    """Replace a share of the real ids [B, T] by `hidden_id`, drawn anew for each seed."""
    if not share or seed is None:
        return ids
    drawn = tf.random.stateless_uniform(tf.shape(ids), seed) < share
    return tf.where(drawn & mask, hidden_id, ids)


def pad_id(task: Task) -> int:
    """Return an id for the padding; the mask says where it is, so any will do."""
    codec = task.codec
    return codec.pad_id if codec.pad_id is not None else codec.end_id or 0


def hidden_id(task: Task, config: TrainConfig) -> int:
    """Return the id that stands for a hidden one: the codec's unknown id, else its pad id."""
    codec = task.codec
    if codec.unknown_id is not None:
        return codec.unknown_id
    if codec.pad_id is None and config.token_dropout:
        raise ConfigError("TrainConfig.token_dropout: expected 0, since the tokenizer has neither "
                          f"an unknown nor a pad token, got {config.token_dropout!r}.")
    return codec.pad_id or 0


def digest(*row_sets: RowSet | None) -> str:
    """Return a fingerprint of encoded rows, which says whether a run goes on with its own data."""
    found = hashlib.sha256()
    for rows in row_sets:
        for part in rows or ():
            array = part.values.numpy() if isinstance(part, tf.RaggedTensor) else part
            found.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        if isinstance(rows, Rows):
            found.update(rows.lengths().tobytes())
    return found.hexdigest()
