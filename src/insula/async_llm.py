"""The front door for asyncio: many requests on one model, none waiting for another.

    from insula import AsyncLLM
    async with AsyncLLM("smollm2:135m") as llm:
        async for chunk in llm.stream("The sky is", max_tokens=20):
            print(chunk.text, end="")

Owns the way between an event loop and the engine: one thread steps the engine for all requests and
hands each loop what came, at most once a step; embeddings are computed by a few threads that take
turns at the engine. Cancelling a task, or leaving `async for`, frees the request within one step.
What is asked and answered is `insula.llm`'s.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from insula.engine.stream import Stream
from insula.errors import EngineError
from insula.given import Prompt, listed_texts
from insula.llm import LLM
from insula.types import Chunk, Completion, Embeddings, Message, ModelInfo, SamplingParams

if TYPE_CHECKING:
    from insula.engine.embedding import EmbeddingEngine, Stop

T = TypeVar("T")

#: Calls for embeddings whose steps alternate; further ones wait for one of them.
EMBEDDING_CALLS = 4


class AsyncLLM:
    """A loaded model for asyncio. Its methods take what those of `LLM` take."""

    def __init__(self, model: str | os.PathLike[str] | LLM, **options: Any) -> None:
        """model: as for LLM, with LLM's options; or an LLM, which is then closed with this.

        Loading blocks; from within an event loop, `await AsyncLLM.load(...)` does not.
        """
        self._llm = model if isinstance(model, LLM) else LLM(model, **options)
        engine = self._llm._engine
        step = getattr(engine, "step", None)
        self._pump: _Pump | _Threads = _Threads() if step is None else _Pump(step)
        self._embedders = ThreadPoolExecutor(EMBEDDING_CALLS, thread_name_prefix="insula-embed")

    @classmethod
    async def load(cls, model: str | os.PathLike[str], **options: Any) -> Self:
        """Load without blocking the event loop."""
        return cls(await asyncio.to_thread(LLM, model, **options))

    @property
    def llm(self) -> LLM:
        """The model underneath: tokenizer, counts, sessions."""
        return self._llm

    @property
    def model_info(self) -> ModelInfo:
        return self._llm.model_info

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> AsyncGenerator[Chunk]:
        """As `LLM.stream`. Errors of the request are raised by the first `anext`."""
        return self._chunks(lambda: self._llm.stream(prompt, params, **options))

    def chat_stream(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **options: Any
    ) -> AsyncGenerator[Chunk]:
        """As `LLM.chat_stream`."""
        return self._chunks(lambda: self._llm.chat_stream(messages, params, **options))

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> Completion:
        """As `LLM.generate` of one prompt; gather several to run them together."""
        return await _whole(self.stream(prompt, params, **options))

    async def chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **options: Any
    ) -> Completion:
        """As `LLM.chat`."""
        return await _whole(self.chat_stream(messages, params, **options))

    async def embed(
        self,
        texts: str | Sequence[str] | Sequence[Sequence[int]],
        *,
        truncate: bool = False,
        dimensions: int | None = None,
    ) -> Embeddings:
        """As `LLM.embed`."""
        from insula.engine import embedding

        listed = listed_texts(texts)
        return await self._computed(
            lambda engine, stop: embedding.embed(
                engine, listed, truncate=truncate, dimensions=dimensions, stop=stop
            )
        )

    async def rerank(
        self, query: str, documents: Sequence[str], *, truncate: bool = False
    ) -> list[tuple[int, float]]:
        """As `LLM.rerank`."""
        from insula.engine import embedding

        listed = listed_texts(documents, one=False)
        return await self._computed(
            lambda engine, stop: embedding.rerank(
                engine, query, listed, truncate=truncate, stop=stop
            )
        )

    async def classify(
        self, texts: str | Sequence[str], *, truncate: bool = False
    ) -> list[dict[str, float]]:
        """As `LLM.classify`."""
        from insula.engine import embedding

        listed = listed_texts(texts)
        return await self._computed(
            lambda engine, stop: embedding.classify(engine, listed, truncate=truncate, stop=stop)
        )

    async def _computed(self, work: Callable[[EmbeddingEngine, Stop], T]) -> T:
        """What `work` gives, from a thread that stops before its next step once nobody waits."""
        engine = self._llm._embedding_engine()
        left = threading.Event()
        try:
            running = self._embedders.submit(work, engine, left.is_set)
        except RuntimeError:
            raise EngineError("the engine is closed; open the model again") from None
        try:
            return await asyncio.wrap_future(running)
        finally:
            left.set()

    async def aclose(self) -> None:
        """Cancel what runs and free the model."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """As `aclose`, blocking."""
        self._llm.close()
        self._pump.close()
        self._embedders.shutdown()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _chunks(self, submit: Callable[[], Stream]) -> AsyncGenerator[Chunk]:
        # Templates and long prompts take their time; the loop has others to serve.
        stream = await asyncio.to_thread(submit)
        reader = _Reader(stream, asyncio.get_running_loop())
        self._pump.add(reader)
        try:
            while True:
                item = await reader.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.completion is not None:
                    return
        finally:
            stream.cancel()


async def _whole(chunks: AsyncGenerator[Chunk]) -> Completion:
    completion = None
    async for chunk in chunks:
        completion = chunk.completion
    assert completion is not None
    return completion


class _Reader:
    """One request's way to its loop."""

    def __init__(self, stream: Stream, loop: asyncio.AbstractEventLoop) -> None:
        self.stream = stream
        self.loop = loop
        self._items: deque[Chunk | BaseException] = deque()
        self._came = asyncio.Event()

    async def get(self) -> Chunk | BaseException:
        while not self._items:
            self._came.clear()
            await self._came.wait()
        return self._items.popleft()

    def take(self, items: list[Chunk | BaseException]) -> None:
        """In the loop's thread."""
        self._items.extend(items)
        self._came.set()

    def read(self, *, wait: bool) -> tuple[list[Chunk | BaseException], bool]:
        """What is there, and whether that was the end. wait: at least one item."""
        items: list[Chunk | BaseException] = []
        while wait or self.stream.ready:
            wait = False
            try:
                items.append(next(self.stream))
            except StopIteration:
                return items, True
            except Exception as error:  # noqa: BLE001 - it belongs to the request's own task
                return [*items, error], True
            if self.stream.completion is not None:
                return items, True
        return items, False


