"""`insula show`: what a model is, what it needs, and whether that fits here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from insula.cli.output import facts, note, number, say, say_json, size, tame
from insula.config import settings
from insula.errors import ConfigError, FormatError, InsulaError, NotFoundError
from insula.formats.gguf import GGUFFile
from insula.hub import advice
from insula.hub.advice import Memory, Needs
from insula.hub.resolve import Located, locate
from insula.hub.store import ModelStore
from insula.locale import text
from insula.models.load import Summary, summarize

#: Taken where neither the person nor the file says how long a context is, in tokens.
UNKNOWN_CONTEXT = 4096
TEMPLATE_LINES = 3


def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=text("help.model"))],
    ctx: Annotated[
        int | None, typer.Option("--ctx", "-c", metavar="N", help=text("help.show_ctx"))
    ] = None,
    template: Annotated[bool, typer.Option("--template", help=text("help.show_template"))] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help=text("help.show_metadata"))] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help=text("help.show_tensors"))] = False,
    modelfile: Annotated[
        bool, typer.Option("--modelfile", help=text("help.show_modelfile"))
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    located = locate(model)
    if modelfile:
        if as_json:
            say_json({"modelfile": _modelfile(located, str)})
        else:
            _say_modelfile(located)
        return
    if ctx is not None and ctx < 1:
        raise ConfigError(text("show.bad_ctx", value=ctx))
    with _opened(located.path) as file:
        if template and as_json:
            say_json({"template": _template(file.metadata)})
            return
        if template:
            say(_template(file.metadata) or "")
            return
        summary = summarize(file)
        needs = _needs(file, summary, ctx)
        if as_json:
            say_json(_document(file, located, summary, needs, with_tensors=tensors))
            return
        say(facts(_facts(file, located, summary, needs)))
        if metadata:
            say()
            say(facts((key, _brief(value)) for key, value in file.metadata.items()))
        if tensors:
            say()
            say(
                facts(
                    (name, f"{info.type.name:6} {' x '.join(map(str, info.shape))}")
                    for name, info in file.tensors.items()
                )
            )


def _opened(path: Path) -> GGUFFile:
    """All parts of a model in several files; one part alone where the others are not here."""
    try:
        return GGUFFile.open(path)
    except (FormatError, NotFoundError):
        return GGUFFile.open(path, allow_split=True)


def _say_modelfile(located: Located) -> None:
    """Without control characters, also into a file: somebody will look at that on a terminal."""
    left_out = 0

    def clean(value: str) -> str:
        nonlocal left_out
        kept = tame(value)
        left_out += len(value) - len(kept)
        return kept

    say(_modelfile(located, clean))
    if left_out:
        note(text("show.controls", count=left_out))


def _modelfile(located: Located, clean: Callable[[str], str]) -> str:
    """The Modelfile that makes this model again."""
    if located.manifest is None:
        return f"FROM {located.path}"
    from insula.hub.create import write_modelfile

    return write_modelfile(located.manifest, ModelStore(), clean=clean)


def _own(located: Located) -> list[tuple[str, str]]:
    """What a Modelfile or a registry set, as rows."""
    if located.manifest is None:
        return []
    defaults, layers = located.manifest.defaults, located.manifest.layers
    rows = [
        (text("show.parameters_set"), f"{name} {value}")
        for name, value in defaults.parameters.items()
    ]
    if defaults.system:
        rows.append((text("show.system"), _brief(defaults.system)))
    if defaults.template:
        rows.append((text("show.own_template"), _brief(defaults.template)))
    if defaults.messages:
        rows.append((text("show.messages"), str(len(defaults.messages))))
    if (count := len(located.manifest.parts)) > 1:
        rows.append((text("show.parts"), str(count)))
    rows += [
        (text("show.layer"), f"{layer.kind} ({size(layer.size)})")
        for layer in layers
        if layer.kind != "part"
    ]
    return rows


def _needs(file: GGUFFile, summary: Summary, ctx: int | None) -> Needs | None:
    """None for a file that holds no model to run."""
    per_token = advice.kv_bytes_per_token(file.metadata)
    if not file.tensors or per_token is None:
        return None
    n_ctx = ctx or _chosen_context(
        per_token, summary.context_length or UNKNOWN_CONTEXT, summary.weight_bytes
    )
    return Needs(weights=summary.weight_bytes, kv_cache=per_token * n_ctx, n_ctx=n_ctx)


def _chosen_context(per_token: int, trained: int, weights: int) -> int:
    """The context that `run` would choose here, in tokens."""
    from insula.engine.context import plan_context

    try:
        return plan_context(
            n_ctx=None,
            n_ctx_train=trained,
            bytes_per_token=per_token,
            kv_memory=settings().kv_memory,
            available=advice.memory().available,
            weights=weights,
        ).n_ctx
    except InsulaError:  # it does not fit at all, which the verdict will say
        return trained


def _engine(located: Located, file: GGUFFile) -> tuple[str | None, str]:
    """Which engine would run it, and why; (None, why not)."""
    if not file.tensors:
        return None, text("show.vocabulary_only")
    from insula.engine.backends.choose import choose

    try:
        choice = choose(located.path)
    except InsulaError as error:
        return None, str(error)
    return choice.backend, choice.reason


def _verdict(needs: Needs, memory: Memory) -> str:
    if memory.available is None:
        return text("show.fits_unknown", needed=size(needs.total))
    key = "show.fits" if needs.total <= memory.available else "show.fits_not"
    return text(key, needed=size(needs.total), available=size(memory.available))


def _facts(
    file: GGUFFile, located: Located, summary: Summary, needs: Needs | None
) -> list[tuple[str, str]]:
    meta, arch = file.metadata, summary.arch
    tokens = meta.get("tokenizer.ggml.tokens")
    vocabulary = str(meta.get("tokenizer.ggml.model", "?"))
    pre = meta.get("tokenizer.ggml.pre")
    if isinstance(pre, str):
        vocabulary += f", {pre}"
    if tokens is not None and hasattr(tokens, "__len__"):
        vocabulary += ", " + text("show.tokens", count=f"{len(tokens):,}")
    formats = ", ".join(f"{name} {size(count)}" for name, count in summary.formats.items())
    rows = [
        (text("show.name"), summary.name or located.name),
        (text("show.file"), f"{located.path} ({size(file.size)})"),
        (text("show.architecture"), arch),
        (text("show.parameters"), number(summary.parameters) if summary.parameters else "-"),
        (text("show.quantization"), f"{summary.quantization} ({formats})" if formats else "-"),
        (text("show.context"), _tokens(summary.context_length)),
        (text("show.layers"), str(meta.get(f"{arch}.block_count", "-"))),
        (text("show.width"), str(meta.get(f"{arch}.embedding_length", "-"))),
        (text("show.vocabulary"), vocabulary),
        (text("show.template"), _template_lines(meta)),
        (text("show.licence"), _licence(located, summary) or text("show.licence_unknown")),
    ]
    if located.manifest is not None:
        rows.append((text("show.source"), located.manifest.source))
        rows += _own(located)
    engine, reason = _engine(located, file)
    rows.append((text("show.engine"), f"{engine}: {reason}" if engine else reason))
    if needs is not None:
        parts = text(
            "show.memory_parts",
            n_ctx=f"{needs.n_ctx:,}",
            weights=size(needs.weights),
            kv=size(needs.kv_cache),
            overhead=size(needs.overhead),
        )
        rows.append((text("show.memory"), f"{size(needs.total)} {parts}"))
        rows.append((text("show.here"), _verdict(needs, advice.memory())))
    return rows


def _document(
    file: GGUFFile,
    located: Located,
    summary: Summary,
    needs: Needs | None,
    *,
    with_tensors: bool,
) -> dict[str, Any]:
    memory = advice.memory()
    engine, reason = _engine(located, file)
    document: dict[str, Any] = {
        "name": summary.name,
        "asked_for": located.name,
        "path": str(located.path),
        "size": file.size,
        "sha256": located.manifest.sha256 if located.manifest else None,
        "architecture": summary.arch,
        "parameters": summary.parameters,
        "quantization": summary.quantization,
        "formats": dict(summary.formats),
        "context_length": summary.context_length,
        "licence": _licence(located, summary),
        "template": _template(file.metadata),
        "defaults": asdict(located.manifest.defaults) if located.manifest else None,
        "layers": [asdict(layer) for layer in located.manifest.layers] if located.manifest else [],
        "engine": engine,
        "engine_reason": reason,
        "memory": None,
        "available_memory": memory.available,
        "metadata": {key: _plain(value) for key, value in file.metadata.items()},
    }
    if needs is not None:
        document["memory"] = {
            "n_ctx": needs.n_ctx,
            "weights": needs.weights,
            "kv_cache": needs.kv_cache,
            "overhead": needs.overhead,
            "total": needs.total,
            "fits": None if memory.available is None else needs.total <= memory.available,
        }
    if with_tensors:
        document["tensors"] = [
            {"name": name, "type": info.type.name, "shape": list(info.shape)}
            for name, info in file.tensors.items()
        ]
    return document


def _licence(located: Located, summary: Summary) -> str | None:
    return summary.license or (located.manifest.licence if located.manifest else None)


def _tokens(count: int | None) -> str:
    return "-" if count is None else text("show.tokens", count=f"{count:,}")


def _template(metadata: Mapping[str, Any]) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None


def _template_lines(metadata: Mapping[str, Any]) -> str:
    template = _template(metadata)
    if template is None:
        return text("show.no_template")
    lines = template.strip().splitlines()
    kept = [line if len(line) <= 100 else line[:99] + "…" for line in lines[:TEMPLATE_LINES]]
    if len(lines) > TEMPLATE_LINES or any(len(line) > 100 for line in lines[:TEMPLATE_LINES]):
        kept.append(text("show.template_more"))
    return "\n".join(kept)


def _brief(value: Any) -> str:
    if isinstance(value, str):
        line = value.replace("\n", "\\n")
        return line if len(line) <= 80 else line[:79] + "…"
    if hasattr(value, "__len__"):
        head = ", ".join(str(value[i]) for i in range(min(4, len(value))))
        return f"[{head}{', …' if len(value) > 4 else ''}] ({len(value):,})"
    return str(value)


def _plain(value: Any) -> Any:
    """A metadata value as JSON has it; of a long array its length and its first entries."""
    if isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, np.generic):
        return _plain(value.item())
    head = [_plain(value[i]) for i in range(min(16, len(value)))]
    return head if len(value) <= 16 else {"length": len(value), "first": head}
