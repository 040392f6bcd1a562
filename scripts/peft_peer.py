"""transformers + PEFT in float32 as a peer for the benchmark: its steps, one at a time, in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

# A llama of the given shape, a LoRA on all linears; a line in, a step, its seconds and the peak memory out.
STEPS = """
import json, resource, sys, time
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
s = json.loads(sys.argv[1])
torch.set_num_threads(s["threads"])
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=s["n_vocab"], hidden_size=s["n_embd"], intermediate_size=s["n_ff"], num_hidden_layers=s["n_layer"],
    num_attention_heads=s["n_head"], num_key_value_heads=s["n_head_kv"], max_position_embeddings=4096))
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
model = get_peft_model(model, LoraConfig(r=s["rank"], lora_alpha=s["rank"], target_modules=targets))
model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
ids = torch.randint(0, s["n_vocab"], (s["rows"], s["tokens"]))
print("ready", flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]), flush=True)
"""


class PeftPeer:
    """A llama of the shape that ``metadata`` (of its GGUF) gives; a step has ``rows`` samples of ``tokens`` tokens."""

    def __init__(
        self, python: str, metadata: Mapping[str, str], *, n_vocab: int, rank: int, rows: int, tokens: int, threads: int
    ) -> None:
        def key(name: str) -> int:
            return int(metadata[f"llama.{name}"])

        self.n_tokens = rows * tokens
        self.best_s = float("inf")
        self.peak_bytes = 0
        shape = {
            "threads": threads,
            "rank": rank,
            "rows": rows,
            "tokens": tokens,
            "n_vocab": n_vocab,
            "n_embd": key("embedding_length"),
            "n_layer": key("block_count"),
            "n_ff": key("feed_forward_length"),
            "n_head": key("attention.head_count"),
            "n_head_kv": key("attention.head_count_kv"),
        }
        self._process = subprocess.Popen(
            [python, "-c", STEPS, json.dumps(shape)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._read() != "ready":
            sys.exit(f"{python} could not set up the peer: are torch, transformers and peft installed?")

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def step(self) -> None:
        """Take one."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        seconds, self.peak_bytes = json.loads(self._read())
        self.best_s = min(self.best_s, seconds)

    def close(self) -> dict[str, Any]:
        """End the process and return what was measured."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        return {"peft_tokens_per_second": self.n_tokens / self.best_s, "peft_peak_bytes": self.peak_bytes}
