"""The tasks of transformers' pipelines that a local model can do, as functions over `insula.LLM`.

`pipeline` has them by name; each function takes a loaded model first. What differs from
transformers is in docs/tasks.md.
"""

from __future__ import annotations

from insula.tasks.answers import question_answering
from insula.tasks.by_name import Pipeline, pipeline
from insula.tasks.classification import text_classification
from insula.tasks.features import feature_extraction
from insula.tasks.generation import chat, text_generation
from insula.tasks.rewriting import summarization, translation
from insula.tasks.timed import Timed, timed
from insula.tasks.zero_shot import zero_shot_classification

__all__ = [
    "Pipeline",
    "Timed",
    "chat",
    "feature_extraction",
    "pipeline",
    "question_answering",
    "summarization",
    "text_classification",
    "text_generation",
    "timed",
    "translation",
    "zero_shot_classification",
]
