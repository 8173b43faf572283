"""The loaded models: brought when asked for, kept warm, given up when another needs the room.

Owns which models are in memory. Everything here runs in the server's event loop; only loading and
closing leave it, one at a time, so that no two loads count the same memory. Invariants:
- a model with a request on it is never unloaded;
- many requests for a model that is not here make one load;
- who gives way is who was used longest ago, and it has gone before the next one comes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from insula.async_llm import AsyncLLM
from insula.engine.context import DEFAULT_KV_MEMORY, OVERHEAD
from insula.errors import ResourceError
from insula.hub import advice
from insula.server.catalogue import Catalogue, Served
from insula.server.options import ServeOptions

#: Seconds that a model waits for others to end their requests and make room.
WAIT_FOR_ROOM = 30.0
#: `keep_alive` where a request says nothing.
DEFAULT: Literal["default"] = "default"
KeepAlive = float | None | Literal["default"]


@dataclass(frozen=True, kw_only=True)
class ModelEvent:
    """What happened to a model: for the person at the terminal, and the counters."""

    kind: Literal["loading", "loaded", "unloaded", "failed"]
    model: str
    seconds: float = 0.0
    reason: str = ""


class Loaded:
    """A model in memory. bytes: what it was counted as. expires: when it goes if nobody asks for
    it, in seconds of time.time(); None: never."""

    def __init__(self, served: Served, llm: AsyncLLM, *, size: int, seconds: float) -> None:
        self.served = served
        self.llm = llm
        self.bytes = size
        self.load_seconds = seconds
        self.users = 0
        self.used = time.monotonic()
        self.expires: float | None = None
        self.timer: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        return self.served.name


class Models:
    """See the module."""

    def __init__(
        self,
        catalogue: Catalogue,
        options: ServeOptions,
        *,
        on_event: Callable[[ModelEvent], None] = lambda event: None,
    ) -> None:
        self.catalogue = catalogue
        self.loaded: dict[str, Loaded] = {}
        self._options = options
        self._on_event = on_event
        self._loads: dict[str, asyncio.Task[Loaded]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._idle = asyncio.Event()
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def lease(self, name: str, keep_alive: KeepAlive = DEFAULT) -> AsyncIterator[Loaded]:
        """The model for the length of the block; then it stays for keep_alive seconds.

        Raises NotFoundError for a name that is not served, and what loading raises.
        """
        served = self.catalogue.find(name)
        while True:
            found = self.loaded.get(served.name)
            if found is None:
                found = await self._load(served)
            if self.loaded.get(served.name) is found:  # it was not given up meanwhile
                break
        found.users += 1
        found.used = time.monotonic()
        if found.timer is not None:
            found.timer.cancel()
            found.timer = None
        try:
            yield found
        finally:
            found.users -= 1
            found.used = time.monotonic()
            self._keep(found, self._options.keep_alive if keep_alive == DEFAULT else keep_alive)
            if not found.users:
                self._idle.set()

    async def unload(self, name: str) -> bool:
        """Give a model up if nobody uses it. Returns whether it is gone."""
        found = self.loaded.get(self.catalogue.find(name).name)
        async with self._one_at_a_time:
            return found is None or await self._drop(found)

    async def close(self) -> None:
        """Free everything. Who still generates is cancelled."""
        self._closing = True
        for task in [*self._loads.values()]:
            task.cancel()
        await asyncio.gather(*self._loads.values(), return_exceptions=True)
        for found in list(self.loaded.values()):
            await self._drop(found, used=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- coming -------------------------------------------------------------------------------

    async def _load(self, served: Served) -> Loaded:
        """One task per model, whoever waits for it; leaving does not stop it."""
        task = self._loads.get(served.name)
        if task is None:
            task = asyncio.create_task(self._bring(served))
            self._loads[served.name] = task
            task.add_done_callback(lambda done: self._loads.pop(served.name, None))
            # With nobody left to tell, an error is still looked at, or asyncio complains.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def _bring(self, served: Served) -> Loaded:
        async with self._one_at_a_time:
            found = self.loaded.get(served.name)
            if found is not None:
                return found
            self._on_event(ModelEvent(kind="loading", model=served.name))
            began = time.monotonic()
            try:
                llm = await self._in_room(served)
            except Exception as error:
                self._on_event(ModelEvent(kind="failed", model=served.name, reason=str(error)))
                raise
            seconds = time.monotonic() - began
            info = llm.model_info
            size = (info.file_bytes or served.size) + info.kv_bytes + OVERHEAD
            found = Loaded(served, llm, size=size, seconds=seconds)
            if self._closing:
                await llm.aclose()
                raise ResourceError("the server is stopping")
            self.loaded[served.name] = found
            self._keep(found, self._options.keep_alive)
            self._on_event(ModelEvent(kind="loaded", model=served.name, seconds=seconds))
            return found

    async def _in_room(self, served: Served) -> AsyncLLM:
        """Load it; where it does not fit, after others have gone."""
        needed = await asyncio.to_thread(self._estimate, served)
        budget = self._options.memory
        if budget is not None and needed > budget:
            raise ResourceError(
                f"{served.name} needs {needed / 1e6:.0f} MB and all models together may take "
                f"{budget / 1e6:.0f} MB (--memory)"
            )
        deadline = time.monotonic() + WAIT_FOR_ROOM
        while not self._fits(needed):
            if not await self._make_room(deadline):
                break
        while True:
            try:
                return await AsyncLLM.load(served.target, **self._load_options(served))
            except ResourceError:
                if not await self._make_room(deadline):
                    raise

    def _load_options(self, served: Served) -> dict[str, Any]:
        options = self._options
        own = options.per_model.get(served.name, {})
        return {"max_running": options.max_running, **options.load, **own}

    def _estimate(self, served: Served) -> int:
        """Bytes that it will take at most: weights, KV cache, the rest."""
        options = self._load_options(served)
        cache = options.get("kv_memory") or DEFAULT_KV_MEMORY
        facts = self.catalogue.facts(served)
        if facts is not None and facts.kv_bytes is not None and facts.context is not None:
            # A context twice: the pages beyond one keep prefixes.
            tokens = options.get("n_ctx") or facts.context
            cache = min(cache, 2 * (tokens + 64) * facts.kv_bytes)
        return served.size + cache + OVERHEAD

    def _fits(self, needed: int) -> bool:
        budget = self._options.memory
        if budget is not None:
            return sum(found.bytes for found in self.loaded.values()) + needed <= budget
        free = advice.memory().available
        return free is None or needed <= free

    async def _make_room(self, deadline: float) -> bool:
        """Have the idle model go that was used longest ago; with none idle, wait for one. False:
        there is none to wait for, or no time left."""
        while self.loaded:
            idle = [found for found in self.loaded.values() if not found.users]
            if idle:
                return await self._drop(min(idle, key=lambda found: found.used))
            self._idle.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._idle.wait()
            except TimeoutError:
                if self._options.memory is None:
                    return False
                raise ResourceError(
                    "every loaded model is answering and there is no room for another; come back"
                ) from None
        return False

    # -- going --------------------------------------------------------------------------------

    def _keep(self, found: Loaded, keep_alive: float | None) -> None:
        """Set the clock after which it goes."""
        if found.users or self.loaded.get(found.name) is not found:
            return
        if found.timer is not None:
            found.timer.cancel()
            found.timer = None
        found.expires = None if keep_alive is None else time.time() + keep_alive
        if keep_alive is not None:
            loop = asyncio.get_running_loop()
            found.timer = loop.call_later(max(0.0, keep_alive), self._expired, found)

    def _expired(self, found: Loaded) -> None:
        if found.users or self._closing:
            return
        task = asyncio.ensure_future(self._dropped(found))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dropped(self, found: Loaded) -> None:
        async with self._one_at_a_time:
            if not found.users and found.expires is not None and found.expires <= time.time():
                await self._drop(found)

    async def _drop(self, found: Loaded, *, used: bool = False) -> bool:
        """Close it, unless it is used. Returns whether it is gone."""
        if (found.users and not used) or self.loaded.get(found.name) is not found:
            return self.loaded.get(found.name) is not found
        del self.loaded[found.name]
        if found.timer is not None:
            found.timer.cancel()
        await found.llm.aclose()
        self._on_event(ModelEvent(kind="unloaded", model=found.name))
        return True
