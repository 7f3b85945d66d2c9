"""What a run costs beside its tokens, learned from runs that were seen.

Pure. A run takes about constant + slope x padded tokens, in seconds. The text scheduler asks for
constant / slope: how many tokens' time one run less would save. A large network has a small one
and a tiny network a large one, so no fixed number does (`benchmarks/scheduling.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

MEMORY = 0.98  # weight of the past at each new run: about the last fifty count
ENOUGH = 10.0  # runs, so weighted, before the fit is believed
SPREAD = 0.05  # variance of the tokens by their squared mean below which no slope can be told


@dataclass(frozen=True, slots=True)
class Pace:
    """Weighted sums over the runs of one signature, newer ones with more weight.

    Attributes:
        runs, tokens, seconds, squares, products: sums of 1, x, y, x x and x y over padded tokens x
            and seconds y.
    """

    runs: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def seen(self, tokens: int, seconds: float) -> Pace:
        """Return the sums with one more run of so many padded tokens in them."""
        return Pace(MEMORY * self.runs + 1.0, MEMORY * self.tokens + tokens,
                    MEMORY * self.seconds + seconds, MEMORY * self.squares + tokens * tokens,
                    MEMORY * self.products + tokens * seconds)

    def run_tokens(self, default: float, *, most: float = 4096.0) -> float:
        """Return constant / slope of the least-squares line, from 0 to `most`.

        Args:
            default: the answer while too few runs were seen, or all of about one size.
            most: the answer when tokens seem to cost nothing.
        """
        spread = self.runs * self.squares - self.tokens ** 2
        if self.runs < ENOUGH or spread <= SPREAD * self.tokens ** 2:
            return min(default, most)
        slope = (self.runs * self.products - self.tokens * self.seconds) / spread
        constant = (self.seconds - slope * self.tokens) / self.runs
        if constant <= 0:
            return 0.0
        return most if slope * most <= constant else constant / slope
