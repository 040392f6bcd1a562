#!/usr/bin/env python3
"""Time training steps of a model and hold them against the machine's float32 matrix rate, measured in the same run.

    bench.py --model M.gguf --ctx 256 --rank 4 --batch 1 [--samples 1] [--recompute] [--json]

A step is ``--batch`` micro-batches of ``--ctx`` random tokens, every one of them a target, and one AdamW step. The matrix
rate is that of NumPy's BLAS on 2048 x 2048 x 2048, with the same threads, best of 10, taken in turn with the steps.
The bound is that rate over 4 floating point operations per parameter and token (forward 2, input gradient 2; 6 with
recomputation), counting the linear layers and the output matrix.
"""

import argparse
import json
import os
import sys
import time
from typing import Any

GEMM_SIZE = 2048
GEMM_REPEATS = 10


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--ctx", type=int, default=256, help="tokens of one micro-batch (default 256)")
    parser.add_argument("--rank", type=int, default=4, help="LoRA rank (default 4)")
    parser.add_argument("--batch", type=int, default=1, help="micro-batches of a step (default 1)")
    parser.add_argument("--samples", type=int, default=1, help="samples packed into a micro-batch (default 1)")
    parser.add_argument(
        "--steps", type=int, default=5, help="steps measured after one to warm up; the best counts (default 5)"
    )
    parser.add_argument("--threads", type=int, help="default: the processors that this process may use")
    parser.add_argument("--recompute", action="store_true", help="keep only the layers' inputs, compute the rest again")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


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
    trainer = _core.Trainer(model, adapter, context=args.ctx, threads=args.threads, recompute=args.recompute)
    rng = np.random.default_rng(0)
    batches = [micro_batch(rng, model.n_vocab, args.ctx, args.samples) for _ in range(args.batch)]
    square = rng.standard_normal((GEMM_SIZE, GEMM_SIZE), dtype=np.float32)

    best: dict[str, float] = {"step_s": float("inf")}
    gemm_rate = 0.0
    for step in range(args.steps + 1):
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

    n_tokens = args.batch * args.ctx
    n_matrix_params = sum(linear.n_in * linear.n_out for linear in linears) + model.n_vocab * model.n_embd
    flops_per_token = (6 if args.recompute else 4) * n_matrix_params
    bound = gemm_rate / flops_per_token
    predicted = trainer.memory(args.ctx, args.ctx, args.samples)
    return {
        "tokens_per_second": n_tokens / best["step_s"],
        **best,
        "peak_bytes": peak_bytes(),
        "predicted_bytes": sum(predicted.values()),
        "gemm_flops_per_second": gemm_rate,
        "bound_tokens_per_second": bound,
        "fraction_of_bound": n_tokens / best["step_s"] / bound,
        "threads": args.threads,
        "model": os.path.basename(args.model),
        "ctx": args.ctx,
        "rank": args.rank,
        "batch": args.batch,
        "samples": args.samples,
        "recompute": args.recompute,
    }


def main() -> None:
    args = parse_arguments()
    from ggtune.system import available_threads

    args.threads = args.threads or available_threads()
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ[variable] = str(args.threads)  # read by NumPy's BLAS when it is imported
    result = measure(args)
    if args.json:
        print(json.dumps(result))
        return
    print(f"{result['model']}: {args.batch} x {args.ctx} tokens, rank {args.rank}, {args.threads} threads")
    print(f"  tokens/s            {result['tokens_per_second']:.1f}")
    print(
        f"  forward, backward   {result['forward_s']:.3f} s, {result['backward_s']:.3f} s of {result['step_s']:.3f} s a step"
    )
    print(
        f"  peak memory         {result['peak_bytes'] / 1e9:.2f} GB (predicted {result['predicted_bytes'] / 1e9:.2f} GB)"
    )
    print(f"  f32 matrix rate     {result['gemm_flops_per_second'] / 1e9:.0f} GFLOP/s")
    print(
        f"  bound               {result['bound_tokens_per_second']:.1f} tokens/s; reached {result['fraction_of_bound']:.2f} of it"
    )


if __name__ == "__main__":
    main()
