"""How much of a mean KL divergence is chance? The same file again, its norms moved by a millionth.

    python -m tests.oracle.kl_chance MODEL [--runs 8] [--runner native-int8-kv]

A millionth is nothing to the model, but activations are rounded to int8 in every product, and a
rounding that falls the other way is felt in all that follows; a few positions of 2,000 make much of
the mean. So two arithmetics are compared by their means over several such runs. Prints them with
their standard errors and writes a row to bench/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .kl import kl_against_fp32
from .runners import RUNNERS, RunnerKind
from .texts import ROOT, shared_folder, texts

BY = 1e-6


class Moved:
    """A GGUF file whose vectors, which are the norms and the biases, are moved by a seed."""

    def __init__(self, source: Any, seed: int) -> None:
        self._source, self._rng = source, np.random.default_rng(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def dequantize(self, name: str) -> np.ndarray:
        x = self._source.dequantize(name)
        return (x * (1 + BY * self._rng.standard_normal(x.shape))).astype(np.float32)


def moved(kind: RunnerKind, seed: int) -> RunnerKind:
    """The runner over such a file."""

    def make(graph: Any, source: Any, **options: Any) -> Any:
        return kind.make(graph, Moved(source, seed), **options)

    return RunnerKind(name=f"{kind.name} {seed}", make=make, tolerance=kind.tolerance)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--runner", action="append", help="default: every runner there is")
    parser.add_argument("--json", type=Path, help="default: a file in bench/results/")
    options = parser.parse_args(arguments)
    if options.runs < 2:
        parser.error(f"--runs: found {options.runs}; two at least have a spread")
    shared = shared_folder()
    if shared is None:
        print("the shared folder with the texts is not there: set INSULA_SHARED", file=sys.stderr)
        return 2
    kinds = [k for k in RUNNERS if options.runner is None or k.name in options.runner]
    row = kl_against_fp32(
        options.model,
        texts(shared),
        kinds=[moved(kind, seed) for kind in kinds for seed in range(options.runs)],
        n_tokens=options.tokens,
        peer=False,
    )
    row["what"] = "kl_chance"
    row["means"] = {}
    for kind in kinds:
        runs = [row["engines"][f"{kind.name} {seed}"] for seed in range(options.runs)]
        mean = {k: float(np.mean([r[k] for r in runs])) for k in ("kl_mean", "same_top", "flips")}
        error = float(np.std([r["kl_mean"] for r in runs], ddof=1) / len(runs) ** 0.5)
        row["means"][kind.name] = {**mean, "kl_mean_standard_error": error}
        print(
            f"{kind.name:16s} KL mean {mean['kl_mean']:.6f} +- {error:.6f}  same top "
            f"{mean['same_top']:.3%}  flips {mean['flips']:.1f}, of {len(runs)} runs"
        )
    out = options.json or ROOT / "bench" / "results" / f"kl-chance-{options.model.stem}.json"
    out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
