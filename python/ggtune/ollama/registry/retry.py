"""When to try again, and for how long to wait before that."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from ggtune.ollama.registry.errors import RegistryError, TransientError

TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class RetryPolicy:
    """Back-off doubles from ``first_wait_s``; a server's Retry-After counts where it is longer."""

    retries: int = 5  # in a row without any progress
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    longest_retry_after_s: float = 300.0


class Retries:
    """Counts the failures of one piece of work. ``note`` hears of each."""

    def __init__(self, policy: RetryPolicy, note: Callable[[str], None]) -> None:
        self._policy = policy
        self._note = note
        self._failures = 0

    def progressed(self) -> None:
        """Begin to count anew."""
        self._failures = 0

    def wait(self, error: RegistryError) -> None:
        """Sleep before the next try. Raises :class:`RegistryError` where there is none."""
        self._failures += 1
        policy = self._policy
        if self._failures > policy.retries:
            tries = "1 try" if self._failures == 1 else f"{self._failures} tries"
            raise RegistryError(f"{error} Given up after {tries}; the same command goes on from here.")
        asked_s = error.retry_after_s if isinstance(error, TransientError) else 0.0
        if asked_s > policy.longest_retry_after_s:
            raise RegistryError(f"{error} The server asks to come back in {asked_s:.0f} s.")
        doubled_s = min(policy.longest_wait_s, policy.first_wait_s * 2 ** (self._failures - 1))
        wait_s = max(asked_s, doubled_s * random.uniform(0.5, 1.0))  # clients that failed together come back apart
        self._note(f"{error} Trying again in {wait_s:.1f} s ({self._failures} of {policy.retries}).")
        time.sleep(wait_s)


def retry_after_s(value: str | None) -> float:
    """Seconds that a Retry-After header (RFC 9110, 10.2.3) asks for: a number or a date; 0 where it is neither."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())
