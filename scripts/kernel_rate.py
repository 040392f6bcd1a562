"""The rate of the bf16 products with quantized weights, dequantization included, next to the bare matrix unit's.

    kernel_rate.py [--type Q4_K] [--n-in 2048] [--n-out 5632] [--tokens 512] [--threads 2]

Forward, dX and the bare tiles are taken in turn, half a second each, since a CPU slows down under such a load; each
figure is the best.
"""

import argparse
import sys

import numpy as np

from ggtune._native import core as _core
from ggtune.system import available_threads

SECONDS = 0.5


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog=__doc__.partition("\n")[2],
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--type", default="Q4_K", help="ggml type of the weight (default Q4_K)")
    parser.add_argument("--n-in", type=int, default=2048)
    parser.add_argument("--n-out", type=int, default=5632)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=0, help="default: all that may be used")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    threads = args.threads or available_threads()
    if _core.matrix_unit_rate(threads=threads) is None:
        sys.exit("this CPU has no matrix unit, or GGTUNE_CPU forbids it")
    rng = np.random.default_rng(0)
    values = rng.standard_normal((args.n_out, args.n_in), dtype=np.float32)
    weight = _core.quantize(args.type, values)
    inputs = {
        gradient: rng.standard_normal((args.tokens, args.n_out if gradient else args.n_in), dtype=np.float32)
        for gradient in (False, True)
    }
    flops = 2.0 * args.n_in * args.n_out * args.tokens
    best = {"bare tiles": 0.0, "forward": 0.0, "dX": 0.0}
    for _ in range(args.repeats):
        best["bare tiles"] = max(best["bare tiles"], _core.matrix_unit_rate(threads=threads, seconds=SECONDS) or 0.0)
        for gradient, name in ((False, "forward"), (True, "dX")):
            arguments = (args.type, weight, inputs[gradient], args.n_in)
            _, seconds = _core.bf16_product(*arguments, gradient=gradient, threads=threads)
            repeats = max(1, int(SECONDS / seconds))
            _, seconds = _core.bf16_product(*arguments, gradient=gradient, threads=threads, repeats=repeats)
            best[name] = max(best[name], flops / seconds)
    print(f"{args.type}, {args.n_in} x {args.n_out}, {args.tokens} tokens, {threads} threads")
    for name, rate in best.items():
        print(f"  {name:<12}{rate / 1e12:6.2f} TFLOP/s  {100 * rate / best['bare tiles']:5.1f} %")


if __name__ == "__main__":
    main()
