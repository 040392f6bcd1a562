#!/usr/bin/env python3
"""Time training steps of a model and hold them against the machine's float32 matrix rate, measured in the same run.

    bench.py --model M.gguf --ctx 256 --rank 4 --batch 1 [--samples 1] [--recompute] [--profile] [--peft] [--json]

A step is ``--batch`` micro-batches of ``--ctx`` random tokens, every one of them a target, and one AdamW step. The
matrix rate is that of NumPy's BLAS on 2048 x 2048 x 2048, with the same threads, best of 10, taken in turn with the
steps. The bound is that rate over 4 floating point operations per parameter and token (forward 2, input gradient 2; 6
with recomputation), counting the linear layers and the output matrix.

``--peft`` times transformers + PEFT in float32 on the same shape, a step of one in turn with a step of the other; it
needs torch, transformers and peft, in this Python or in the one given by ``--peft-python``.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GEMM_SIZE = 2048
GEMM_REPEATS = 10

# Runs in a process of its own: a llama of the given shape, a LoRA on all linears; a line in, a step, its seconds out.
PEFT_STEPS = """
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


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--ctx", type=int, default=256, help="tokens of one micro-batch (default 256)")
    parser.add_argument("--rank", type=int, default=4, help="LoRA rank (default 4)")
    parser.add_argument("--batch", type=int, default=1, help="micro-batches of a step (default 1)")
    parser.add_argument("--samples", type=int, default=1, help="samples packed into a micro-batch (default 1)")
    parser.add_argument("--steps", type=int, default=5, help="steps measured, the best counts (default 5)")
    parser.add_argument("--threads", type=int, help="default: the processors that this process may use")
    parser.add_argument("--recompute", action="store_true", help="keep only the layers' inputs, compute the rest again")
    parser.add_argument("--precision", choices=("auto", "f32"), default="auto", help="f32: no int8 dot products")
    parser.add_argument("--profile", action="store_true", help="also the seconds by kind of operation")
    parser.add_argument("--peft", action="store_true", help="time transformers + PEFT (float32) in turn")
    parser.add_argument("--peft-python", default=sys.executable, help="Python that has torch, transformers and peft")
    parser.add_argument("--peft-batch", help="rows x tokens of PEFT's step, such as 4x256 (default: the same as here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


class PeftPeer:
    """The peer's steps, one at a time, in a process of its own."""

    def __init__(self, args: argparse.Namespace, metadata: dict[str, str], n_vocab: int) -> None:
        def key(name: str) -> int:
            return int(metadata[f"llama.{name}"])

        rows, tokens = (
            map(int, args.peft_batch.split("x"))
            if args.peft_batch
            else (args.batch * args.samples, args.ctx // args.samples)
        )
        self.n_tokens = rows * tokens
        self.best_s = float("inf")
        self.peak_bytes = 0
        shape = {
            "threads": args.threads,
            "rank": args.rank,
            "rows": rows,
            "tokens": tokens,
            "n_vocab": n_vocab,
            "n_embd": key("embedding_length"),
            "n_layer": key("block_count"),
            "n_ff": key("feed_forward_length"),
            "n_head": key("attention.head_count"),
            "n_head_kv": key("attention.head_count_kv"),
        }
        self.process = subprocess.Popen(
            [args.peft_python, "-c", PEFT_STEPS, json.dumps(shape)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._read() != "ready":
            sys.exit(f"{args.peft_python} could not set up the peer: are torch, transformers and peft installed?")

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, self.peak_bytes = json.loads(self._read())
        self.best_s = min(self.best_s, seconds)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def micro_batch(rng: Any, n_vocab: int, n_tokens: int, n_samples: int) -> tuple[Any, ...]:
    import numpy as np

    length = -(-n_tokens // n_samples)
    rows = np.arange(n_tokens, dtype=np.int32)
    tokens = rng.integers(0, n_vocab, n_tokens + 1).astype(np.int32)
    return tokens[:-1], rows % length, rows // length, tokens[1:], np.ones(n_tokens, np.float32)


def gemm_flops_per_second(a: Any) -> float:
    start = time.perf_counter()
    a @ a
    return float(2 * GEMM_SIZE**3 / (time.perf_counter() - start))


def peak_bytes() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from ggtune import _core

    model = _core.Model(args.model)
    linears = model.linears()
    targets = sorted({linear.kind for linear in linears})
    adapter = _core.Adapter(model, rank=args.rank, alpha=args.rank, targets=targets)
    trainer = _core.Trainer(model, adapter, context=args.ctx, threads=args.threads, precision=args.precision)
    trainer.recompute_layers = model.n_layer - 1 if args.recompute else 0
    rng = np.random.default_rng(0)
    batches = [micro_batch(rng, model.n_vocab, args.ctx, args.samples) for _ in range(args.batch)]
    square = rng.standard_normal((GEMM_SIZE, GEMM_SIZE), dtype=np.float32)
    peer = PeftPeer(args, model.metadata(), model.n_vocab) if args.peft else None

    best: dict[str, float] = {"step_s": float("inf")}
    gemm_rate = 0.0
    for step in range(args.steps + 1):  # one to warm up
        start = time.perf_counter()
        results = [trainer.accumulate(*batch) for batch in batches]
        trainer.step(1e-4)
        step_s = time.perf_counter() - start
        if step > 0 and step_s < best["step_s"]:
            best = {
                "step_s": step_s,
                "forward_s": sum(r.forward_s for r in results),
                "backward_s": sum(r.backward_s for r in results),
            }
        for _ in range(-(-GEMM_REPEATS // (args.steps + 1))):
            gemm_rate = max(gemm_rate, gemm_flops_per_second(square))
        if peer is not None:
            peer.step()

    n_tokens = args.batch * args.ctx
    n_matrix_params = sum(linear.n_in * linear.n_out for linear in linears) + model.n_vocab * model.n_embd
    flops_per_token = (6 if args.recompute else 4) * n_matrix_params
    rate = n_tokens / best["step_s"]
    bound = gemm_rate / flops_per_token
    result: dict[str, Any] = {
        "tokens_per_second": rate,
        **best,
        "peak_bytes": peak_bytes(),
        "predicted_bytes": sum(trainer.memory(args.ctx, args.ctx, args.samples).values()),
        "gemm_flops_per_second": gemm_rate,
        "bound_tokens_per_second": bound,
        "fraction_of_bound": rate / bound,
    }
    for name in ("ctx", "rank", "batch", "samples", "threads", "recompute", "precision"):
        result[name] = getattr(args, name)
    result["model"] = Path(args.model).name
    if args.profile:
        seconds: dict[str, float] = {}
        for _ in range(args.steps):
            for name, value in trainer.profile(*batches[0]).items():
                seconds[name] = min(seconds.get(name, value), value)
        result["profile_s"] = dict(sorted(seconds.items(), key=lambda item: -item[1]))
    if peer is not None:
        peer.close()
        result["peft_tokens_per_second"] = peer.n_tokens / peer.best_s
        result["peft_peak_bytes"] = peer.peak_bytes
        result["times_peft"] = rate / result["peft_tokens_per_second"]
    return result


def print_table(r: dict[str, Any]) -> None:
    def line(name: str, text: str) -> None:
        print(f"  {name:<20}{text}")

    print(f"{r['model']}: {r['batch']} x {r['ctx']} tokens, rank {r['rank']}, {r['threads']} threads")
    line("tokens/s", f"{r['tokens_per_second']:.1f}")
    line("forward, backward", f"{r['forward_s']:.3f} s, {r['backward_s']:.3f} s of {r['step_s']:.3f} s a step")
    line("peak memory", f"{r['peak_bytes'] / 1e9:.2f} GB (predicted {r['predicted_bytes'] / 1e9:.2f} GB)")
    line("f32 matrix rate", f"{r['gemm_flops_per_second'] / 1e9:.0f} GFLOP/s")
    line("bound", f"{r['bound_tokens_per_second']:.1f} tokens/s; reached {r['fraction_of_bound']:.2f} of it")
    if "times_peft" in r:
        line("PEFT float32", f"{r['peft_tokens_per_second']:.1f} tokens/s, {r['peft_peak_bytes'] / 1e9:.2f} GB")
        line("times PEFT", f"{r['times_peft']:.2f}")
    if "profile_s" in r:
        total = sum(r["profile_s"].values())
        print("  seconds by kind of operation, one micro-batch:")
        for name, seconds in r["profile_s"].items():
            print(f"    {name:<24}{seconds:9.4f}  {100 * seconds / total:5.1f} %")


def main() -> None:
    args = parse_arguments()
    from ggtune.system import available_threads

    args.threads = args.threads or available_threads()
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ[variable] = str(args.threads)  # read by NumPy's BLAS when it is imported
    result = measure(args)
    if args.json:
        print(json.dumps(result))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
