"""The engines, one class each, with the face that `scenarios` asks: `ask(prompts, generate)`.

To add a peer, add a class and a row in ENGINES, and its package in `installs`. What an engine
cannot do it says with CannotError, and that is what the table shows. Peers run with their best
settings: `variants` are tried, and the best one of a scenario counts.

Runs in the peers' environment too: only Insula's own class imports Insula.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scenarios import Answer, CannotError, Scenario


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an engine is opened for. options: its own settings. words: texts of the prompts' tokens,
    for engines that take nothing else."""

    model: Path
    scenario: Scenario
    threads: int
    options: dict[str, Any] = field(default_factory=dict)
    words: dict[int, str] = field(default_factory=dict)


class Insula:
    """Through its front door; INSULA_ISA in the environment chooses the level."""

    def __init__(self, job: Job) -> None:
        from insula import LLM

        s = job.scenario
        own = s.question + s.generate + 64  # a page of slack for each stream
        room = s.prompt + s.streams * own if s.kind == "shared" else s.room + 64 * s.streams
        self._llm = LLM(
            job.model,
            engine="native",
            n_ctx=max(room, 256),
            n_threads=job.threads,
            max_running=s.streams,
            cache_dir="",
        )
        self.isa = self._llm.model_info.isa

    def ask(self, prompts: list[list[int]], generate: int, *, reuse: bool) -> list[Answer]:
        from insula import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=generate, ignore_eos=True)
        begun = time.perf_counter()
        streams = [self._llm.stream(ids, params, use_cache=reuse) for ids in prompts]
        times: list[list[float]] = [[] for _ in prompts]
        while any(stream.completion is None for stream in streams):
            self._llm._engine.step()
            now = time.perf_counter() - begun
            for stream, mine in zip(streams, times, strict=True):
                while stream.completion is None and stream.ready:
                    mine += [now] * len(next(stream).token_ids)
        answers = []
        for stream, mine in zip(streams, times, strict=True):
            report = stream.completion.report
            computed = report.prompt_tokens - report.cached_tokens
            n, speed = len(mine), report.decode_tokens_per_second
            answers.append(
                Answer(
                    ids=list(stream.completion.token_ids),
                    times=mine,
                    computed=computed,
                    prefill=computed / report.prompt_tokens_per_second,
                    decode=(n - 1) / speed if n > 1 else None,
                )
            )
        return answers


class XLlamaCpp:
    """llama.cpp's server from the xllamacpp wheel, by the timings that it reports itself."""

    def __init__(self, job: Job) -> None:
        import xllamacpp

        s = job.scenario
        params = xllamacpp.CommonParams()
        params.model.path = str(job.model)
        params.n_ctx = max(s.longest + 64, 256) * s.streams
        params.n_parallel = s.streams
        params.cpuparams.n_threads = job.threads
        params.cpuparams_batch.n_threads = job.threads
        params.flash_attn_type = getattr(
            xllamacpp.llama_flash_attn_type,
            f"LLAMA_FLASH_ATTN_TYPE_{'ENABLED' if job.options['flash_attn'] else 'DISABLED'}",
        )
        params.fit_params = False
        params.n_ctx_checkpoints = 0
        if not s.reuses:  # else its own default: it keeps prompts in memory beside the slots
            params.cache_ram_mib = 0
        params.warmup = s.kind != "start"
        params.ui = False
        params.n_threads_http = 1
        params.verbosity = -1
        self._ids = s.kind == "chat"
        self._server = xllamacpp.Server(params)
        self._server.handle_metrics()  # an answer means that its loop runs
        self.isa = llamacpp_isa(str(xllamacpp.get_system_info()))

    def ask(self, prompts: list[list[int]], generate: int, *, reuse: bool) -> list[Answer]:
        begun = time.perf_counter()
        if len(prompts) == 1 and not reuse:
            return [self._whole(prompts[0], generate, begun)]
        answers: list[Answer | None] = [None] * len(prompts)

        def one(i: int) -> None:
            answers[i] = self._streamed(prompts[i], generate, begun, reuse=reuse)

        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [answer for answer in answers if answer is not None]

    def _whole(self, prompt: list[int], generate: int, begun: float) -> Answer:
        t = self._server.handle_completions(_request(prompt, generate, reuse=False))["timings"]
        assert t["prompt_n"] == len(prompt)
        assert t["predicted_n"] == generate
        decode = t["predicted_ms"] / 1000  # its clock starts with the first token
        first = time.perf_counter() - begun - decode
        times = [first + decode * i / max(1, generate - 1) for i in range(generate)]
        return Answer(
            ids=[],
            times=times,
            computed=t["prompt_n"],
            prefill=t["prompt_ms"] / 1000,
            decode=decode,
        )

    def _streamed(self, prompt: list[int], generate: int, begun: float, *, reuse: bool) -> Answer:
        times: list[float] = []
        ids: list[int] = []
        last: dict[str, Any] = {}

        def on_chunk(chunk: dict[str, Any]) -> bool:
            if "error" in chunk:
                last["error"] = chunk["error"]
                return True
            last["timings"] = timings = chunk.get("timings", last.get("timings", {}))
            # A token that ends inside a character comes with the one that completes it.
            n = int(timings.get("predicted_n", 0))
            times.extend([time.perf_counter() - begun] * (n - len(times)))
            scored = chunk["choices"][0]["logprobs"] or {}
            ids.extend(int(entry["id"]) for entry in scored.get("content", ()))
            return False

        request = _request(prompt, generate, reuse=reuse)
        stream: dict[str, Any] = {"stream": True, "timings_per_token": True}
        if self._ids:  # it names its tokens only beside their probabilities
            stream["n_probs"] = 1
        self._server.handle_completions({**request, **stream}, on_chunk)
        if "error" in last:
            raise RuntimeError(str(last["error"]))
        t = last["timings"]
        return Answer(ids=ids, times=times, computed=t["prompt_n"], decode=t["predicted_ms"] / 1000)


