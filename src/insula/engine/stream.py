"""A running answer that its reader may leave at any moment.

Owns `Stream`: closing it, dropping it, or an exception while waiting (Ctrl-C) ends the request.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from insula.engine.request import Handle
from insula.types import Chunk, Completion


class Stream(Iterator[Chunk]):
    """Chunks as they come. The last one carries finish_reason and the whole Completion.

    `completion` is None until the end. `close()` cancels; so does leaving a `with` block.
    on_chunk: may change each chunk on its way out.
    on_end: sees the Completion once, whole or cancelled, and may put another in its place.
    on_error: called if the request fails instead.
    """

    def __init__(
        self,
        handle: Handle,
        *,
        on_chunk: Callable[[Chunk], Chunk] | None = None,
        on_end: Callable[[Completion], Completion] | None = None,
        on_error: Callable[[], None] | None = None,
    ) -> None:
        self.completion: Completion | None = None
        self._handle = handle
        self._chunks = iter(handle)
        self._on_chunk = on_chunk
        self._on_end = on_end
        self._on_error = on_error

    @property
    def ready(self) -> bool:
        """`next` would not wait. Engines that cannot tell say no."""
        return self.completion is not None or bool(getattr(self._handle, "ready", False))

    def cancel(self) -> None:
        """End the answer without waiting for what it came to."""
        self._handle.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        if self.completion is not None:
            raise StopIteration
        try:
            chunk = next(self._chunks)
        except StopIteration:
            raise
        except Exception:
            if self._on_error is not None:
                self._on_error()
            raise
        except BaseException:
            self._handle.cancel()
            raise
        if self._on_chunk is not None:
            chunk = self._on_chunk(chunk)
        if chunk.completion is None:
            return chunk
        return dataclasses.replace(chunk, completion=self._end(chunk.completion))

    def close(self) -> None:
        """End the answer here. What was said so far becomes the completion."""
        if self.completion is None:
            self._handle.cancel()
            self._end(self._handle.result())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._handle.cancel()

    def __del__(self) -> None:
        # No waiting in a finalizer; cancelling is all that is due.
        if self.completion is None:
            self._handle.cancel()

    def _end(self, completion: Completion) -> Completion:
        self.completion = completion if self._on_end is None else self._on_end(completion)
        return self.completion
