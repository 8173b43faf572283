"""What one does with a model for embeddings: vectors, rankings, labels. `LLM` has these methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from insula.errors import UnsupportedError
from insula.given import listed_texts
from insula.types import Embeddings, HeadScores, HiddenStates, ModelInfo

if TYPE_CHECKING:
    from insula.engine.embedding import EmbeddingEngine


class EmbeddingMethods:
    """Needs a loaded engine and what is known of it."""

    model_info: ModelInfo
    _engine: Any

    @property
    def gives(self) -> Literal["text", "vectors", "scores", "states"]:
        """What the model is for: text (generate, chat, logits), vectors (embed), a head's scores
        (rerank, classify), or states alone (hidden_states), where its file states no pooling."""
        from insula.engine.embedding import EmbeddingEngine

        if not isinstance(self._engine, EmbeddingEngine):
            return "text"
        if self._engine.pooling is None:
            return "states"
        return "vectors" if self._engine.pooling.head is None else "scores"

    def embed(
        self,
        texts: str | Sequence[str] | Sequence[Sequence[int]],
        *,
        truncate: bool = False,
        dimensions: int | None = None,
    ) -> Embeddings:
        """Vectors float32 [n, D] of texts (of one text: [1, D]), pooled and normalized as the
        model declares, and a report. Lists of token ids are used as they are.

        truncate: cut texts that are longer than the model reads (model_info.n_ctx) and say which;
        otherwise they are an error. dimensions: only the first so many, for models that were
        trained for that (arXiv:2205.13147).
        Raises ConfigError, ContextOverflowError, UnsupportedError (the model gives no embeddings).
        """
        from insula.engine import embedding

        engine = self._embedding_engine()
        listed = listed_texts(texts)
        return embedding.embed(engine, listed, truncate=truncate, dimensions=dimensions)

    def rerank(
        self, query: str, documents: Sequence[str], *, truncate: bool = False
    ) -> list[tuple[int, float]]:
        """The documents by how well they answer the query, the best first: (index, score).

        Scores are the model's own, without a logistic function. truncate: cut documents that do
        not fit beside the query; otherwise they are an error.
        Raises ConfigError, ContextOverflowError, UnsupportedError (the model is no reranker).
        """
        from insula.engine import embedding

        engine = self._embedding_engine()
        return embedding.rerank(
            engine, query, listed_texts(documents, one=False), truncate=truncate
        )

    def classify(
        self, texts: str | Sequence[str], *, truncate: bool = False
    ) -> list[dict[str, float]]:
        """For each text the probability of each label of the model, the likeliest first.

        Raises ConfigError, ContextOverflowError, UnsupportedError (the model is no classifier).
        """
        from insula.engine import embedding

        return embedding.classify(self._embedding_engine(), listed_texts(texts), truncate=truncate)

    def head_scores(
        self, texts: Sequence[str | tuple[str, str]], *, truncate: bool = False
    ) -> HeadScores:
        """The raw scores of the model's head, of texts or of pairs of texts as the model's kind
        joins them, with its labels and a report. truncate: cut what is longer than the model
        reads, of a pair the second text; otherwise it is an error.

        Raises ConfigError, ContextOverflowError, UnsupportedError (the model has no head).
        """
        from insula.engine import embedding

        listed = listed_texts(texts, one=False)
        return embedding.head_scores(self._embedding_engine(), listed, truncate=truncate)

    def hidden_states(self, texts: str | Sequence[str], *, truncate: bool = False) -> HiddenStates:
        """The states [T, D] of each text's tokens, those around it included, before any pooling or
        head, and a report. truncate: as in `embed`.

        Raises ConfigError, ContextOverflowError, UnsupportedError (the model gives no states).
        """
        from insula.engine import embedding

        engine = self._embedding_engine()
        return embedding.hidden_states(engine, listed_texts(texts), truncate=truncate)

    def _embedding_engine(self) -> EmbeddingEngine:
        from insula.engine.embedding import EmbeddingEngine

        if isinstance(self._engine, EmbeddingEngine):
            return self._engine
        raise UnsupportedError(
            f"{self.model_info.name} generates text and gives no embeddings or scores; take a "
            "model that states a pooling, such as all-minilm:l6-v2",
            backend=self.model_info.engine,
        )
