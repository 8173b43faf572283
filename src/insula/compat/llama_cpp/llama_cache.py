"""llama-cpp-python's caches, by name. Here prefixes are cached always, so they have nothing to do.

`Llama.set_cache` takes them and says so; nothing is stored in them.
"""

from __future__ import annotations


class BaseLlamaCache:
    """A cache of a given capacity that stays empty: the engine's own serves every prompt."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = capacity_bytes

    @property
    def cache_size(self) -> int:
        """Bytes in it: none."""
        return 0


class LlamaRAMCache(BaseLlamaCache):
    """In memory. The engine's own is bounded by the KV cache's size."""


class LlamaDiskCache(BaseLlamaCache):
    """On disk. The engine's own is `insula.LLM(cache_dir=…)` or INSULA_CACHE_DIR."""

    def __init__(
        self, cache_dir: str = ".cache/llama_cache", capacity_bytes: int = 2 << 30
    ) -> None:
        super().__init__(capacity_bytes)
        self.cache_dir = cache_dir


LlamaCache = LlamaRAMCache