class _Pump:
    """A thread that steps an engine, for as long as anybody waits for it."""

    def __init__(self, step: Callable[[], bool]) -> None:
        self._step = step
        self._lock = threading.Lock()
        self._new: deque[_Reader] = deque()
        self._thread: threading.Thread | None = None

    def add(self, reader: _Reader) -> None:
        with self._lock:
            self._new.append(reader)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="insula", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Wait for the thread; the engine has been closed, so it soon ends."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        readers: list[_Reader] = []
        while True:
            with self._lock:
                readers.extend(self._new)
                self._new.clear()
                if not readers:
                    self._thread = None
                    return
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - closed under us: each request says so
                for reader in self._hand_out(readers):
                    _deliver({reader.loop: [(reader, [error])]})
                readers = []
            else:
                readers = self._hand_out(readers)

    @staticmethod
    def _hand_out(readers: list[_Reader]) -> list[_Reader]:
        """Give each loop what came, in one call. Returns who goes on."""
        open_: list[_Reader] = []
        came: dict[asyncio.AbstractEventLoop, list[tuple[_Reader, list[Any]]]] = defaultdict(list)
        for reader in readers:
            items, ended = reader.read(wait=False)
            if items:
                came[reader.loop].append((reader, items))
            if not ended:
                open_.append(reader)
        _deliver(came)
        return open_


class _Threads:
    """For engines with threads of their own: a waiting thread for each request."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=256, thread_name_prefix="insula")

    def add(self, reader: _Reader) -> None:
        self._pool.submit(self._run, reader)

    def close(self) -> None:
        self._pool.shutdown()

    @staticmethod
    def _run(reader: _Reader) -> None:
        ended = False
        while not ended:
            items, ended = reader.read(wait=True)
            _deliver({reader.loop: [(reader, items)]})


def _deliver(
    came: dict[asyncio.AbstractEventLoop, list[tuple[_Reader, list[Any]]]],
) -> None:
    def hand(all_items: list[tuple[_Reader, list[Any]]]) -> None:
        for reader, items in all_items:
            reader.take(items)

    for loop, all_items in came.items():
        try:
            loop.call_soon_threadsafe(hand, all_items)
        except RuntimeError:  # the loop is gone, and whoever waited in it
            for reader, _ in all_items:
                reader.stream.cancel()
