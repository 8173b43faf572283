"""How soon a long prompt starts after a restart, with the prefix cache kept on disk.

    python bench/disk_cache.py [--model FILE] [--tokens 4000] [--rounds 5]

One process computes a prompt of random tokens and leaves its pages. Then rounds of processes of
their own, in turns: with the pages out of the system's page cache (posix_fadvise DONTNEED), and in
it. Each loads the model and asks for one token. Loading and restoring are told apart: `restore` is
the time inside the engine's look at the disk (opening, reading, checking, putting into the tree),
`processor` what all threads used of the processors for it, `first` from the request to its token,
which computes at least one. One JSON line goes to bench/results/disk_cache.jsonl.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import machine
from run import find_model

PARTS = ("load", "restore", "processor", "first")
RESULTS = Path(__file__).resolve().parent / "results" / "disk_cache.jsonl"


def one_life(model: str, folder: str, tokens: int, threads: int) -> dict[str, Any]:
    """Load, ask for one token, and say how long each part took."""
    from insula import LLM

    begun = time.perf_counter()
    with LLM(model, cache_dir=folder, n_ctx=tokens + 64, n_threads=threads) as llm:
        loaded = time.perf_counter()
        disk = llm._engine._disk  # type: ignore[attr-defined]
        read, restore, processor = disk.read, 0.0, 0.0

        def timed(*args: Any, **options: Any) -> bool:
            nonlocal restore, processor
            at, used = time.perf_counter(), time.process_time()
            found: bool = read(*args, **options)
            restore += time.perf_counter() - at
            processor += time.process_time() - used
            return found

        disk.read = timed
        random.seed(1)
        ids = [random.randrange(1000, llm.tokenizer.vocab_size) for _ in range(tokens)]
        report = llm.generate(ids, temperature=0.0, max_tokens=1, ignore_eos=True).report
        page_bytes = disk._files.page_bytes
    return {
        "load": loaded - begun,
        "restore": restore,
        "processor": processor,
        "first": report.time_to_first_token,
        "cached": report.cached_from_disk,
        "bytes": report.cached_from_disk // 64 * page_bytes,
        "isa": report.isa,
    }


def life(model: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """`one_life` in a process of its own."""
    command = [sys.executable, __file__, "--life", model, str(folder)]
    command += ["--tokens", str(args.tokens), "--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def forget(folder: Path) -> None:
    """Put the pages out of the system's page cache."""
    os.sync()
    for path in (folder / "kv").iterdir():
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="1b-q4_k_m")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the pages go; the disk that is measured")
    parser.add_argument("--life", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.life:
        print(json.dumps(one_life(*args.life, args.tokens, args.threads)))
        return
    model = find_model(args.model)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        rounds: dict[str, list[dict[str, Any]]] = {"computed": [], "cold": [], "warm": []}
        rounds["computed"].append(life(str(model.path), folder, args))
        for _ in range(args.rounds):
            forget(folder)
            rounds["cold"].append(life(str(model.path), folder, args))
            rounds["warm"].append(life(str(model.path), folder, args))
        sizes = [path.stat().st_size for path in (folder / "kv").iterdir()]
    row: dict[str, Any] = {
        "when": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "model": model.label,
        "model_sha256": model.sha256,
        "tokens": args.tokens,
        "threads": args.threads,
        "isa": rounds["warm"][0]["isa"],
        "machine": machine(),
        "load_average": [round(x, 1) for x in os.getloadavg()],
        "files": len(sizes),
        "file_bytes": sum(sizes),
        "seconds": {},
    }
    for kind, lives in rounds.items():
        seconds = {key: [round(each[key], 4) for each in lives] for key in PARTS}
        row["seconds"][kind] = {**seconds, "cached": lives[0]["cached"]}
        load, restore, processor, first = (median(seconds[key]) for key in PARTS)
        print(
            f"{kind:9} load {load:6.2f} s  restore {1000 * restore:7.1f} ms  (processors "
            f"{1000 * processor:6.1f} ms)  first token {1000 * first:8.1f} ms  "
            f"{lives[0]['cached']} from disk"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
