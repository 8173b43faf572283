"""The capability table: which backends exist, which are here, and what each can do.

Owns the names of the capabilities and the one place that turns a missing one into an
UnsupportedError with the backend's name in it. Knows nothing about models; nothing heavy is
imported to answer, a wheel's presence is read from the import system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType

from insula.errors import ConfigError, UnsupportedError

#: What a caller may want of a backend, and what that means.
CAPABILITIES: Mapping[str, str] = MappingProxyType(
    {
        "generate": "text from ids or text, streamed, cancellable",
        "sampling": "every option of SamplingParams",
        "logprobs": "log probabilities of generated tokens, with the top alternatives",
        "logits": "raw logits of every prompt position",
        "perplexity": "log-likelihood of a given text",
        "cache_isolation": "prefixes shared only between requests of the same salt",
        "reproducible": "tokens depend on the request alone: not on cache, slicing or threads",
        "concurrent": "several requests advance together in one batch",
        "speculation": "guessed tokens confirmed several at a time",
        "embeddings": "vectors for texts",
        "adapters": "low-rank adapters, chosen per request",
        "constraints": "answers held to a JSON schema or a grammar, and calls of tools",
        "gpu": "runs on a GPU where the installed build has one",
        "tokenizer": "texts to token ids and back",
        "vision": "images in a conversation",
        "audio": "sound in a conversation",
    }
)


@dataclass(frozen=True, kw_only=True)
class BackendInfo:
    """One row. `why_not` says what is missing and how to get it when not installed.

    capabilities: a subset of CAPABILITIES.
    limits: for a capability that is absent or partial, what is missing, in one clause.
    """

    name: str
    title: str
    installed: bool
    why_not: str | None
    capabilities: frozenset[str]
    limits: Mapping[str, str]

    def can(self, capability: str) -> bool:
        """Whether the backend has it. KeyError for a word that is not a capability."""
        CAPABILITIES[capability]
        return capability in self.capabilities


_COMMON = frozenset({"generate", "logprobs", "cache_isolation", "tokenizer"})
_TEXT_ALONE = {"vision": "text alone", "audio": "text alone"}

_ROWS: tuple[tuple[str, str, str | None, frozenset[str], dict[str, str]], ...] = (
    (
        "native",
        "Insula's own engine",
        "insula._native",
        _COMMON
        | {"sampling", "logits", "perplexity", "reproducible", "concurrent", "speculation"}
        | {"adapters", "constraints", "embeddings"},
        {
            "gpu": "CPU only",
            **_TEXT_ALONE,
        },
    ),
    (
        "llamacpp",
        "llama.cpp, from the xllamacpp wheel",
        "xllamacpp",
        _COMMON | {"sampling", "gpu", "vision", "audio"},
        {
            "sampling": "but seeds of more than 32 bits, a logit_bias of +inf, and mirostat "
            "with penalties, DRY or dynamic temperature",
            "logprobs": "but nan for a token that ends inside a character",
            "logits": "llama.cpp's handler gives distributions of generated tokens alone",
            "perplexity": "needs the logits of the prompt",
            "reproducible": "llama.cpp's sums depend on batch, cache and threads",
            "concurrent": "requests wait for each other",
            "speculation": "not connected",
            "adapters": "not connected",
            "constraints": "not connected",
            "embeddings": "not connected",
            "vision": "with the model's projector (mmproj)",
            "audio": "with the model's projector (mmproj)",
        },
    ),
    (
        "transformers",
        "Hugging Face transformers over PyTorch, for checkpoint folders",
        "transformers",
        _COMMON | {"sampling", "logits", "perplexity", "gpu"},
        {
            "reproducible": "PyTorch's sums depend on threads, device and slicing",
            "adapters": "not connected",
            "constraints": "not connected",
            "concurrent": "requests wait for each other",
            "speculation": "not connected",
            "embeddings": "not connected",
            **_TEXT_ALONE,
        },
    ),
    (
        "remote",
        "another server that speaks OpenAI's routes",
        "httpx2",
        frozenset({"generate", "logprobs", "concurrent", "vision", "audio"}),
        {
            "sampling": "OpenAI's options, and top_k, min_p, typical_p, repeat_penalty, "
            "repeat_last_n and ignore_eos where the server takes them",
            "logits": "a server answers in text",
            "perplexity": "a server answers in text",
            "cache_isolation": "the server's own affair",
            "reproducible": "the server's own affair",
            "speculation": "the server's own affair",
            "embeddings": "not connected",
            "gpu": "the server's own affair",
            "adapters": "the server's own affair",
            "constraints": "not connected",
            "tokenizer": "the vocabulary is the server's, and token ids are not known here",
            "vision": "if the server's model takes them",
            "audio": "if the server's model takes it",
        },
    ),
    (
        "reference",
        "NumPy in float32: slow, and the truth",
        None,
        _COMMON
        | {"sampling", "logits", "perplexity", "reproducible", "concurrent", "speculation"}
        | {"constraints", "embeddings"},
        {
            "gpu": "CPU only",
            "adapters": "merge them into the weights: insula merge",
            **_TEXT_ALONE,
        },
    ),
)

_WHY_NOT = {
    "native": "the compiled core insula._native is missing; reinstall insula, or build it "
    "with `make native`",
    "llamacpp": "the xllamacpp wheel is not installed; pip install 'insula[llamacpp]'",
    "transformers": "transformers and torch are not installed; pip install 'insula[train]'",
    "remote": "httpx2 is not installed; pip install insula brings it",
}


def backends() -> tuple[BackendInfo, ...]:
    """The table, with what is installed here now."""
    return tuple(_row(*row) for row in _ROWS)


def backend(name: str) -> BackendInfo:
    """One row. Raises ConfigError for a name that no backend has."""
    for info in backends():
        if info.name == name:
            return info
    raise ConfigError(f"engine: found {name!r}; allowed: {', '.join(row[0] for row in _ROWS)}")


def require(name: str, capability: str) -> None:
    """Return if backend `name` has the capability, else raise UnsupportedError naming it.

    The message says what is missing and which backends have it.
    """
    info = backend(name)
    if info.can(capability):
        return
    able = [row.name for row in backends() if row.can(capability)]
    raise UnsupportedError(
        f"the {name} backend has no {capability} ({CAPABILITIES[capability]}): "
        f"{info.limits.get(capability, 'not connected')}; "
        f"backends that have it: {', '.join(able)}",
        backend=name,
    )


def _row(
    name: str, title: str, module: str | None, can: frozenset[str], limits: dict[str, str]
) -> BackendInfo:
    installed = module is None or _present(module)
    if name == "transformers":
        installed = installed and _present("torch")
    return BackendInfo(
        name=name,
        title=title,
        installed=installed,
        why_not=None if installed else _WHY_NOT[name],
        capabilities=can,
        limits=MappingProxyType(limits),
    )


def _present(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
