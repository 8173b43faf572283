"""An answer on its way to the screen or a pipe, and what is said about it afterwards."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from insula.cli.output import is_terminal, tame, write
from insula.locale import text
from insula.types import Chunk, Completion, Report, TokenLogprob


class Printer:
    """Writes the pieces of one answer as they come. `text` is what was written so far."""

    def __init__(self) -> None:
        self.text = ""
        self._tame = is_terminal(sys.stdout)

    def __call__(self, piece: str) -> None:
        if not self.text:
            piece = piece.lstrip("\n")  # some models begin with an empty line
        if piece:
            self.text += piece
            write(tame(piece) if self._tame else piece)

    def end(self) -> None:
        """Finish the line."""
        if not self.text.endswith("\n"):
            write("\n")


def print_all(chunks: Iterable[Chunk], printer: Printer) -> Completion | None:
    """Print a stream to its end; the Completion its last chunk carries."""
    completion = None
    for chunk in chunks:
        printer(chunk.text)
        if chunk.completion is not None:
            completion = chunk.completion
    return completion


def remarks(completion: Completion, *, limited: bool, known: tuple[str, ...]) -> list[str]:
    """What the person should know: what was cut or dropped.

    limited: they set the limit themselves. known: notes about the model, which need no repeating.
    """
    lines = [line for line in completion.report.notes if line not in known]
    if completion.finish_reason == "length" and not limited:
        lines.append(text("run.context_full"))
    return lines


def statistics(report: Report) -> str:
    """One line of figures."""
    line = text(
        "run.stats",
        prompt=report.prompt_tokens,
        cached=report.cached_tokens,
        prefill=f"{report.prompt_tokens_per_second:.0f}",
        completion=report.completion_tokens,
        decode=f"{report.decode_tokens_per_second:.1f}",
        first=f"{report.time_to_first_token:.2f}",
        engine=report.engine,
        isa=report.isa,
        threads=report.threads,
        seed=report.seed,
    )
    if report.draft_proposed:
        line += text(
            "run.stats_guesses", accepted=report.draft_accepted, proposed=report.draft_proposed
        )
    return line


def document(completion: Completion, model: str) -> dict[str, Any]:
    """A completion as JSON has it. Tokens that are not UTF-8 alone are base64 under "bytes"."""
    report = asdict(completion.report)
    report["notes"] = list(report["notes"])
    return {
        "model": model,
        "text": completion.text,
        "reasoning": completion.reasoning,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "logprobs": None
        if completion.logprobs is None
        else [_logprob(entry) for entry in completion.logprobs],
        "report": report,
    }


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    top = [{"id": i, **_token(token), "logprob": value} for i, token, value in entry.top]
    return {"id": entry.token_id, **_token(entry.token), "logprob": entry.logprob, "top": top}


def _token(token: bytes) -> dict[str, str]:
    try:
        return {"token": token.decode()}
    except UnicodeDecodeError:
        return {"bytes": base64.b64encode(token).decode()}
