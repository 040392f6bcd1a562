"""Go text/template for Ollama, derived from the training templates so that both give the same text.

Ollama runs TEMPLATE once per turn and cuts everything after ``.Response`` on the last one, so the text up to there is
what the model is asked with; what follows closes the earlier turns of a chat. The tokenizer adds the BOS.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import takewhile

from ggtune.data.chat_template import ChatTemplate
from ggtune.data.templates import TEMPLATES, PromptTemplate
from ggtune.errors import GgtuneError

# the line feed that these formats put between the end of an answer and the next turn
_BETWEEN_TURNS = {"chatml": "\n", "gemma": "\n", "phi3": "\n"}

# no template writes such texts, and none changes them (white space, letter case)
_SYSTEM, _QUESTION, _ANSWER = "7Sy5Zq", "8Qu6Xw", "9An4Kv"
_PROBES = (
    ("You answer in one sentence.", "Which gas do we breathe?", "Air."),
    (None, "Name one metal.\nOnly one!", "Iron, for example."),
)


@dataclass(frozen=True)
class OllamaTemplate:
    """What makes Ollama ask as the training did."""

    source: PromptTemplate
    text: str  # Go text/template

    @property
    def name(self) -> str:
        """The training template's name."""
        return self.source.name

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return self.source.stops


def go_template(template: PromptTemplate, eos: str) -> OllamaTemplate:
    """TEMPLATE and stops of a training template; ``eos`` is the text of the model's EOS token, where it has one."""
    if template.accepts_system:
        given = f"{template.before_system}{{{{ .System }}}}{template.after_system}"
        default = ""
        if template.default_system is not None:
            default = f"{{{{ else }}}}{template.before_system}{template.default_system}{template.after_system}"
        system = f"{{{{ if .System }}}}{given}{default}{{{{ end }}}}"
    else:
        system = ""
    text = (
        f"{template.opening}{system}{template.before_question}{{{{ .Prompt }}}}{template.after_question}"
        f"{{{{ .Response }}}}{template.end or eos}{_BETWEEN_TURNS.get(template.name, '')}"
    )
    return OllamaTemplate(template, text)


def known_template_for(jinja_text: str, *, bos: str, eos: str) -> PromptTemplate | None:
    """Find the named template that renders the same text as a GGUF's own Jinja template, or None.

    Where only the part of the system text is the model's own (another default, another place), the named template is
    returned with that part replaced. Decided by rendering alone: every probe must give the same prompt.
    """
    ends = {eos, *(template.end for template in TEMPLATES.values())} - {""}

    def end_of(text: str) -> str:
        found = [text[: text.index(end) + len(end)] for end in ends if end in text]
        return min(found, key=len, default="")

    try:
        own = ChatTemplate(jinja_text, bos=bos, eos=eos, end_of=end_of)
        for known in TEMPLATES.values():
            if own.end == (known.end or eos) and _same_prompts(known, own):
                return known
        return _variation(own, eos)
    except GgtuneError:
        return None


def _same_prompts(template: PromptTemplate, own: ChatTemplate) -> bool:
    if template.accepts_system != _accepts_system(own):
        return False
    return all(
        template.render(system, question, answer).prompt == own.render(system, question, answer).prompt
        for system, question, answer in _PROBES
        if system is None or template.accepts_system
    )


def _accepts_system(own: ChatTemplate) -> bool:
    try:
        own.render(_SYSTEM, _QUESTION, _ANSWER)
    except GgtuneError:
        return False
    return True


def _variation(own: ChatTemplate, eos: str) -> PromptTemplate | None:
    """Find a named template that differs in nothing but the system part, and give it the model's own."""
    head, _, _ = own.render(None, _QUESTION, _ANSWER).prompt.partition(_QUESTION)
    for known in TEMPLATES.values():
        tag = known.opening + known.before_question
        same_tags = tag and head.endswith(tag) and own.after_question == known.after_question
        if same_tags and own.end == (known.end or eos):
            variation = _with_own_system(known, head, own)
            if _same_prompts(variation, own):
                return variation
    return None


def _with_own_system(known: PromptTemplate, head: str, own: ChatTemplate) -> PromptTemplate:
    """Replace everything before the question; ``head`` is what ``own`` writes there without a system text."""
    if not _accepts_system(own):
        return replace(
            known, opening=head, before_system=None, after_system="", before_question="", default_system=None
        )
    before, _, rest = own.render(_SYSTEM, _QUESTION, _ANSWER).prompt.partition(_SYSTEM)
    after, _, _ = rest.partition(_QUESTION)
    if head.startswith(before) and head.endswith(after) and len(head) >= len(before) + len(after):
        default = head[len(before) : len(head) - len(after)]
        return replace(
            known, opening="", before_system=before, after_system=after, before_question="", default_system=default
        )
    same = (a == b for a, b in zip(head, before, strict=False))
    opening = head[: sum(takewhile(bool, same))]
    question_tag = head.removeprefix(opening)
    return replace(
        known,
        opening=opening,
        before_system=before.removeprefix(opening),
        after_system=after.removesuffix(question_tag),
        before_question=question_tag,
        default_system=None,
    )
