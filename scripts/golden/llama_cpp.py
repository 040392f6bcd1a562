"""llama.cpp's converters, and the tokenizer and adapter files that they read."""

import io
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import peft
import safetensors.torch
import sentencepiece
import tokenizers
import torch
import transformers

from golden.families import N_VOCAB

CORPUS = [
    "the cat sat on the mat",
    "a dog ran to the red barn",
    "she sat and the rain ran on",
    "the rat and the hen",
] * 8


def save_sentence_piece(folder: Path) -> None:
    """Write ``tokenizer.model``: byte fallback, N_VOCAB pieces, the first three unknown, BOS and EOS."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=N_VOCAB,
        byte_fallback=True,
        control_symbols=["<|endoftext|>"],  # llama.cpp expects it in a phi3
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def save_byte_level(folder: Path, special_tokens: tuple[str, ...] = ()) -> None:
    """Write ``tokenizer.json``: GPT-2's pre-tokenizer, N_VOCAB tokens.

    The first three are unknown, BOS and EOS, the next ``special_tokens``.
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=True))  # so llama's converter calls it llama 3
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=["<unk>", "<s>", "<|endoftext|>", *special_tokens],  # Qwen2's class would add the third
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="<|endoftext|>"
    )
    fast.save_pretrained(folder)


def save_byte_fallback(folder: Path) -> None:
    """Write ``tokenizer.json`` in gemma4's form, N_VOCAB tokens.

    The first three are unknown, BOS and EOS, then come the 256 bytes, the letters and two merges.
    """
    special = ["<unk>", "<s>", "<|endoftext|>"]
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "th", "at"]
    assert len(tokens) == N_VOCAB
    model = tokenizers.models.BPE(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[("t", "h"), ("a", "t")],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    decoders = tokenizers.decoders
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="<|endoftext|>"
    )
    fast.save_pretrained(folder)


def save_adapter(adapted: peft.PeftModel, values: dict[str, torch.Tensor], folder: Path) -> None:
    """PEFT's two files, with ``values`` by parameter name in place of the adapter's own."""
    adapted.save_pretrained(folder)
    tensors = {name.replace(".default.", "."): value.contiguous() for name, value in values.items()}
    if adapted.config.model_type == "gpt2":
        # gpt2 holds its weights transposed. PEFT's A and B are as for any linear, but the converter transposes their
        # product a second time, which these undo.
        swapped = {"lora_A": "lora_B", "lora_B": "lora_A"}
        tensors = {
            name.replace(part, swapped[part]): value.T.contiguous()
            for name, value in tensors.items()
            for part in swapped
            if part in name
        }
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")


class Converter:
    """llama.cpp's two converter scripts, run in this process."""

    def __init__(self, llama_cpp: Path) -> None:
        self.llama_cpp = llama_cpp.resolve()
        sys.path[:0] = [str(self.llama_cpp), str(self.llama_cpp / "gguf-py")]
        from conversion.base import TextModel

        # The script knows a pre-tokenizer by the hash of what a published vocabulary makes of a text. Ours is GPT-2's.
        TextModel.get_vocab_base_pre = lambda *_: "gpt-2"

    def _run(self, script: str, *arguments: str | Path) -> None:
        saved = sys.argv
        sys.argv = [script, *map(str, arguments)]
        try:
            with redirect_stdout(io.StringIO()):
                runpy.run_path(str(self.llama_cpp / script), run_name="__main__")
        finally:
            sys.argv = saved

    def model(self, folder: Path, output: Path, *arguments: str) -> None:
        """Convert the model in ``folder`` to F32; ``arguments`` are more of the script's own."""
        self._run("convert_hf_to_gguf.py", folder, "--outfile", output, "--outtype", "f32", *arguments)

    def adapter(self, folder: Path, base: Path, output: Path) -> None:
        """Convert the PEFT adapter in ``folder``, made for the model in ``base``, to F32."""
        self._run("convert_lora_to_gguf.py", folder, "--base", base, "--outfile", output, "--outtype", "f32")

    def architecture(self, path: Path) -> str:
        """Read llama.cpp's name of a GGUF file's architecture."""
        import gguf

        return str(gguf.GGUFReader(path).fields["general.architecture"].contents())

    def read(self, path: Path) -> dict[str, np.ndarray]:
        """Read all tensors of a GGUF file by name."""
        import gguf

        return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
