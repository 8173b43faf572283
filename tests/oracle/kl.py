"""Is our arithmetic as good as llama.cpp's? KL divergence from a float32 forward of the file.

    python -m tests.oracle.kl MODEL [--tokens 2000] [--top 512] [--every 1] [--keep FOLDER]

Prints one line per engine and writes a row to bench/results/. `--top 0` asks llama.cpp for its
whole vocabulary (half a second a position); `--every k` compares every k-th position only;
`--keep` stores what llama.cpp told, for the next run on the same model and texts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from .divergence import Divergence, divergence, log_softmax, ratio_interval
from .llamacpp import LlamaCpp
from .runners import RUNNERS, RunnerKind
from .texts import ROOT, Text, shared_folder, texts

PAGE = 64

#: (tokens [T, N], log probabilities [T, N])
Told = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Token ids of one text, and the positions whose next-token distribution is compared."""

    domain: str
    source: str
    ids: np.ndarray
    positions: np.ndarray


def passages(tokenizer, sources: list[Text], *, n_tokens: int, every: int) -> list[Passage]:
    """n_tokens positions in all, equally many from each text."""
    share = n_tokens // len(sources)
    made = []
    for source in sources:
        ids = np.array(tokenizer.encode(source.text)[:share], np.int32)
        made.append(
            Passage(
                domain=source.domain,
                source=source.source,
                ids=ids,
                positions=np.arange(every - 1, len(ids), every),
            )
        )
    return made


