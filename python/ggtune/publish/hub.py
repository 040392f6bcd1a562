"""Upload of a run to a Hugging Face hub, through huggingface_hub: one commit, so that all of it arrives or nothing."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from ggtune.errors import GgtuneError
from ggtune.ollama.parameters import plain_parameters
from ggtune.publish.base_model import License
from ggtune.publish.card import loss_plot, model_card
from ggtune.publish.run_folder import RunFolder

LOSS_PICTURE = "loss.png"
_TIMEOUT_S = 300.0  # without a byte in either direction; huggingface_hub itself waits for ever

# what `ollama run hf.co/...` reads beside the model (https://huggingface.co/docs/hub/ollama)
_OLLAMA_FILES = ("template", "system", "params")


@dataclass(frozen=True)
class Upload:
    """One file of the repository: its path there, and a local file or the bytes."""

    name: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


def check_repository(repository: str) -> None:
    """Raise :class:`GgtuneError` for a name that no hub takes. The rules are huggingface_hub's own."""
    hub = _huggingface_hub()
    try:
        hub.utils.validate_repo_id(repository)
    except hub.errors.HFValidationError as error:
        raise GgtuneError(f'"{repository}" is no repository: {error}') from None
    if "/" not in repository:
        raise GgtuneError(f'"{repository}" names no owner: give OWNER/{repository}.')


def uploads(
    run: RunFolder,
    repository: str,
    *,
    license_: License | None = None,
    base_models: Sequence[str] = (),
    card: str | None = None,
    examples: bool = True,
) -> list[Upload]:
    """List what goes into the repository: GGUF files, Ollama's ``template``, ``system`` and ``params``, the card.

    ``license_`` and ``base_models`` stand for what the base's own file says; ``card`` is used in place of one that is
    written here, which has ``examples`` of questions and answers and a picture of the loss. Raises :class:`GgtuneError`
    where nothing says the licence.
    """
    name = re.sub(r"[-_.]gguf$", "", repository.partition("/")[2], flags=re.IGNORECASE) or "model"
    names = {}
    found = []
    if run.merged is not None:
        kind = run.header.file_type
        names["merged"] = f"{name}.gguf" if kind == "unknown" else f"{name}-{kind}.gguf"
        found.append(Upload(names["merged"], run.merged))
    if run.adapter is not None:
        names["adapter"] = f"{name}-lora.gguf"
        found.append(Upload(names["adapter"], run.adapter))
    license_text = ""
    if run.modelfile is not None:
        parameters = plain_parameters(run.modelfile.parameters)
        params = json.dumps(parameters, ensure_ascii=False, indent=2) + "\n" if parameters else None
        for file_name, text in zip(_OLLAMA_FILES, (run.modelfile.template, run.modelfile.system, params), strict=True):
            if text:
                found.append(Upload(file_name, text.encode()))
        # what the model file says is mostly a name, and in the card
        license_text = "\n\n".join(text for text in run.modelfile.license if text != run.header.license)
    if license_text:
        found.append(Upload("LICENSE", license_text.encode()))
    if card is None:
        license_ = license_ or run.base.license
        if license_ is None:
            raise GgtuneError(
                f"{run.base.file_name or run.path}: no file here names the licence of the base model. Look it up where "
                "you have the model from, and give it: --license ID, such as apache-2.0, llama3.2 or gemma."
            )
        bases = tuple(base_models) or run.base.repositories
        if (plot := loss_plot(run)) is not None:
            names["loss"] = LOSS_PICTURE
            found.append(Upload(LOSS_PICTURE, plot.png()))
        has_file = bool(license_text)
        card = model_card(run, repository, names, license_, bases, has_license_file=has_file, examples=examples)
    found.append(Upload("README.md", card.encode()))
    return found


