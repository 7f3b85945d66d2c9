"""What made an answer, a label or a token: the influence of each token, as a picture in HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FOR, AGAINST = (33, 102, 172), (178, 24, 43)  # blue and red, told apart by the colour-blind
PAIR_BREAK = "\u2003|\u2003"


@dataclass(frozen=True, slots=True)
class Influence:
    """One token of a text.

    Attributes:
        text: its characters as they stand in the text.
        start, end: where, in characters.
        value: what it adds to the score of what is explained, by integrated gradients.
        left_out: what that score loses when this token alone is taken away.
        segment: 0, or 1 in the second text of a pair.
    """

    text: str
    start: int
    end: int
    value: float
    left_out: float
    segment: int = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """What made the answer for one text (in a notebook it shows itself as coloured text).

    Attributes:
        label: the class that is explained; of a decoder what the token spells.
        score: its logit; of a token its log-probability, nats.
        baseline: the same for no text at all.
        tokens: in the order of the text; their values add up to `score - baseline`.
        error: how far they do not.
        texts: the text, and the second one of a pair; of a decoder prompt and continuation as one.
        unit: what the score is.
        id: of the token that is explained; None of a class.
    """

    label: str
    score: float
    baseline: float
    tokens: tuple[Influence, ...]
    error: float
    texts: tuple[str, ...]
    unit: str = "logit"
    id: int | None = None

    def top(self, count: int) -> tuple[Influence, ...]:
        """Return the `count` tokens with the largest values, largest first."""
        return tuple(sorted(self.tokens, key=lambda token: -token.value)[:count])

    @property
    def shown(self) -> str:
        """The label; a token in quotation marks, for it may begin with a space."""
        return self.label if self.id is None else json.dumps(self.label, ensure_ascii=False)

    def to_html(self) -> str:
        """Return the text as HTML, blue for the answer and red against it; nothing else is needed.

        A token's title tells both its figures.
        """
        most = max((abs(token.value) for token in self.tokens), default=0.0) or 1.0
        parts = [_coloured(text, [token for token in self.tokens if token.segment == segment], most)
                 for segment, text in enumerate(self.texts)]
        return ('<div style="font-family:sans-serif;line-height:1.9"><b>'
                f"{html.escape(self.shown)}</b> <small>{self.unit} {self.score:.2f}, without the "
                f"text {self.baseline:.2f}, unexplained {self.error:.1g}</small><br>"
                f'<span style="white-space:pre-wrap">{PAIR_BREAK.join(parts)}</span></div>')

    def _repr_html_(self) -> str:
        return self.to_html()


def _coloured(text: str, tokens: Sequence[Influence], most: float) -> str:
    parts, place = [], 0
    for token in sorted(tokens, key=lambda one: one.start):
        start, end = max(token.start, place), max(token.end, place)
        parts.append(html.escape(text[place:start]))
        if end > start:
            red, green, blue = FOR if token.value >= 0 else AGAINST
            share = abs(token.value) / most
            dark = "white" if share > 0.65 else "black"
            parts.append(
                f'<span title="{token.value:+.3f}, left out {token.left_out:+.3f}" '
                f'style="background:rgba({red},{green},{blue},{share:.2f});color:{dark};'
                f'border-radius:3px">{html.escape(text[start:end])}</span>')
        place = end
    return "".join([*parts, html.escape(text[place:])])


def explanation(outputs: dict[str, np.ndarray], row: int, texts: Sequence[bytes]) -> Explanation:
    """Return one row of the signature `explain`, of a classifier or of a decoder.

    Args:
        outputs: of the signature.
        row: which.
        texts: its text as it was sent, and the second one of a pair; of a decoder prompt and
            continuation as one.
    """
    of_token = "token" in outputs
    starts, ends = outputs["starts"][row], outputs["ends"][row]
    inside = np.flatnonzero((outputs["mask"][row] > 0) & (ends > starts))
    segments = outputs["segments"][row] if "segments" in outputs else np.zeros_like(starts)
    tokens = []
    for place in inside.tolist():
        text = texts[int(segments[place])]
        # From bytes to characters; a token may hold part of a character (byte-level BPE).
        start, end = (len(text[:int(edge)].decode("utf-8", "ignore"))
                      for edge in (starts[place], ends[place]))
        tokens.append(Influence(
            text=text[int(starts[place]):int(ends[place])].decode("utf-8", "replace"),
            start=start, end=end, value=float(outputs["attributions"][row, place]),
            left_out=float(outputs["left_out"][row, place]), segment=int(segments[place])))
    label = bytes(outputs["token" if of_token else "label"][row]).decode("utf-8", "replace")
    return Explanation(
        label=label, unit="log-probability" if of_token else "logit",
        id=int(outputs["id"][row]) if of_token else None,
        score=float(outputs["score"][row]), baseline=float(outputs["baseline"][row]),
        tokens=tuple(tokens), error=float(outputs["completeness_error"][row]),
        texts=tuple(text.decode("utf-8", "replace") for text in texts))
