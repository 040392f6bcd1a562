"""A bar for measurements that know how much there is to do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Give what is to be told how much is done, of how much; shown on a terminal alone."""
    from tqdm import tqdm

    with tqdm(unit=f" {unit}", leave=False, disable=None, dynamic_ncols=True) as shown:

        def done(n: int, of: int) -> None:
            shown.total = of
            shown.update(n - shown.n)

        yield done