def publish(
    files: Sequence[Upload],
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    endpoint: str | None = None,
    message: str,
) -> str:
    """Make the repository (and the branch ``revision``) where it is missing, and commit ``files`` to it.

    Returns the address of the commit. The token is huggingface_hub's: ``HF_TOKEN``, or what ``hf auth login`` has
    stored. Raises :class:`GgtuneError` without one, for one that is refused, for a name that is, for a hub that does
    not answer or cuts the connection, and where the repository should be private and is there already in the open. No
    message holds the token.
    """
    hub = _huggingface_hub()
    check_repository(repository)
    token = hub.get_token()
    if not token:
        raise GgtuneError(
            "No token for the hub: log in with `hf auth login`, or put one with the right to write in HF_TOKEN."
        )
    api = hub.HfApi(endpoint=endpoint, token=token)
    with _quiet(hub), _user_errors(hub, api.endpoint, repository, token):
        # the client is shared by all that huggingface_hub does
        hub.utils.get_session().timeout = _TIMEOUT_S
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise GgtuneError(
                f"{repository} is there already, and everybody can read it: nothing was uploaded. Make it private in "
                "its settings, or leave out --private."
            )
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        operations = [hub.CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file.source) for file in files]
        commit = api.create_commit(repository, operations, commit_message=message, revision=revision)
    return str(commit.commit_url)


def _huggingface_hub() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise GgtuneError('Publishing to a hub needs huggingface_hub: pip install "ggtune[hub]"') from error
    return huggingface_hub


@contextmanager
def _quiet(hub: ModuleType) -> Iterator[None]:
    """Keep the library's log to errors: its warnings of a retry quote addresses that are signed to upload to.

    Its progress bars are for terminals.
    """
    before = hub.utils.logging.get_verbosity()
    hub.utils.logging.set_verbosity_error()
    hide_bars = not sys.stderr.isatty() and not hub.utils.are_progress_bars_disabled()
    if hide_bars:
        hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        hub.utils.logging.set_verbosity(before)
        if hide_bars:
            hub.utils.enable_progress_bars()


@contextmanager
def _user_errors(hub: ModuleType, endpoint: str, repository: str, token: str) -> Iterator[None]:
    """Turn what comes out of the library into a message; its HTTP client differs from version to version."""
    try:
        yield
    except (GgtuneError, KeyboardInterrupt):
        raise
    except Exception as error:
        # the cause may hold the token in a request's headers, and is shown by --debug alone
        text = _explanation(hub, error, repository).replace(token, "***")
        raise GgtuneError(f"{urlsplit(endpoint).netloc}: {text}") from error


def _explanation(hub: ModuleType, error: BaseException, repository: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        return "answered something that is not JSON: is --endpoint or HF_ENDPOINT a hub?"
    if isinstance(error, ValueError) and not isinstance(error, hub.errors.HfHubHTTPError):
        return _plain(error)  # of the card's metadata
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, hub.errors.HfHubHTTPError):
            return _refusal(cause, repository)
    for cause in chain:
        if isinstance(cause, hub.errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, which keeps huggingface_hub from asking any hub. Unset it."
        kind = type(cause).__name__
        if kind in ("ConnectError", "ConnectTimeout"):
            return f"does not answer ({_plain(cause)}). Is --endpoint or HF_ENDPOINT right, and the network there?"
        if "xet-write-token" in str(cause) and "404" in str(cause):
            return "has no Xet storage, which huggingface_hub wants to upload to: set HF_HUB_DISABLE_XET=1."
        if "Timeout" in kind:
            return f"has stopped answering ({kind}). Nothing was committed; try again."
        if isinstance(cause, (hub.errors.HfHubHTTPError.__bases__[0], ConnectionError)):
            return f"the connection was cut ({_plain(cause) or kind}). Nothing was committed; try again."
    texts = dict.fromkeys(_plain(cause) or type(cause).__name__ for cause in (error, chain[-1]))
    return ": ".join(text.rstrip(".") for text in texts)


def _refusal(error: Any, repository: str) -> str:
    status = error.response.status_code
    said = f" ({_plain(error.server_message)})" if error.server_message else ""
    if status == 401:
        return f"the token is refused{said}. Log in again with `hf auth login`, or mend HF_TOKEN."
    if status == 403:
        return (
            f"the token has no right to write to {repository}{said}. Make one with that right, or take another owner."
        )
    if status == 404:
        return f"there is no {repository}, or the token may not see it, or this is no hub{said}."
    if status == 429:
        return f"too many requests{said}. Wait, and try again."
    return f"refused with HTTP status {status}{said}."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _plain(text: object) -> str:
    """Put a message on one line, without the queries of addresses: they can hold signatures."""
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", " ".join(str(text).split()))[:500]
