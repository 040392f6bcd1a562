"""Hugging Face checkpoints to GGUF, by the converter of the llama.cpp that ggtune is built with.

The converter is a Python program with a package of its own (``conversion``), installed beside this one. It runs in a
process of its own: it imports torch, and a ``gguf`` of its own version.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ggtune.errors import GgtuneError, ModelError
from ggtune.files import making_folder, replacing

_SCRIPT = "convert_hf_to_gguf.py"
_PACKAGES = ("torch", "transformers", "safetensors", "sentencepiece")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "tokenizer.jsonl", "*.tiktoken")
_BYTES_PER_WEIGHT = {"f32": 4.0, "q8_0": 1.07}  # of other types 2
_KEPT_LINES = 20
# A file of these types has tensors that always need an importance matrix.
_IMATRIX_TYPES = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}


def converter_folder() -> Path:
    """Return where llama.cpp's converter lies. Raises :class:`GgtuneError` where it does not."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_vendor" / "llama.cpp", package.parents[1] / "vendor" / "llama.cpp"):
        if (folder / _SCRIPT).is_file():
            return folder
    raise GgtuneError(f"llama.cpp's converter ({_SCRIPT}) is not installed: install ggtune again (`pip install .`)")


def import_checkpoint(
    folder: Path,
    output: Path,
    *,
    outtype: str = "auto",
    file_type: str | None = None,
    trust_remote_code: bool = False,
    threads: int = 0,
    echo: Callable[[str], None] = lambda line: None,
) -> None:
    """Write the model in ``folder`` to ``output``, whole or not at all, and never ask the network for anything.

    ``outtype`` is the converter's ("auto", "f16", "bf16", "f32", "q8_0"); with ``file_type`` ("Q4_K_M", ...) the file
    is quantized afterwards. ``trust_remote_code`` lets the converter run Python files of the checkpoint, which are
    else kept from it. ``echo`` gets the converter's lines. Raises :class:`GgtuneError` for what is missing or can't be
    converted.
    """
    from ggtune._native import core
    from ggtune.interchange.quantize import QuantizeOptions, check_file_type, quantize_file

    n_bytes = int(_count_weights_of(folder) * _BYTES_PER_WEIGHT.get(outtype, 2))
    _check_packages()
    if file_type is not None:
        check_file_type(file_type)
        if file_type.upper() in _IMATRIX_TYPES:
            raise GgtuneError(
                f"{file_type} needs an importance matrix: import the model first, then `ggtune quantize` it with "
                "--imatrix-data"
            )
    with making_folder(output.parent):
        target = output if file_type is None else output.with_name(output.name + f".{os.getpid()}.16bit")
        try:
            with replacing(target, needed_bytes=n_bytes, prefix=".ggtune-import-") as temporary:
                with _shown(folder, trust_remote_code) as shown:
                    _convert(shown, temporary, outtype, folder, echo)
                core.check_gguf(str(temporary))
            if file_type is not None:
                quantize_file(str(target), output, file_type, QuantizeOptions(threads=threads))
        finally:
            if file_type is not None:
                target.unlink(missing_ok=True)


def _check_packages() -> None:
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise GgtuneError(
            f"to import a checkpoint, {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: "
            "pip install 'ggtune[import]' (torch's build for the CPU is enough)"
        )


def _count_weights_of(folder: Path) -> int:
    """Raise where a checkpoint has not all its files; returns its number of weights, 0 where it is unknown."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder: give that of a Hugging Face checkpoint (it is not downloaded)")
    config = _read_json(folder / "config.json")
    if config is None:
        raise ModelError(f"{folder} has no config.json: it is no Hugging Face checkpoint")
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise ModelError(f"{folder} has no tokenizer: get tokenizer.json or tokenizer.model of the model too")
    needed = set()
    for index in folder.glob("*.index.json"):
        needed |= set((_read_json(index) or {}).get("weight_map", {}).values())
    if missing := sorted(name for name in needed if not (folder / name).is_file()):
        raise ModelError(f"{folder} is not complete: {', '.join(missing)} are missing")
    parts = sorted(folder.glob("*.safetensors"))
    if not parts and not any(folder.glob("*.bin")):
        raise ModelError(f"{folder} has no weights (*.safetensors)")
    return sum(_count_weights(part) for part in parts)


def _count_weights(path: Path) -> int:
    from safetensors import SafetensorError, safe_open

    total = 0
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                size = 1
                for n in file.get_slice(name).get_shape():
                    size *= n
                total += size
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or truncated: {error}") from error
    return total


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} can't be read: it is no JSON object")
    return found


@contextmanager
def _shown(folder: Path, trust_remote_code: bool) -> Iterator[Path]:
    """Give the checkpoint, or one without the parts that name Python code, which the converter would run."""
    configs = {path.name: _read_json(path) or {} for path in folder.glob("*.json") if path.name.endswith("config.json")}
    if trust_remote_code or not any("auto_map" in config for config in configs.values()):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="ggtune-import-") as work:
        view = Path(work) / (folder.resolve().name or "model")  # the converter takes the model's name from it
        view.mkdir()
        for path in folder.iterdir():
            if path.suffix != ".py" and path.name not in configs:
                (view / path.name).symlink_to(path.resolve())
        for name, config in configs.items():
            config.pop("auto_map", None)
            (view / name).write_text(json.dumps(config), encoding="utf-8")
        yield view


def _convert(shown: Path, output: Path, outtype: str, folder: Path, echo: Callable[[str], None]) -> None:
    script = converter_folder() / _SCRIPT
    arguments = [sys.executable, str(script), str(shown.resolve()), "--outfile", str(output), "--outtype", outtype]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment = {**os.environ, **offline, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    kept: deque[str] = deque(maxlen=_KEPT_LINES)
    with subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:  # a progress bar's carriage returns end lines too
                if line.strip() and not re.match(r"\s*Writing: +(?!100%)", line):
                    kept.append(line.rstrip())
                    echo(line.rstrip())
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise GgtuneError(f"{folder} can't be converted: {_reason(list(kept), process.returncode)}")


def _reason(lines: list[str], status: int) -> str:
    """What the converter's last lines say, and what to do about it."""
    text = "\n".join(lines)
    if match := re.search(r"Model (\S+) is not supported", text):
        return f"llama.cpp's converter knows no model of the architecture {match[1]}"
    if match := re.search(r"ModuleNotFoundError: No module named '([^']+)'", text):
        return f"the package {match[1]} is missing: pip install 'ggtune[import]', or {match[1]} itself"
    if "pre-tokenizer was not recognized" in text:
        return "llama.cpp's converter doesn't know the model's tokenizer (its pre-tokenizer); a newer ggtune may"
    if "requires you to execute" in text or "trust_remote_code" in text:
        return "it needs Python code that lies in the checkpoint: look at it, and give --trust-remote-code"
    if status < 0:
        return f"the converter was ended by signal {-status} (out of memory?)"
    return lines[-1] if lines else f"the converter ended with status {status}"
