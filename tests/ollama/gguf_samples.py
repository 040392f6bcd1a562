"""Tiny GGUF files, and chat templates of the kinds that models bring."""

import gguf
import numpy as np

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.index0 == 1 %}<<SYS>>\n{{ messages[0].content }}\n<</SYS>>\n\n{% endif %}{{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_LLAMA3_DATED = (
    "{{ bos_token }}{% set s = '' %}{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nKnowledge until: May\n\n{{ s }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}SYSTEM_RULE{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ first if loop.first else '' }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)

_ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_COMMAND_R = (
    "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|><|"
    "{{ {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'}[m.role] }}_TOKEN|>"
    "{{ m.content }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
# the system text stands in the last question, and is gone from the first one when there is a second
_SYSTEM_LAST = (
    "{{ bos_token }}{% set s = '' %}{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "[INST]{{ s if loop.last else '' }}{{ m.content }}[/INST]"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
# the model opens its answer with thoughts, which the template leaves out of the history
_THINKING = (
    "{% set n = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set n.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > n.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# name: Jinja, BOS, EOS
JINJA = {
    "llama2": (_LLAMA2, "<s>", "</s>"),
    "mistral": (_MISTRAL, "<s>", "</s>"),
    "chatml": (_CHATML, "", "<|im_end|>"),
    "chatml with another EOS": (_CHATML, "<s>", "</s>"),
    "chatml with a default system text": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a tiny model.<|im_end|>\n{% endif %}"
        + _CHATML,
        "",
        "<|im_end|>",
    ),
    "llama3": (_LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "llama3 with a header": (_LLAMA3_DATED, "<|begin_of_text|>", "<|eot_id|>"),
    "gemma": (_GEMMA.replace("SYSTEM_RULE", "{{ raise_exception('no') }}"), "<bos>", "<eos>"),
    "gemma with the system text in the question": (
        _GEMMA.replace(
            "SYSTEM_RULE", "{% set first = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}"
        ),
        "<bos>",
        "<eos>",
    ),
    "phi3": (_PHI3, "<s>", "<|endoftext|>"),
    "zephyr": (_ZEPHYR, "<s>", "</s>"),
    "command-r": (_COMMAND_R, "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "system text in the last question": (_SYSTEM_LAST, "<s>", "</s>"),
    "system text in an only question": (_SYSTEM_LAST.replace("loop.last", "loop.length == 1"), "<s>", "</s>"),
    "thoughts before the answer": (_THINKING, "", "<|im_end|>"),
    "the BOS is a tag": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are tiny.<|im_end|>\n{% endif %}" + _CHATML,
        "<|im_start|>",
        "<|im_end|>",
    ),
    "chatml with other tags": (_CHATML.replace("im_start", "turn_start"), "", "</s>"),
    "llama3 that ends like chatml": (_LLAMA3.replace("<|eot_id|>", "<|im_end|>"), "", "<|im_end|>"),
    "asks in capitals": (_CHATML.replace("m.content", "m.content | upper"), "", "<|im_end|>"),
}


def write_model(path, *, architecture="llama", chat_template=None, split_count=None, **texts):
    """A GGUF that has what the package reads: no model could run on it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_token_list(["<unk>", "<s>", "</s>", "a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    if split_count is not None:
        writer.add_uint16("split.count", split_count)
    for key, text in texts.items():
        writer.add_key_value(key.replace("__", "."), text, gguf.GGUFValueType.STRING)
    rng = np.random.default_rng(1)
    writer.add_tensor("token_embd.weight", rng.standard_normal((4, 32), dtype=np.float32))
    writer.add_tensor("blk.0.attn_q.weight", rng.standard_normal((32, 32), dtype=np.float32))
    _finish(writer)
    return path


def write_adapter(
    path, *, architecture="llama", kind="lora", tensor="blk.0.attn_q.weight", n_in=32, value=1.0, **notes
):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", kind)
    writer.add_float32("adapter.lora.alpha", 1.0)
    for key, text in notes.items():
        writer.add_key_value(f"ggtune.{key}", text, gguf.GGUFValueType.STRING)
    writer.add_tensor(f"{tensor}.lora_a", np.full((1, n_in), value, np.float32))
    writer.add_tensor(f"{tensor}.lora_b", np.ones((32, 1), np.float32))
    _finish(writer)
    return path


def _finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
