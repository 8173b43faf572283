"""Summaries and translations: a text in, another text of the same meaning out.

transformers had models of an encoder and a decoder for these (T5, BART, Marian), and took the
tasks out with version 5. Here a chat model is asked; a base model goes on after the words that
usually stand before a summary or a translation, up to the next empty line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from insula.errors import ConfigError
from insula.llm import LLM
from insula.tasks.generation import answered
from insula.tasks.inputs import listed
from insula.tasks.options import generation
from insula.tasks.prompts import check_generates

SUMMARIZE = "Summarize the following text in one or two sentences.\n\n{text}"
TRANSLATE = "Translate the following text from {source} to {target}.\n\n{text}"
#: What a base model goes on after.
SUMMARIZE_BASE = "{text}\n\nSummary:"
TRANSLATE_BASE = "{source}: {text}\n\n{target}:"
#: Of these the task's name may have the code: translation_en_to_es.
LANGUAGES = MappingProxyType(
    {
        "ar": "Arabic", "bg": "Bulgarian", "ca": "Catalan", "cs": "Czech", "da": "Danish",
        "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian",
        "eu": "Basque", "fi": "Finnish", "fr": "French", "gl": "Galician", "he": "Hebrew",
        "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
        "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nl": "Dutch",
        "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
        "sk": "Slovak", "sl": "Slovenian", "sv": "Swedish", "th": "Thai", "tr": "Turkish",
        "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
    }
)  # fmt: skip


def summarization(
    llm: LLM, inputs: str | Sequence[str], *, prompt: str | None = None, **options: Any
) -> list[dict[str, Any]]:
    """[{"summary_text"}], one for each text. A summary that reached max_new_tokens (256) says so
    in "notes".

    prompt: what the model is asked, with {text} in it. options: as in text generation; the
    likeliest token is taken unless do_sample=True.
    Raises ConfigError, ContextOverflowError, UnsupportedError.
    """
    check_generates(llm)
    pattern = _pattern(llm, prompt, SUMMARIZE, SUMMARIZE_BASE)
    return _rewritten(llm, inputs, pattern, "summary_text", options)


def translation(
    llm: LLM,
    inputs: str | Sequence[str],
    *,
    src_lang: str,
    tgt_lang: str,
    prompt: str | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """[{"translation_text"}], one for each text.

    src_lang, tgt_lang: a code of LANGUAGES, or a language's English name. prompt: with {text},
    {source} and {target} in it. The rest is as in `summarization`.
    """
    check_generates(llm)
    pattern = _pattern(llm, prompt, TRANSLATE, TRANSLATE_BASE)
    for name, value in (("{source}", src_lang), ("{target}", tgt_lang)):
        pattern = pattern.replace(name, language(value))
    return _rewritten(llm, inputs, pattern, "translation_text", options)


def language(name: Any) -> str:
    """The English name of a language. Raises ConfigError for a code that is not in the table."""
    found = name if isinstance(name, str) else ""
    if found in LANGUAGES:
        return LANGUAGES[found]
    if re.fullmatch(r"[A-Z][\w ()-]{2,40}", found):
        return found
    raise ConfigError(
        f"language {name!r}: allowed is an English name such as 'Spanish', or one of "
        + ", ".join(LANGUAGES)
    )


def _pattern(llm: LLM, prompt: str | None, chat: str, base: str) -> str:
    if prompt is None:
        return chat if llm.model_info.has_chat_template else base
    if "{text}" not in prompt:
        raise ConfigError(f"prompt: found {prompt!r}; {{text}} must be in it")
    return prompt


def _rewritten(
    llm: LLM, inputs: Any, pattern: str, key: str, options: dict[str, Any]
) -> list[dict[str, Any]]:
    texts, _ = listed(inputs)
    params = generation(llm, options, others=("prompt",), draw=False)
    before, _, after = pattern.partition("{text}")
    asked = [before + text + after for text in texts]
    if llm.model_info.has_chat_template:
        chats = [[{"role": "user", "content": each}] for each in asked]
        answers = [of_this[0] for of_this in answered(llm, chats, params)]
    else:
        params = dataclasses.replace(params, stop=(*params.stop, "\n\n"))
        ids = [llm.tokenize(each, parse_special=False) for each in asked]
        answers = llm.generate(ids, params)
    results = []
    for answer in answers:
        result: dict[str, Any] = {key: answer.text.strip()}
        if answer.finish_reason == "length":
            result["notes"] = [f"cut at max_new_tokens={params.max_tokens}"]
        results.append(result)
    return results
