"""`insula quantize`: the same model in another format, and what it lost on the way."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from insula.cli.inputs import not_an_input, read_text, within
from insula.cli.output import facts, is_terminal, say, say_json, size
from insula.engine.load import MAX_THREADS
from insula.errors import ConfigError, QualityError
from insula.hub.resolve import resolve
from insula.locale import text
from insula.models.mixes import TARGETS
from insula.models.mixes import target as target_format

if TYPE_CHECKING:
    from insula.cli.counter import Counter
    from insula.engine.quality import Quality
    from insula.models.importance import Importance
    from insula.models.quantize import QuantizeReport

#: Fewer tokens than this make an importance matrix that is mostly chance.
FEW_TOKENS = 10_000


def quantize(
    source: Annotated[str, typer.Argument(metavar="IN", help=text("help.quantize_in"))],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=text("help.quantize_out"))],
    fmt: Annotated[str, typer.Argument(metavar="FORMAT", help=text("help.quantize_format"))],
    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", metavar="FILE", help=text("help.quantize_imatrix"))
    ] = None,
    save_imatrix: Annotated[
        Path | None, typer.Option("--save-imatrix", metavar="FILE", help=text("help.quantize_save"))
    ] = None,
    report: Annotated[bool, typer.Option("--report", help=text("help.quantize_report"))] = False,
    max_kl: Annotated[
        float | None, typer.Option("--max-kl", metavar="X", help=text("help.quantize_max_kl"))
    ] = None,
    measured_on: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help=text("help.quantize_text"))
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", help=text("help.threads"))
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help=text("help.force"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=text("help.json"))] = False,
) -> None:
    """The command."""
    try:
        wanted = target_format(fmt)
    except ConfigError:
        known = ", ".join(TARGETS)
        raise ConfigError(text("quantize.no_such_format", name=fmt[:40], known=known)) from None
    within("--threads", threads, MAX_THREADS)
    if max_kl is not None and not (math.isfinite(max_kl) and max_kl >= 0):
        raise ConfigError(text("quantize.max_kl_range", value=max_kl))
    compares = report or max_kl is not None
    if measured_on is not None and not compares:
        raise ConfigError(text("quantize.text_without_report"))
    if save_imatrix is not None and imatrix is None:
        raise ConfigError(text("quantize.save_without_imatrix"))
    path = resolve(source)
    _check_target(target, path, force=force)
    not_an_input(target, path, imatrix, measured_on)
    if save_imatrix is not None:
        not_an_input(save_imatrix, path, imatrix, measured_on, target)
    if compares:
        from insula.engine.quality import MOST_WINDOWS, builtin_text
        from insula.models.load import open_model

        page = builtin_text() if measured_on is None else read_text(measured_on)
        open_model(path).close()  # what cannot run here is said before the work, not after it
    importance, notes = None, list[str]()
    if imatrix is not None:
        importance, notes = _importance(
            path, imatrix, save_imatrix, threads, force=force, quiet=as_json
        )
    from insula.models.quantize import quantize_file

    found: list[Quality] = []

    def accept(candidate: Path) -> None:
        from insula.engine.quality import compare

        name = text("quantize.builtin") if measured_on is None else measured_on.name
        with _counting("quantize.comparing", quiet=as_json) as progress:
            quality = compare(path, candidate, page, name=name, threads=threads, progress=progress)
        found.append(quality)
        if max_kl is not None and not quality.kl_mean <= max_kl:
            n = _parameters(candidate)
            raise QualityError(
                text(
                    "quantize.too_far",
                    path=target,
                    found=f"{quality.kl_mean:.4g}",
                    allowed=f"{max_kl:g}",
                    same=_percent(quality.same_top),
                    bits=f"{8 * candidate.stat().st_size / n:.2f}",
                )
            )

    with _counting("quantize.working", quiet=as_json) as progress:
        made = quantize_file(
            path,
            target,
            wanted.name,
            importance=None if importance is None else importance.weights(),
            progress=progress,
            accept=accept if compares else None,
            overwrite=force,
            threads=threads or 0,
        )
    if found and found[0].left_out:
        notes.append(_cut(found[0].text, MOST_WINDOWS, found[0].window))
    if importance is not None and found and found[0].text in importance.datasets:
        notes.append(text("quantize.same_text"))
    if as_json:
        document = {"source": str(path), "target": str(target), **asdict(made)}
        document["notes"] = [*made.notes, *notes]
        if found:
            document["quality"] = found[0].row()
        say_json(document)
        return
    _tell(target, made, found[0] if found else None, notes)


def _check_target(target: Path, source: Path, *, force: bool) -> None:
    if target.is_dir():
        raise ConfigError(text("quantize.target_is_folder", path=target))
    if target.exists() and not force:
        raise ConfigError(text("quantize.target_exists", path=target))
    if target.exists() and target.samefile(source):
        raise ConfigError(text("quantize.same_file", path=target))


def _importance(
    model: Path, given: Path, keep: Path | None, threads: int | None, *, force: bool, quiet: bool
) -> tuple[Importance, list[str]]:
    """The matrix that `given` holds, or that the model makes of the text in it; and remarks."""
    from insula.models.importance import is_matrix, read_importance

    if is_matrix(given):
        if keep is not None:
            raise ConfigError(text("quantize.save_needs_text", path=given))
        found = read_importance(given)
        name = ", ".join(found.datasets) or given.name
        return found, [_importance_note(found, name)]
    if keep is not None:
        _check_target(keep, given, force=force)
    from insula.engine.importance import measure_importance

    with _counting("quantize.measuring", quiet=quiet) as progress:
        found = measure_importance(
            model, read_text(given), name=given.name, threads=threads, progress=progress
        )
    notes = [_importance_note(found, given.name)]
    tokens = int(max(count.max() for count in found.counts.values()))
    if found.left_out:
        notes.append(_cut(given.name, found.chunks, found.chunk_tokens))
    elif tokens < FEW_TOKENS:
        notes.append(text("quantize.importance_short", tokens=tokens))
    if keep is not None:
        found.save(keep, overwrite=force)
    return found, notes


def _cut(name: str, windows: int, tokens: int) -> str:
    return text("quantize.text_cut", name=name, chunks=windows, tokens=tokens)


def _importance_note(found: Importance, name: str) -> str:
    return text(
        "quantize.importance", name=name, chunks=found.chunks, tokens=found.chunk_tokens or "?"
    )


def _parameters(path: Path) -> int:
    from insula.formats.gguf import GGUFFile

    with GGUFFile.open(path) as file:
        return sum(info.n_elements for info in file.tensors.values())


def _tell(target: Path, made: QuantizeReport, quality: Quality | None, notes: list[str]) -> None:
    before, after = size(made.source_size), size(made.size)
    say(text("quantize.done", path=target, before=before, after=after))
    say(text("quantize.quality", bits=f"{made.bits_per_weight:.2f}", rmse=f"{made.rmse:.3g}"))
    if quality is not None:
        q = quality
        say(text("quantize.compared", name=q.text, tokens=q.tokens, window=q.window))
        nats = text(
            "quantize.nats",
            mean=f"{q.kl_mean:.4g}",
            median=f"{q.kl_median:.4g}",
            p99=f"{q.kl_p99:.4g}",
            largest=f"{q.kl_max:.4g}",
        )
        speeds = (q.decode_tokens_per_second_source, q.decode_tokens_per_second)
        rows = [
            (text("quantize.perplexity"), _from_to(q.perplexity_source, q.perplexity, ".3f")),
            (text("quantize.divergence"), nats),
            (text("quantize.same_top"), _percent(q.same_top)),
            (text("quantize.speed"), _from_to(*speeds, ".1f")),
        ]
        say(facts((f"  {name}", value) for name, value in rows))
    for line in (*made.notes, *notes):
        say(f"- {line}")


def _from_to(before: float, after: float, form: str) -> str:
    return text("quantize.from_to", before=format(before, form), after=format(after, form))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


@contextmanager
def _counting(key: str, *, quiet: bool) -> Iterator[Counter | None]:
    """A counter on a terminal's standard error, wiped at the end."""
    if quiet or not is_terminal(sys.stderr):
        yield None
        return
    from insula.cli.counter import Counter

    counter = Counter(text(key))
    try:
        yield counter
    finally:
        counter.close()
