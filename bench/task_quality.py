"""How good the likelihoods of `insula.tasks` are on one model: labels right, answers found.

    python bench/task_quality.py --model NAME --questions DIR [--count 40]

Sentiment: 50 sentences a language of task_sentences.json. Topics: 30 a language of
task_topics.json, five labels. questions: where XQuAD's xquad.en.json and xquad.es.json lie; of the
first articles the first question of each paragraph, `count` of each language, exact match and F1 as
SQuAD counts them (arXiv:1606.05250, section 6.1; Spanish articles taken out too). Prompts were
chosen on other texts: the files' `dev`, and articles from the 40th on. One JSON line goes to
bench/results/task_quality.jsonl.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import re
import string
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import machine

from insula import LLM
from insula.tasks import question_answering, text_classification, zero_shot_classification

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "task_quality.jsonl"
ARTICLES = {"en": "a|an|the", "es": "el|la|los|las|un|una|unos|unas"}
#: In Spanish, asked in Spanish.
SPANISH = {
    "question": "¿De qué trata este texto?\n\nTexto: {text}",
    "hypothesis_template": "Este texto trata de {}.",
}


def sentiment(llm: LLM, part: str) -> dict[str, Any]:
    """Share of right labels, as they are and calibrated, by language."""
    data = json.loads((HERE / "task_sentences.json").read_text(encoding="utf-8"))[part]
    found: dict[str, Any] = {}
    for language, kinds in data.items():
        texts = [text for kind in kinds.values() for text in kind]
        truth = [kind.upper() for kind, kept in kinds.items() for _ in kept]
        found[language] = {"texts": len(texts)}
        for calibrate in (False, True):
            labels = [r["label"] for r in text_classification(llm, texts, calibrate=calibrate)]
            found[language][name(calibrate)] = share(labels, truth)
    return found


def topics(llm: LLM, part: str) -> dict[str, Any]:
    """Share of right topics of five, by language; Spanish texts also asked in Spanish."""
    data = json.loads((HERE / "task_topics.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    ways: list[tuple[str, str, dict[str, str]]] = [
        ("en", "en", {}),
        ("es", "es", {}),
        ("es", "es, asked in Spanish", SPANISH),
    ]
    for language, title, options in ways:
        labels = data["labels"][language]
        texts = [text for kept in data[part][language].values() for text in kept]
        truth = [labels[kind] for kind, kept in data[part][language].items() for _ in kept]
        found[title] = {"texts": len(texts)}
        for calibrate in (False, True):
            results = zero_shot_classification(
                llm, texts, list(labels.values()), calibrate=calibrate, **options
            )
            found[title][name(calibrate)] = share([r["labels"][0] for r in results], truth)
    return found


def answers(llm: LLM, folder: Path, count: int, articles: slice) -> dict[str, Any]:
    """Exact match and F1 of the best span, and the mean of its score, by language."""
    found: dict[str, Any] = {}
    for language in ("en", "es"):
        data = json.loads((folder / f"xquad.{language}.json").read_text(encoding="utf-8"))["data"]
        asked = [
            (p["qas"][0]["question"], p["context"], [a["text"] for a in p["qas"][0]["answers"]])
            for article in data[articles]
            for p in article["paragraphs"]
        ][:count]
        rows = []
        for question, context, golds in asked:
            answer = question_answering(llm, question, context)
            words = normal(answer["answer"], language)
            exact = any(words == normal(gold, language) for gold in golds)
            best = max(f1(words, normal(gold, language)) for gold in golds)
            rows.append((exact, best, answer["score"], "notes" in answer))
        table = np.array(rows, dtype=float).mean(axis=0)
        found[language] = {
            "questions": len(rows),
            "exact": round(float(table[0]), 3),
            "f1": round(float(table[1]), 3),
            "score": round(float(table[2]), 4),
            "ended_early": round(float(table[3]), 3),
        }
        print(language, found[language], flush=True)
    return found


def normal(text: str, language: str) -> list[str]:
    """Words without case, punctuation and articles."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation + "¿¡")
    return re.sub(rf"\b({ARTICLES[language]})\b", " ", kept).split()


def f1(found: list[str], gold: list[str]) -> float:
    """Of the words of both."""
    both = sum((Counter(found) & Counter(gold)).values())
    return 2 * both / (len(found) + len(gold)) if both else 0.0


def share(found: list[str], truth: list[str]) -> float:
    return round(sum(a == b for a, b in zip(found, truth, strict=True)) / len(truth), 3)


def name(calibrate: bool) -> str:
    return "calibrated" if calibrate else "plain"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", required=True, help="a name, or a path")
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--dev", action="store_true", help="the texts for choosing; keeps no row")
    asked = parser.parse_args()
    part = "dev" if asked.dev else "test"
    with LLM(asked.model, n_ctx=2048) as llm:
        row = {
            "when": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "isa": llm.model_info.isa,
            "model": llm.model_info.name,
            "sha256": hashlib.sha256(Path(llm.model_info.path).read_bytes()).hexdigest(),
            "sentiment": sentiment(llm, part),
            "topics": topics(llm, part),
        }
        print(json.dumps(row, indent=2, ensure_ascii=False), flush=True)
        articles = slice(40, None) if asked.dev else slice(0, 40)
        row["answers"] = answers(llm, asked.questions, asked.count, articles)
    if not asked.dev:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
