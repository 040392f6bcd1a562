"""Run command lines one after another in this process: a program, for tests in which one may end the process.

Reads a JSON array of argument lists from its input; writes a line of JSON for each: status, output, error output.
"""

import json
import sys

from click.testing import CliRunner

from ggtune.cli import cli


def main() -> None:
    """Run them."""
    for arguments in json.load(sys.stdin):
        result = CliRunner().invoke(cli, arguments)
        print(json.dumps([result.exit_code, result.stdout, result.stderr]), flush=True)


if __name__ == "__main__":
    main()
