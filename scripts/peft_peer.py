"""transformers + PEFT as a peer for the benchmark: its steps, one at a time, in a process of its own."""

import json
from collections.abc import Mapping

from peer_process import PeerProcess

# of the base model and of the adapter, which PEFT makes float32 where it is not told otherwise
DTYPES = {"f32": ("float32", "float32"), "bf16": ("bfloat16", "float32"), "bf16-all": ("bfloat16", "bfloat16")}

# A llama of the given shape, a LoRA on all linears.
STEPS = """
import json, resource, sys, time
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
s = json.loads(sys.argv[1])
torch.set_num_threads(s["threads"])
torch.manual_seed(0)
torch.set_default_dtype(getattr(torch, s["base_dtype"]))
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=s["n_vocab"], hidden_size=s["n_embd"], intermediate_size=s["n_ff"], num_hidden_layers=s["n_layer"],
    num_attention_heads=s["n_head"], num_key_value_heads=s["n_head_kv"], max_position_embeddings=4096))
torch.set_default_dtype(torch.float32)
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
config = LoraConfig(r=s["rank"], lora_alpha=s["rank"], target_modules=targets)
model = get_peft_model(model, config, autocast_adapter_dtype=s["adapter_dtype"] == "float32")
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps([seconds, peak]), flush=True)
"""


class PeftPeer:
    """A llama of the shape that ``metadata`` (of its GGUF) gives; a step has ``rows`` samples of ``tokens`` tokens."""

    def __init__(
        self,
        python: str,
        dtype: str,
        metadata: Mapping[str, str],
        *,
        n_vocab: int,
        rank: int,
        rows: int,
        tokens: int,
        threads: int,
    ) -> None:
        """``dtype``: one of ``DTYPES``."""

        def key(name: str) -> int:
            return int(metadata[f"llama.{name}"])

        self.dtype = dtype
        self.peak_bytes = 0
        self._n_tokens = rows * tokens
        self._best_s = float("inf")
        shape = {
            "base_dtype": DTYPES[dtype][0],
            "adapter_dtype": DTYPES[dtype][1],
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
        self._process = PeerProcess([python, "-c", STEPS, json.dumps(shape)])

    def step(self) -> None:
        """Take one."""
        seconds, self.peak_bytes = self._process.step()
        self._best_s = min(self._best_s, seconds)

    @property
    def tokens_per_second(self) -> float:
        """Of the best step."""
        return self._n_tokens / self._best_s

    def close(self) -> None:
        """End the process."""
        self._process.close()
