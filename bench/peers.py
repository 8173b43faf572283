"""One measurement of one engine in a process of its own.

    python bench/peers.py '{"subject": "insula", "model": "…", …}'    -> one JSON line

`bench/run.py` starts these, in turns. A subject is a function from a `Job` to figures; its row
in SUBJECTS says whether it is installed here and which version. To add a peer, add a function
and a row.

What is measured, the same for everybody:
- prefill: tokens/s of `prompt` random tokens, nothing cached, one token generated;
- decode: tokens/s of tokens 2 to n after a prompt of `context` random tokens, greedy, end
  tokens ignored.
Each is run `repeats` times after a warm-up; the figures are all given, best to worst.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

N_CTX = 1024


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run. `options` are the subject's own (a peer's best settings)."""

    subject: str
    model: str
    threads: int = 2
    prompt: int = 512
    context: int = 128
    decode: int = 64
    repeats: int = 3
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An engine to measure. `variants` are settings of which the best one counts, by metric."""

    name: str
    module: str
    measure: Callable[[Job], dict[str, Any]]
    variants: tuple[dict[str, Any], ...] = ({},)

    @property
    def installed(self) -> bool:
        return find_spec(self.module) is not None

    @property
    def version(self) -> str:
        try:
            return version(self.module)
        except PackageNotFoundError:
            return "not installed"


def random_ids(n: int, *, n_vocab: int, seed: int) -> list[int]:
    """Ordinary tokens: the low and high ends of a vocabulary are special ones and bytes."""
    rng = random.Random(seed)
    low, high = (300, n_vocab - 300) if n_vocab > 2000 else (0, n_vocab)
    return [rng.randrange(low, high) for _ in range(n)]


def measure_insula(job: Job) -> dict[str, Any]:
    """Insula through its front door; INSULA_ISA in the environment chooses the level."""
    from insula import LLM, SamplingParams

    started = time.perf_counter()
    llm = LLM(job.model, engine="native", n_ctx=N_CTX, n_threads=job.threads)
    load = time.perf_counter() - started
    n_vocab = llm.model_info.n_vocab

    def ask(n: int, generate: int, seed: int) -> Any:
        params = SamplingParams(temperature=0, max_tokens=generate, ignore_eos=True)
        ids = random_ids(n, n_vocab=n_vocab, seed=seed)
        return llm.generate(ids, params, use_cache=False).report

    ask(job.context, 4, 0)
    prefill = [ask(job.prompt, 1, 1 + r).prompt_tokens_per_second for r in range(job.repeats)]
    decode = [
        ask(job.context, job.decode, 100 + r).decode_tokens_per_second for r in range(job.repeats)
    ]
    report = ask(1, 1, 999)
    return {
        "prefill": prefill,
        "decode": decode,
        "load_seconds": load,
        "isa": report.isa,
        "threads": report.threads,
    }


def measure_xllamacpp(job: Job) -> dict[str, Any]:
    """llama.cpp from the xllamacpp wheel, by the timings that it reports itself."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job.model
    params.n_ctx = N_CTX
    params.n_parallel = 1
    params.cpuparams.n_threads = job.threads
    params.cpuparams_batch.n_threads = job.threads
    params.flash_attn_type = getattr(
        xllamacpp.llama_flash_attn_type,
        f"LLAMA_FLASH_ATTN_TYPE_{'ENABLED' if job.options.get('flash_attn') else 'DISABLED'}",
    )
    params.fit_params = False
    params.cache_ram_mib = 0
    params.n_ctx_checkpoints = 0
    params.warmup = True
    params.ui = False
    params.n_threads_http = 1
    params.verbosity = -1
    started = time.perf_counter()
    server = xllamacpp.Server(params)
    load = time.perf_counter() - started
    n_vocab = job.options["n_vocab"]

    def ask(n: int, generate: int, seed: int) -> dict[str, float]:
        answer = server.handle_completions(
            {
                "prompt": random_ids(n, n_vocab=n_vocab, seed=seed),
                "n_predict": generate,
                "temperature": 0,
                "samplers": ["temperature"],
                "ignore_eos": True,
                "cache_prompt": False,
            }
        )
        timings: dict[str, float] = answer["timings"]
        assert timings["prompt_n"] == n
        assert timings["predicted_n"] == generate
        return timings

    ask(job.context, 4, 0)
    prefill = [ask(job.prompt, 1, 1 + r)["prompt_per_second"] for r in range(job.repeats)]
    decode = []
    for r in range(job.repeats):
        timings = ask(job.context, job.decode, 100 + r)
        # llama.cpp's clock starts with the first token, which it counts all the same.
        decode.append((timings["predicted_n"] - 1) / timings["predicted_ms"] * 1000)
    return {
        "prefill": prefill,
        "decode": decode,
        "load_seconds": load,
        "isa": _llamacpp_isa(str(xllamacpp.get_system_info())),
        "threads": job.threads,
    }


def measure_bandwidth(job: Job) -> dict[str, Any]:
    """GB/s of a prefetching read by all threads: the limit that decode is held to."""
    from insula import _native

    megabytes = int(job.options.get("megabytes", 1024))
    best = max(_native.measure_bandwidth(job.threads, megabytes) for _ in range(job.repeats))
    return {"bandwidth": best}


SUBJECTS: dict[str, Subject] = {
    row.name: row
    for row in (
        Subject(name="insula", module="insula", measure=measure_insula),
        Subject(
            name="xllamacpp",
            module="xllamacpp",
            measure=measure_xllamacpp,
            variants=({"flash_attn": True}, {"flash_attn": False}),
        ),
        Subject(name="bandwidth", module="insula", measure=measure_bandwidth),
    )
}


def machine() -> dict[str, Any]:
    """What a figure depends on, without a name of the machine or its user."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    """The model's name; where a hypervisor hides it, family, model and stepping too."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    first = info.read_text(encoding="utf-8").partition("\n\n")[0]
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in first.splitlines())
    }
    name = fields.get("model name", platform.machine())
    numbers = [fields.get(k) for k in ("cpu family", "model", "stepping")]
    return f"{name} (family {numbers[0]}, model {numbers[1]}, stepping {numbers[2]})"


def _llamacpp_isa(info: str) -> str:
    for flag, name in (
        ("AVX512", "avx512"),
        ("AVX2", "avx2"),
        ("MATMUL_INT8", "neon-i8mm"),
        ("DOTPROD", "neon-dotprod"),
        ("NEON", "neon"),
    ):
        if f"{flag} = 1" in info:
            return name
    return "generic"


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    figures = SUBJECTS[job.subject].measure(job)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures["peak_bytes"] = peak if sys.platform == "darwin" else peak * 1024
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
