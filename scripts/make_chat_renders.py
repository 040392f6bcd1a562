"""Make ``tests/data/golden/chat_renders.json``: what transformers renders with many models' chat templates.

    python scripts/make_chat_renders.py

The templates are those of the vendored llama.cpp (``models/templates``) and of ``tests/ollama/gguf_samples.py``; the
conversations are ``CHATS`` of ``tests/data/chats.py``, those that call tools in every way to write such a message
(``ggtune.data.messages.STYLES``). Of each there is the whole text, and the text up to the last
answer with a generation prompt; of a long text its hash (``chats.digest``), and null where the template refuses or
fails. Needs transformers (the committed file: 5.24.0), which ggtune itself does not.
"""

import json
import sys
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import _compile_jinja_template

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests/data"), str(ROOT / "tests/ollama")]

from chats import BOS, CHATS, EOS, NOW, as_messages, digest, golden_name, sources, styles_of  # noqa: E402


def render(source: str, messages: list[dict[str, Any]], tools: list[Any] | None, *, ask: bool) -> str | None:
    template = _compile_jinja_template(source)
    template.environment.globals["strftime_now"] = NOW.strftime
    try:
        return digest(
            template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=ask,
                bos_token=BOS,
                eos_token=EOS,
            )
        )
    except Exception:
        return None


def main() -> None:
    """Render everything."""
    renders: dict[str, dict[str, list[str | None]]] = {}
    for name, source in sources().items():
        renders[name] = {}
        for chat, conversation in CHATS.items():
            tools = list(conversation.tools) or None
            for style in styles_of(conversation):
                messages = as_messages(conversation, style)
                renders[name][golden_name(chat, style)] = [
                    render(source, messages, tools, ask=False),
                    render(source, messages[:-1], tools, ask=True),
                ]
    text = json.dumps(renders, ensure_ascii=False, indent=0)
    (ROOT / "tests/data/golden/chat_renders.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
