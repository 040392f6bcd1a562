"""How far an evaluation is: a bar on a terminal, a line now and then anywhere else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from ggtune.run.progress import Reporter, format_duration

_SAY_EVERY_S = 30.0


@contextmanager
def showing(what: str, total: int, done: int, reporter: Reporter) -> Iterator[Callable[[], None]]:
    """Give what is to be called for each of the ``total`` that is done; ``done`` of them were before."""
    n, begun = done, time.monotonic()
    said = begun
    with tqdm(total=total, initial=done, desc=what, unit="", leave=False, disable=None, dynamic_ncols=True) as bar:

        def advance() -> None:
            nonlocal n, said
            n += 1
            bar.update()
            now = time.monotonic()
            if bar.disable and now - said >= _SAY_EVERY_S and n < total:
                said = now
                left_s = (now - begun) / (n - done) * (total - n)
                reporter.note(f"{what}: {n} of {total}, about {format_duration(left_s)} left")

        yield advance