def _request(prompt: list[int], generate: int, *, reuse: bool) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "n_predict": generate,
        "temperature": 0,
        "samplers": ["temperature"],
        "ignore_eos": True,
        "cache_prompt": reuse,
    }


class LlamaCppPython:
    """llama.cpp as llama-cpp-python builds it, by its C functions: no Python between two tokens
    but the greedy choice. A prefix that streams share is copied from the first one's cells."""

    N_BATCH = 2048

    def __init__(self, job: Job) -> None:
        import llama_cpp
        import numpy as np

        s = job.scenario
        self._c, self._np = llama_cpp, np
        llama_cpp.llama_log_set(_silent(llama_cpp), None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            str(job.model).encode(), llama_cpp.llama_model_default_params()
        )
        if not model:
            raise RuntimeError("llama.cpp could not load the model")
        params = llama_cpp.llama_context_default_params()
        # One buffer for all where they share cells; else each its own, which is faster.
        params.kv_unified = s.kind == "shared"
        params.n_ctx = s.streams * max(s.longest + 64, 256)
        params.n_batch, params.n_ubatch = self.N_BATCH, 512
        params.n_seq_max = s.streams
        params.n_threads = params.n_threads_batch = job.threads
        params.flash_attn_type = int(job.options["flash_attn"])
        self._context = llama_cpp.llama_init_from_model(model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._batch = llama_cpp.llama_batch_init(self.N_BATCH, 0, 1)
        self._kept: list[int] = []  # what the first sequence's cells hold
        self.isa = llamacpp_isa(llama_cpp.llama_print_system_info().decode())

    def ask(self, prompts: list[list[int]], generate: int, *, reuse: bool) -> list[Answer]:
        begun = time.perf_counter()
        known = [self._prepare(i, prompt, reuse=reuse) for i, prompt in enumerate(prompts)]
        ids: list[list[int]] = []
        times: list[list[float]] = []
        for i, (prompt, start) in enumerate(zip(prompts, known, strict=True)):
            for at in range(start, len(prompt), self.N_BATCH):
                part = prompt[at : at + self.N_BATCH]
                wanted = at + len(part) == len(prompt)
                last = self._decode([(i, at + k, t) for k, t in enumerate(part)], wanted=wanted)
            ids.append([last[-1]])
            times.append([time.perf_counter() - begun])
        for n in range(generate - 1):
            step = [(i, len(p) + n, ids[i][-1]) for i, p in enumerate(prompts)]
            tokens = self._decode(step, wanted=True)
            now = time.perf_counter() - begun
            for i, token in enumerate(tokens[-len(prompts) :]):
                ids[i].append(token)
                times[i].append(now)
        self._kept = prompts[0] + ids[0][:-1]
        return [
            Answer(ids=i, times=t, computed=len(p) - k)
            for i, t, p, k in zip(ids, times, prompts, known, strict=True)
        ]

    def _prepare(self, seq: int, prompt: list[int], *, reuse: bool) -> int:
        """Empty the sequence but for what it may keep; how much that is."""
        pairs = zip(prompt[:-1], self._kept, strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], pairs)) if reuse else 0
        self._c.llama_memory_seq_rm(self._memory, seq, same if seq == 0 else 0, -1)
        if seq and same:
            self._c.llama_memory_seq_cp(self._memory, 0, seq, 0, same)
        if seq == 0:
            self._kept = self._kept[:same]
        return same

    def _decode(self, tokens: list[tuple[int, int, int]], *, wanted: bool) -> list[int]:
        """Run (sequence, position, token); the greedy choice after each sequence's last one."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        last = {seq: row for row, (seq, _, _) in enumerate(tokens)}
        for row, (seq, position, token) in enumerate(tokens):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, seq
            batch.logits[row] = wanted and last[seq] == row
        if self._c.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        self._c.llama_synchronize(self._context)
        if not wanted:
            return []
        rows = (self._c.llama_get_logits_ith(self._context, row) for row in last.values())
        as_array = self._np.ctypeslib.as_array
        return [int(as_array(row, shape=(self._n_vocab,)).argmax()) for row in rows]


def _silent(llama_cpp: Any) -> Any:
    """A log callback that says nothing; kept by the module, for llama.cpp keeps only a pointer."""
    global _SILENT
    _SILENT = llama_cpp.llama_log_callback(lambda *_: None)
    return _SILENT


class OpenVINO:
    """OpenVINO GenAI, which reads some GGUF files. Its continuous batching, stepped by hand, or
    for a single stream its pipeline with the other attention."""

    def __init__(self, job: Job) -> None:
        import openvino as ov
        import openvino_genai as genai

        s = job.scenario
        self._ov, self._genai = ov, genai
        properties = {"INFERENCE_NUM_THREADS": job.threads}
        self.isa = _openvino_isa()
        self._single = None
        if job.options["attention"] == "SDPA":
            if s.streams > 1 or s.reuses:
                raise CannotError("not with this attention")
            self._single = genai.LLMPipeline(
                job.model, "CPU", ATTENTION_BACKEND="SDPA", **properties
            )
            return
        scheduler = genai.SchedulerConfig()
        # In GB. For the memory scenario it grows with what is said, as it does by default.
        scheduler.cache_size = 0 if s.kind in ("memory", "start") else 4
        scheduler.max_num_seqs = max(s.streams, 1)
        scheduler.max_num_batched_tokens = max(512, s.streams)
        scheduler.enable_prefix_caching = s.reuses
        self._pipe = genai.ContinuousBatchingPipeline(job.model, scheduler, "CPU", properties)
        self._ids = itertools.count()
        self._seen: list[list[int]] = []

    def _config(self, generate: int) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = generate
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        return config

    def _tensor(self, ids: list[int]) -> Any:
        import numpy as np

        return self._ov.Tensor(np.array([ids], dtype=np.int64))

    def ask(self, prompts: list[list[int]], generate: int, *, reuse: bool) -> list[Answer]:
        if self._single is not None:
            return [self._one(prompts[0], generate)]
        config = self._config(generate)
        begun = time.perf_counter()
        handles = [
            self._pipe.add_request(next(self._ids), self._tensor(ids), config) for ids in prompts
        ]
        times: list[list[float]] = [[] for _ in prompts]
        found: list[list[int]] = [[] for _ in prompts]
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
            now = time.perf_counter() - begun
            for i, handle in enumerate(handles):
                while handle.can_read():
                    for output in handle.read().values():
                        found[i] += output.generated_ids
                        times[i] += [now] * len(output.generated_ids)
        if any(len(t) != generate for t in times):
            raise RuntimeError(f"OpenVINO gave {[len(t) for t in times]} tokens of {generate}")
        answers = [
            Answer(ids=f, times=t, computed=self._computed(p, reuse=reuse))
            for f, t, p in zip(found, times, prompts, strict=True)
        ]
        self._seen += [p + f for p, f in zip(prompts, found, strict=True)]
        return answers

    def _computed(self, prompt: list[int], *, reuse: bool) -> int:
        """It does not tell; its cache keeps whole blocks of 32 tokens."""
        if not reuse:
            return len(prompt)
        same = 0
        for seen in self._seen:
            pairs = zip(prompt[:-1], seen, strict=False)
            same = max(same, sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], pairs)))
        return len(prompt) - same // 32 * 32

    def _one(self, prompt: list[int], generate: int) -> Answer:
        times: list[float] = []
        begun = time.perf_counter()
        result = self._single.generate(
            self._tensor(prompt),
            self._config(generate),
            lambda *_: times.append(time.perf_counter() - begun) and None,
        )
        n = len(result.tokens[0])
        metrics = result.perf_metrics
        first = metrics.get_ttft().mean / 1000
        each = metrics.get_tpot().mean / 1000 if n > 1 else 0.0
        return Answer(
            ids=list(result.tokens[0]),
            times=[first + each * i for i in range(n)],
            computed=len(prompt),
        )


class Gpt4All:
    """GPT4All's Python package: one conversation at a time, text in."""

    def __init__(self, job: Job) -> None:
        from gpt4all import GPT4All

        if job.scenario.streams > 1 and job.scenario.kind == "streams":
            raise CannotError("one conversation at a time")
        self._words = job.words
        self._job = job
        self._model = GPT4All(
            job.model.name,
            model_path=str(job.model.parent),
            allow_download=False,
            device="cpu",
            n_threads=job.threads,
            n_ctx=max(job.scenario.longest + 72, 256),
            verbose=False,
        )
        self.isa = "avx2"  # the wheel's build
        self._known: list[int] = []
        self._chat = contextlib.ExitStack()

    def ask(self, prompts: list[list[int]], generate: int, *, reuse: bool) -> list[Answer]:
        if len(prompts) > 1:
            raise CannotError("one conversation at a time")
        [prompt] = prompts
        known = self._known if reuse and prompt[: len(self._known)] == self._known else []
        if not known:
            self._chat.close()
            self._chat.enter_context(self._model.chat_session("", "{0}"))
        times: list[float] = []
        ids: list[int] = []
        begun = time.perf_counter()

        def on_token(token: int, _: str) -> bool:
            times.append(time.perf_counter() - begun)
            ids.append(token)
            return True

        self._model.generate(
            "".join(self._words[i] for i in prompt[len(known) :] if i in self._words),
            max_tokens=generate,
            temp=0,
            top_k=1,
            repeat_penalty=1.0,
            n_batch=128,
            callback=on_token,
        )
        if len(times) <= generate // 2:
            raise CannotError(f"ended its answer after {len(times)} of {generate} tokens")
        self._known = prompt + ids
        return [Answer(ids=ids, times=times, computed=len(prompt) - len(known))]


