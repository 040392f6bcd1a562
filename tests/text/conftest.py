from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from ggtune.cli import cli

Ggtune = Callable[..., Result]


@pytest.fixture
def ggtune() -> Ggtune:
    """Run a command line in this process; paths may stand among the arguments."""
    return lambda *arguments: CliRunner().invoke(cli, [str(argument) for argument in arguments])
