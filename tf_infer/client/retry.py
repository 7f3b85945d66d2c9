"""RetryPolicy, and the pure function that plans the next attempt."""

from __future__ import annotations

from dataclasses import dataclass

from tf_infer.errors import Code, ConfigError, is_retryable


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """When a call that failed is sent again. Only codes that `errors.TABLE` calls retryable are.

    Attributes:
        attempts: calls in all, the first one included; 1 never retries.
        initial_backoff_s: wait before the second attempt.
        multiplier: how much longer each wait is than the one before.
        max_backoff_s: the longest wait.
        jitter: share of each wait that is left to chance, so that callers do not return together.
    """

    attempts: int = 4
    initial_backoff_s: float = 0.05
    multiplier: float = 2.0
    max_backoff_s: float = 2.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        for name, rule, good in (
                ("attempts", ">= 1", self.attempts >= 1),
                ("initial_backoff_s", "seconds >= 0", self.initial_backoff_s >= 0),
                ("multiplier", ">= 1", self.multiplier >= 1),
                ("max_backoff_s", "seconds >= initial_backoff_s",
                 self.max_backoff_s >= self.initial_backoff_s),
                ("jitter", "a share from 0 to 1", 0 <= self.jitter <= 1)):
            if not good:
                raise ConfigError(f"RetryPolicy.{name}: expected {rule}, "
                                  f"got {getattr(self, name)!r}.")


NO_RETRY = RetryPolicy(attempts=1)


def plan_retry(policy: RetryPolicy, *, attempt: int, code: Code, elapsed_s: float,
               timeout_s: float | None, elsewhere: bool, draw: float) -> float | None:
    """Decide whether a failed call is sent again, and when.

    Args:
        policy: the rules.
        attempt: number of the attempt that failed, from 1.
        code: how it failed.
        elapsed_s: since the first attempt began.
        timeout_s: for all attempts together; None for no limit.
        elsewhere: another address is up; after UNAVAILABLE it is asked at once.
        draw: a random number from 0 to 1.

    Returns:
        seconds to wait before the next attempt, or None to give up: the code is not safe to repeat,
        the attempts are used up, or the wait would not end inside the time given.
    """
    if attempt >= policy.attempts or not is_retryable(code):
        return None
    if elsewhere and code is Code.UNAVAILABLE:
        wait_s = 0.0
    else:
        longest_s = min(policy.initial_backoff_s * policy.multiplier ** (attempt - 1),
                        policy.max_backoff_s)
        wait_s = longest_s * (1.0 - policy.jitter * draw)
    if timeout_s is not None and elapsed_s + wait_s >= timeout_s:
        return None
    return wait_s
