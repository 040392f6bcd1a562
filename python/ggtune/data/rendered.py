"""Which template rendered texts were written with."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from ggtune.data.chat_template import TemplatedTokenizer, model_template
from ggtune.data.readers.sft_samples import TextSample
from ggtune.data.sft import answer_tag, find_template, without_bos
from ggtune.data.system_text import SystemText, system_of_prompts
from ggtune.data.templates import TEMPLATES, Template
from ggtune.data.tokenization import token_text
from ggtune.errors import GgtuneError


def template_that_wrote(
    samples: Sequence[TextSample], tokenizer: TemplatedTokenizer, *, now: datetime.datetime | None
) -> Template | None:
    """Find the template that the texts were made with: one that writes such prompts, if there is one."""
    candidates = _candidates(tokenizer, now)
    found = find_template(samples, candidates)
    if found is None:
        return None
    tag = answer_tag(found)
    heads = [sample.text.partition(tag)[0] for sample in samples if tag in sample.text]
    alike = [found, *(other for other in candidates if other is not found and answer_tag(other) == tag)]
    # the model's own may put a system text of its own where the texts have none
    return next((other for other in alike if _wrote(tokenizer, other, heads, tag)), found)


def _wrote(tokenizer: TemplatedTokenizer, template: Template, heads: Sequence[str], tag: str) -> bool:
    """Whether a template writes such texts in front of the answer tag."""
    bos = token_text(tokenizer, tokenizer.bos_token)
    is_tag = bool(bos) and template.render_prompt(None, "?").prompt.startswith(bos)
    prompts = [without_bos(head, [template.bos] if is_tag else [bos, template.bos]) + tag for head in heads]
    return system_of_prompts(prompts, template) != SystemText()


def _candidates(tokenizer: TemplatedTokenizer, now: datetime.datetime | None) -> list[Template]:
    """Templates to look for in a text, the model's own first."""
    named: list[Template] = [template for template in TEMPLATES.values() if template.name != "plain"]
    if not tokenizer.chat_template:
        return named
    try:
        return [model_template(tokenizer, now=now), *named]
    except GgtuneError:
        return named