def kl_against_fp32(
    model_path: Path,
    sources: list[Text],
    *,
    kinds: list[RunnerKind] = RUNNERS,
    n_tokens: int = 2000,
    top: int = 512,
    every: int = 1,
    peer: bool = True,
    peer_threads: int = 2,
    keep: Path | None = None,
) -> dict:
    """Compare runners of ours, and llama.cpp, with the float32 forward of the same file.

    Returns a row: per engine the mean, median, 99%, 99.9% and largest KL divergence in nats,
    the share of positions with the same top token, flips and their largest margin; per domain
    the mean; and for each of our runners the ratio of its mean to llama.cpp's with the 95%
    interval, and both counts of flips, also of those that the other did not make. Without
    llama.cpp (peer=False) the partition is float32's own top tokens.
    keep: a folder for llama.cpp's answers, which depend on file, positions and wheel alone.
    """
    from insula.models.load import open_model
    from insula.ops.reference import forward

    began = time.monotonic()
    with open_model(model_path) as model:
        todo = passages(model.tokenizer, sources, n_tokens=n_tokens, every=every)
        n_top = top or model.graph.n_vocab
        truth = [
            log_softmax(forward(model.graph, model.gguf, p.ids)[p.positions]).astype(np.float32)
            for p in todo
        ]
        if peer:
            told = _kept(keep, model_path, model.tokenizer, todo, n_top, peer_threads)
        else:
            told = _own_top(truth, n_top)
        found: dict[str, list[Divergence]] = {}
        if peer:
            found["llamacpp"] = [
                divergence(p, tokens, logprobs, tokens[:, 0])
                for p, (tokens, logprobs) in zip(truth, told, strict=True)
            ]
        engines = {}
        for kind in kinds:
            longest = max(len(p.ids) for p in todo)
            runner = kind.make(model.graph, model.gguf, n_pages=-(-longest // PAGE))
            engines[kind.name] = {"engine": runner.engine, "isa": runner.isa}
            found[kind.name] = [
                _against(p, tokens, logits)
                for p, (tokens, _), logits in zip(truth, told, _logits(runner, todo), strict=True)
            ]
            runner.close()
    return {
        "what": "kl_against_fp32",
        "model": model_path.name,
        "sha256": _sha256(model_path),
        "cpu": _cpu(),
        "date": time.strftime("%Y-%m-%d"),
        "peer": f"xllamacpp {version('xllamacpp')}" if peer else None,
        "seconds": round(time.monotonic() - began, 1),
        "top": n_top,
        "every": every,
        "engines": {
            name: engines.get(name, {}) | _merged(parts).row() | _domains(todo, parts)
            for name, parts in found.items()
        },
        "ratio_to_llamacpp": {
            kind.name: _ratio(_merged(found[kind.name]), _merged(found["llamacpp"]))
            for kind in kinds
            if peer
        },
    }


def _kept(
    folder: Path | None, path: Path, tokenizer, todo: list[Passage], n_top: int, threads: int
) -> list[Told]:
    """What llama.cpp tells, from `folder` if it was asked before."""
    if folder is None:
        return _peer(path, tokenizer, todo, n_top, threads)
    key = hashlib.sha256(f"{_sha256(path)} {version('xllamacpp')} {n_top}".encode())
    for passage in todo:
        key.update(passage.ids.tobytes() + passage.positions.tobytes())
    file = folder / f"told-{path.stem}-{key.hexdigest()[:16]}.npz"
    if not file.exists():
        told = _peer(path, tokenizer, todo, n_top, threads)
        folder.mkdir(parents=True, exist_ok=True)
        flat = {
            f"{name}{i}": x for i, t in enumerate(told) for name, x in zip("tp", t, strict=True)
        }
        np.savez(file, **flat)
    with np.load(file) as arrays:
        return [(arrays[f"t{i}"], arrays[f"p{i}"]) for i in range(len(todo))]


def _peer(path: Path, tokenizer, todo: list[Passage], n_top: int, threads: int) -> list[Told]:
    """(tokens [T, N], log probabilities [T, N]) of each passage, as llama.cpp tells them."""
    letter = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"a")
    llamacpp = LlamaCpp(path, letter=letter, threads=threads)
    told = []
    for passage in todo:
        answers = [llamacpp.top(passage.ids[: p + 1].tolist(), n_top) for p in passage.positions]
        told.append((np.stack([a[0] for a in answers]), np.stack([a[1] for a in answers])))
    return told


def _own_top(truth: list[np.ndarray], n_top: int) -> list[Told]:
    tokens = [np.argsort(-p, axis=-1, kind="stable")[:, :n_top] for p in truth]
    return [(t, np.take_along_axis(p, t, axis=-1)) for t, p in zip(tokens, truth, strict=True)]


def _logits(runner, todo: list[Passage]) -> Iterator[np.ndarray]:
    """Logits at the compared positions, each passage prefilled in slices of 128."""
    table = np.arange(runner.n_pages, dtype=np.int32)
    for passage in todo:
        parts = []
        for start in range(0, len(passage.ids), 128):
            ids = passage.ids[start : start + 128]
            positions = np.arange(start, start + len(ids), dtype=np.int32)
            wanted = np.flatnonzero(np.isin(positions, passage.positions)).astype(np.int32)
            parts.append(runner.step(ids, positions, np.zeros_like(ids), [table], wanted))
        yield np.concatenate(parts)


def _against(truth: np.ndarray, tokens: np.ndarray, logits: np.ndarray) -> Divergence:
    q = log_softmax(logits)
    return divergence(truth, tokens, np.take_along_axis(q, tokens, axis=-1), logits.argmax(axis=-1))


def _merged(parts: list[Divergence]) -> Divergence:
    return Divergence(
        kl=np.concatenate([d.kl for d in parts]),
        flips=np.concatenate([d.flips for d in parts]),
        margins=np.concatenate([d.margins for d in parts]),
    )


def _domains(todo: list[Passage], parts: list[Divergence]) -> dict:
    by_domain: dict[str, list[np.ndarray]] = {}
    for passage, part in zip(todo, parts, strict=True):
        by_domain.setdefault(passage.domain, []).append(part.kl)
    return {"kl_mean_by_domain": {d: float(np.concatenate(k).mean()) for d, k in by_domain.items()}}


def _ratio(ours: Divergence, theirs: Divergence) -> dict:
    return {
        "kl_mean": float(ours.kl.mean() / theirs.kl.mean()),
        "interval95": ratio_interval(ours.kl, theirs.kl),
        "flips": [int(ours.flips.sum()), int(theirs.flips.sum())],
        "flips_alone": [
            int((ours.flips & ~theirs.flips).sum()),
            int((theirs.flips & ~ours.flips).sum()),
        ],
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--top", type=int, default=512)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="for llama.cpp")
    parser.add_argument("--keep", type=Path, help="a folder for what llama.cpp told")
    parser.add_argument("--runner", action="append", help="default: every runner there is")
    parser.add_argument("--json", type=Path, help="default: a file in bench/results/")
    options = parser.parse_args(arguments)
    shared = shared_folder()
    if shared is None:
        print("the shared folder with the texts is not there: set INSULA_SHARED", file=sys.stderr)
        return 2
    row = kl_against_fp32(
        options.model,
        texts(shared),
        kinds=[k for k in RUNNERS if options.runner is None or k.name in options.runner],
        n_tokens=options.tokens,
        top=options.top,
        every=options.every,
        peer_threads=options.threads,
        keep=options.keep,
    )
    for name, numbers in row["engines"].items():
        print(
            f"{name:10s} KL mean {numbers['kl_mean']:.6f}  99.9% {numbers['kl_p99.9']:.4f}  "
            f"same top {numbers['same_top']:.4%}  flips {numbers['flips']} of "
            f"{numbers['positions']}, margins up to {numbers['margin_max']:.3f} nats"
        )
    for name, ratio in row["ratio_to_llamacpp"].items():
        low, high = ratio["interval95"]
        print(f"{name} / llamacpp: {ratio['kl_mean']:.3f} of its mean KL ({low:.3f}-{high:.3f})")
    out = options.json or ROOT / "bench" / "results" / f"kl-{options.model.stem}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