def llamacpp_isa(info: str) -> str:
    """The highest level that llama.cpp's system information names."""
    for flag, name in (
        ("AMX_INT8", "amx"),
        ("AVX512", "avx512"),
        ("AVX2", "avx2"),
        ("MATMUL_INT8", "neon-i8mm"),
        ("DOTPROD", "neon-dotprod"),
        ("NEON", "neon"),
    ):
        if f"{flag} = 1" in info:
            return name
    return "generic"


def _openvino_isa() -> str:
    """It takes what the processor has, at run time."""
    from machine import has_flag

    for flag, name in (("amx_int8", "amx"), ("avx512_vnni", "avx512"), ("avx2", "avx2")):
        if has_flag(flag):
            return name
    return "generic"


FLASH = ({"flash_attn": True}, {"flash_attn": False})


@dataclass(frozen=True, kw_only=True)
class Row:
    """A class to open, the package whose version counts, and the settings to try."""

    engine: Any
    package: str
    variants: tuple[dict[str, Any], ...] = ({},)


ENGINES: dict[str, Row] = {
    "insula": Row(engine=Insula, package="insula"),
    "xllamacpp": Row(engine=XLlamaCpp, package="xllamacpp", variants=FLASH),
    "openvino-genai": Row(
        engine=OpenVINO,
        package="openvino-genai",
        variants=({"attention": "PA"}, {"attention": "SDPA"}),
    ),
    "gpt4all": Row(engine=Gpt4All, package="gpt4all"),
    "llama-cpp-python": Row(engine=LlamaCppPython, package="llama-cpp-python", variants=FLASH),
}
