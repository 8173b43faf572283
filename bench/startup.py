"""How soon and with how much: import, first token, peak memory.

    python bench/startup.py [MODEL]

- import: seconds of `import insula` in a fresh interpreter;
- first token: seconds from starting `insula run MODEL PROMPT` to the first byte of the answer,
  with the file in the page cache;
- memory: peak resident bytes of a process that loads the model and answers, against its packed
  weights and KV pages.
Medians of several processes each; one JSON line goes to bench/results/startup.jsonl.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import machine

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "Why is the sky blue?"

IMPORT = "import time; t = time.perf_counter(); import insula; print(time.perf_counter() - t)"

MEMORY = """
import json, resource, sys
from insula import LLM, SamplingParams
llm = LLM(sys.argv[1], n_ctx=int(sys.argv[2]))
llm.generate("Why is the sky blue?", SamplingParams(max_tokens=32, temperature=0))
scale = 1 if sys.platform == "darwin" else 1024
info = llm.model_info
runner = llm._engine.runner
print(json.dumps({
    "weights": runner.weight_bytes,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
    "kv": info.kv_bytes, "file": info.file_bytes, "engine": info.engine, "isa": info.isa,
}))
"""

BARE = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2:135m")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--n-ctx", type=int, default=2048)
    args = parser.parse_args()
    row = measure(args.model, repeats=args.repeats, n_ctx=args.n_ctx)
    print(json.dumps(row, indent=2))
    out = ROOT / "bench" / "results" / "startup.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def measure(model: str, *, repeats: int, n_ctx: int) -> dict[str, Any]:
    imports = [float(python(IMPORT)) for _ in range(repeats)]
    first_token(model)  # the disk is warm after this
    firsts = [first_token(model) for _ in range(repeats)]
    memory = [json.loads(python(MEMORY, model, str(n_ctx))) for _ in range(3)]
    peak = max(m["peak"] for m in memory)
    weights, kv = memory[0]["weights"], memory[0]["kv"]
    return {
        "when": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "model": model,
        "machine": machine(),
        "isa": memory[0]["isa"],
        "import_seconds": summary(imports),
        "first_token_seconds": summary(firsts),
        "peak_bytes": peak,
        "file_bytes": memory[0]["file"],
        "packed_weights_bytes": weights,
        "kv_bytes": kv,
        "beyond_weights_and_kv_mb": round((peak - weights - kv) / 1e6, 1),
        "bare_python_mb": round(float(python(BARE)) / 1e6, 1),
    }


def first_token(model: str) -> float:
    """Seconds until the first byte of the answer; the rest is not waited for."""
    command = [sys.executable, "-m", "insula", "run", model, PROMPT]
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        byte = process.stdout.read(1)
        seconds = time.perf_counter() - started
        if not byte:
            raise SystemExit(f"insula run said nothing: {process.stderr.read().decode()[-2000:]}")
        process.terminate()
    return seconds


def python(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout


def summary(seconds: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(seconds), 4),
        "low": round(min(seconds), 4),
        "high": round(max(seconds), 4),
    }


if __name__ == "__main__":
    main()
