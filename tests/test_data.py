"""The data set that ships with the project: size, balance, and that the test rows are separate."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "tf_infer" / "data" / "support"


def rows(name: str) -> list[dict[str, str]]:
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def letters(text: str) -> str:
    """Return the text without case, white space and punctuation."""
    return re.sub(r"[\W_]+", "", text.lower())


def test_both_parts_hold_every_intent_in_both_languages() -> None:
    train, test, replies = rows("train"), rows("test"), rows("replies")
    assert len(train) >= 600
    assert len(test) >= 150
    intents = {row["label"] for row in train}
    assert len(intents) >= 10
    for part, least in ((train, 15), (test, 4), (replies, 3)):
        counts = Counter((row["label"], row["language"]) for row in part)
        assert set(counts) == {(intent, code) for intent in intents for code in ("en", "zh")}
        assert min(counts.values()) >= least


def test_no_text_stands_twice_or_on_both_sides() -> None:
    texts = [letters(row["text"]) for name in ("train", "test") for row in rows(name)]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_the_language_is_what_it_says() -> None:
    for name in ("train", "test", "replies"):
        for row in rows(name):
            chinese = re.search(r"[\u4e00-\u9fff]", row["text"]) is not None
            assert row["language"] == ("zh" if chinese else "en")


def test_the_readme_states_the_counts() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in ("train", "test", "replies"):
        assert f"| `{name}.jsonl` | {len(rows(name))} |" in readme
