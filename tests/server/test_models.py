"""Which models are in memory, and who gives way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from insula.errors import ConfigError, FormatError, NotFoundError, ResourceError
from insula.server import models as managing
from insula.server.catalogue import Catalogue
from insula.server.models import ModelEvent, Models
from insula.server.ollama.keep_alive import seconds_of
from insula.server.options import ServeOptions
from tiny_chat_model import write_tiny


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    return [str(write_tiny(tmp_path / f"{name}.gguf")) for name in "abc"]


def manager(paths: list[str], **options) -> tuple[Models, list[tuple[str, str]]]:
    seen: list[tuple[str, str]] = []

    def told(event: ModelEvent) -> None:
        seen.append((event.kind, event.model))

    asked = ServeOptions(models=tuple(paths), load={"n_threads": 1}, **options)
    return Models(Catalogue(paths, only=True), asked, on_event=told), seen


def test_a_model_is_loaded_once_and_kept(three):
    async def main() -> None:
        models, seen = manager(three)

        async def use() -> int:
            async with models.lease("a") as loaded:
                await asyncio.sleep(0)
                return id(loaded)

        assert len(set(await asyncio.gather(*(use() for _ in range(20))))) == 1
        assert await use() == id(models.loaded["a"])
        assert seen == [("loading", "a"), ("loaded", "a")]
        await models.close()
        assert not models.loaded

    asyncio.run(main())


def test_the_least_recently_used_gives_way_and_never_one_in_use(three, monkeypatch):
    monkeypatch.setattr(managing, "WAIT_FOR_ROOM", 0.2)

    async def main() -> None:
        models, seen = manager(three)
        async with models.lease("a") as first:
            room = first.bytes
        await models.close()
        seen.clear()
        models, seen = manager(three, memory=int(2.5 * room))
        async with models.lease("a"):
            pass
        async with models.lease("b"):
            pass
        async with models.lease("a"):
            pass
        async with models.lease("c"):  # b was used longest ago
            assert set(models.loaded) == {"a", "c"}
            async with models.lease("a"):
                with pytest.raises(ResourceError, match="every loaded model is answering"):
                    async with models.lease("b"):
                        pass
                assert set(models.loaded) == {"a", "c"}
                waiting = asyncio.create_task(models.lease("b").__aenter__())
                await asyncio.sleep(0.05)
                assert not waiting.done()
            found = await waiting  # a was let go of, and made room
            assert found.name == "b"
            assert set(models.loaded) == {"b", "c"}
        assert ("unloaded", "b") in seen
        await models.close()

    asyncio.run(main())


def test_keep_alive(three):
    async def main() -> None:
        models, _ = manager(three[:1])
        async with models.lease("a", keep_alive=0.0):
            assert "a" in models.loaded
        async with asyncio.timeout(60):
            while "a" in models.loaded:  # noqa: ASYNC110 - a clock takes it away
                await asyncio.sleep(0.01)
        async with models.lease("a", keep_alive=None):
            pass
        assert models.loaded["a"].expires is None
        assert models.loaded["a"].timer is None
        async with models.lease("a"):
            pass
        assert models.loaded["a"].expires is not None
        async with models.lease("a"):
            assert not await models.unload("a")
        assert await models.unload("a")
        assert not models.loaded
        await models.close()

    asyncio.run(main())


def test_what_cannot_be_loaded_says_why_each_time(tmp_path, three):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(Path(three[0]).read_bytes()[:5000])

    async def main() -> None:
        models, seen = manager([str(broken), three[0]], memory=2 << 30)
        for _ in range(2):
            with pytest.raises(FormatError):
                async with models.lease("broken"):
                    pass
        with pytest.raises(NotFoundError, match="'nobody' not found"):
            async with models.lease("nobody"):
                pass
        async with models.lease("a"):
            pass
        assert [kind for kind, _ in seen] == ["loading", "failed"] * 2 + ["loading", "loaded"]
        await models.close()
        small, _ = manager(three, memory=1 << 20)
        with pytest.raises(ResourceError, match="may take 1 MB"):
            async with small.lease("a"):
                pass
        await small.close()

    asyncio.run(main())


def test_leaving_while_it_loads_stops_nothing(three):
    async def main() -> None:
        models, _ = manager(three)
        entering = asyncio.create_task(models.lease("a").__aenter__())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        entering.cancel()
        async with models.lease("a") as loaded:
            assert loaded.users == 1
        assert loaded.users == 0
        await models.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (None, "default"),
        (0, 0.0),
        (-1, None),
        (90, 90.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("500ms", 0.5),
        ("-1m", None),
        ("0", 0.0),
        ("300", 300.0),
    ],
)
def test_durations_as_ollama_writes_them(written, seconds):
    assert seconds_of(written) == seconds


@pytest.mark.parametrize("written", ["soon", "10 m", "", "m", "1d", True, [1]])
def test_what_is_no_duration(written):
    with pytest.raises(ConfigError, match="keep_alive"):
        seconds_of(written)
