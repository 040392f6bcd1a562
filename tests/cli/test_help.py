import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ggtune.cli import cli

COMMANDS = [
    "run",
    "train",
    "sweep",
    "plan",
    "devices",
    "inspect",
    "models",
    "preview",
    "check-data",
    "resume",
    "status",
    "watch",
    "board",
    "report",
    "stop",
    "export-lora",
    "quantize",
    "import",
    "export-peft",
    "verify",
    "eval",
    "compare",
    "diagnose",
    "eval-choice",
    "eval-general",
    "package",
    "push",
    "pull",
    "publish",
    "ask",
    "text",
    "convert",
    "finetune",
    "demo",
]


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.stdout


def test_every_command_is_listed() -> None:
    listed = CliRunner().invoke(cli, ["--help"]).stdout.split("Commands:")[1]
    assert re.findall(r"^  ([a-z-]+) ", listed, re.MULTILINE) == COMMANDS


def test_version() -> None:
    assert re.fullmatch(r"ggtune \d\S*\n", CliRunner().invoke(cli, ["--version"]).stdout)


@pytest.mark.parametrize(
    "code",
    [
        "import ggtune",
        "from ggtune.cli import cli; cli(['--help'], standalone_mode=False)",
        "from ggtune.cli import cli; cli(['train', '--help'], standalone_mode=False)",
        "from ggtune.cli import cli; cli(['push', '--help'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    heavy = "numpy", "pandas", "gguf", "jinja2", "tqdm", "httpx", "ggtune._core"
    show = f"import sys; print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("arguments", [["trian"], ["train", "--bogus"], ["train", "--out", "x"], ["ask"]])
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
