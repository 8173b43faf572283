"""Makes goldens/*.json: what transformers' own renderer says of every template and conversation.

    python tests/chat/make_goldens.py ../shared/data/chat-templates

Needs transformers. A golden maps "conversation/prompt" and "conversation/plain" (with and without
add_generation_prompt) to the text, or to null where transformers raises; it carries the sha256 of
the template and the versions that made it. The clock stands at CLOCK.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).parent
GOLDENS = HERE / "goldens"
CLOCK = dt.datetime(2025, 1, 5, 14, 30, 7, tzinfo=dt.UTC)
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>"}


class _Stopped(dt.datetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
        return CLOCK


def render(source: str, conversation: dict[str, Any], *, prompt: bool) -> str | None:
    """By transformers; None where it raises."""
    from transformers.utils import chat_template_utils

    given = dict(conversation)
    messages = given.pop("messages")
    with mock.patch.object(chat_template_utils, "datetime", _Stopped):
        try:
            texts, _ = chat_template_utils.render_jinja_template(
                [messages], chat_template=source, add_generation_prompt=prompt, **TOKENS, **given
            )
        except Exception:  # any: ours must refuse as well
            return None
    return str(texts[0])


def render_all(source: str) -> dict[str, str | None]:
    from conversations import CONVERSATIONS

    return {
        f"{name}/{kind}": render(source, conversation, prompt=prompt)
        for name, conversation in CONVERSATIONS.items()
        for kind, prompt in (("prompt", True), ("plain", False))
    }


def write(name: str, source: str) -> None:
    golden = {
        "template": name,
        "sha256": hashlib.sha256(source.encode()).hexdigest(),
        "made_by": {package: version(package) for package in ("transformers", "jinja2")},
        "tokens": TOKENS,
        "clock": CLOCK.isoformat(),
        "texts": render_all(source),
    }
    GOLDENS.mkdir(exist_ok=True)
    path = GOLDENS / f"{name}.json"
    path.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    from insula.chat.formats import FORMATS

    for path in sorted(Path(sys.argv[1]).glob("*.jinja")):
        write(path.stem, path.read_text(encoding="utf-8"))
    for name, source in FORMATS.items():
        write(f"format-{name}", source)
    write("dialect", (HERE / "dialect.jinja").read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
