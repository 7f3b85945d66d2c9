"""Labels of texts, by which golden samples are chosen. Needs no TensorFlow."""

from types import SimpleNamespace

import numpy as np

from tf_infer.cli.proof import predicted_classes


def task(rows, outputs):
    spec = SimpleNamespace(inputs=[SimpleNamespace(name="text")],
                           outputs=[SimpleNamespace(name=name) for name in outputs])
    return SimpleNamespace(signatures=lambda: {"serving_default": SimpleNamespace(spec=spec)},
                           config=SimpleNamespace(grid=SimpleNamespace(rows=rows)))


def test_every_text_gets_its_own_label_though_texts_of_like_length_are_asked_together():
    asked = []

    def reference(_signature, inputs):
        asked.append([len(text) for text in inputs["text"]])
        return {"label": np.array([b"of " + text for text in inputs["text"]], dtype=object)}

    texts = [b"nine words", b"b", b"sixteen of words", b"cc", b"a", b"the longest of them all"]
    assert predicted_classes(reference, task((1, 2), ["label", "scores"]), texts) == [
        "of " + text.decode() for text in texts]
    assert asked == [[1, 1], [2, 10], [16, 23]]


def test_a_task_without_labels_asks_nothing():
    def reference(*_asked):
        raise AssertionError("asked")

    assert predicted_classes(reference, task((1,), ["embedding"]), [b"a"]) is None
