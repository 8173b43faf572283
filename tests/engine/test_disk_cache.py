"""Prefixes that outlive the process: what comes back is what was computed, bit for bit; what is
damaged, foreign or gone is computed again, with a note."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.prefix_model import ByteTokenizer, PrefixRunner, logits_after
from insula import LLM
from insula.engine import load
from insula.engine.disk_cache import DiskCache
from insula.engine.engine import Engine
from insula.engine.page_files import PageFiles
from insula.engine.request import Request
from insula.types import Completion, Report, SamplingParams

SEEDED = {"seed": 7, "temperature": 1.0, "max_tokens": 9, "ignore_eos": True, "logprobs": 1}
PROMPT = np.random.default_rng(5).integers(2, 320, 200).tolist()


def ask(model: Path, folder: Path | str, ids=PROMPT, **options) -> Completion:
    """One answer from a process's beginning to its end."""
    loaded = {key: options.pop(key) for key in ("kv_type", "kv_memory") if key in options}
    with LLM(model, cache_dir=folder, **loaded) as llm:
        return llm.generate(ids, **{**SEEDED, **options})


def pages(folder: Path) -> list[Path]:
    return sorted((folder / "kv").glob("*.page"))


def disk_notes(report: Report) -> list[str]:
    return [note for note in report.notes if "disk" in note]


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Completion:
    """The answer without a cache on disk."""
    return ask(tiny_model, "")


@pytest.fixture(scope="module")
def kept(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that one answer has filled. Copy it before writing to it."""
    folder = tmp_path_factory.mktemp("kept")
    ask(tiny_model, folder)
    return folder


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    return shutil.copytree(kept, tmp_path / "copy")


def test_a_restart_finds_the_prefix_and_answers_the_same(
    tiny_model: Path, folder: Path, plain: Completion
) -> None:
    found = ask(tiny_model, folder)
    assert plain.report.cached_from_disk == 0
    # Three full pages, and all but the last token of the rest.
    assert found.report.cached_tokens == found.report.cached_from_disk == 199
    assert found.logprobs == plain.logprobs
    assert disk_notes(found.report) == []


def test_a_prompt_that_leaves_the_prefix_in_the_middle_of_a_page_takes_that_far(
    tiny_model: Path, folder: Path
) -> None:
    ids = [*PROMPT[:170], *range(5, 25)]
    found = ask(tiny_model, folder, ids)
    assert found.report.cached_from_disk == 170
    assert found.logprobs == ask(tiny_model, "", ids).logprobs
    assert ask(tiny_model, folder, [*PROMPT[:30], 3]).report.cached_from_disk == 30
    assert ask(tiny_model, folder, [*PROMPT[:3], 3]).report.cached_from_disk == 0


def test_an_answer_is_kept_too(tiny_model: Path, folder: Path, plain: Completion) -> None:
    ids = [*PROMPT, *plain.token_ids, 3, 4]
    found = ask(tiny_model, folder, ids)
    assert found.report.cached_from_disk == len(PROMPT) + len(plain.token_ids) - 1


def test_what_is_there_is_not_written_again(tiny_model: Path, folder: Path) -> None:
    before = {path: path.stat().st_ino for path in pages(folder)}
    ask(tiny_model, folder)
    assert {path: path.stat().st_ino for path in pages(folder)} == before


def test_salt_kv_type_and_model_each_have_their_own(
    tiny_model: Path, folder: Path, tmp_path: Path
) -> None:
    with LLM(tiny_model, cache_dir=folder) as llm:
        assert llm.generate(PROMPT, salt="b", **SEEDED).report.cached_tokens == 0
        assert llm.generate(PROMPT, **SEEDED).report.cached_from_disk == 199
    assert ask(tiny_model, folder, salt="b").report.cached_from_disk == 199
    assert ask(tiny_model, folder, salt="c").report.cached_from_disk == 0
    assert ask(tiny_model, folder, kv_type="f32").report.cached_from_disk == 0
    copy = tmp_path / "copy.gguf"
    shutil.copy2(tiny_model, copy)
    assert ask(copy, folder).report.cached_from_disk == 199
    raw = bytearray(copy.read_bytes())
    raw[-1] ^= 1
    copy.write_bytes(raw)
    os.utime(copy, ns=(tiny_model.stat().st_atime_ns, tiny_model.stat().st_mtime_ns))
    assert ask(copy, folder).report.cached_from_disk == 0


def test_pages_of_another_layout_are_not_taken(
    tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "PAGE_VERSION", load.PAGE_VERSION - 1)
    assert ask(tiny_model, folder).report.cached_from_disk == 0


def test_use_cache_false_neither_reads_nor_leaves_anything(
    tiny_model: Path, folder: Path, tmp_path: Path
) -> None:
    assert ask(tiny_model, folder, use_cache=False).report.cached_tokens == 0
    ask(tiny_model, tmp_path / "new", use_cache=False)
    assert pages(tmp_path / "new") == []


@pytest.mark.parametrize("which", range(4))
def test_a_damaged_page_is_computed_again_and_replaced(
    tiny_model: Path, folder: Path, plain: Completion, which: int
) -> None:
    sizes = {len(path.read_bytes()) for path in pages(folder)}
    path = pages(folder)[which]
    raw = bytearray(path.read_bytes())
    raw[np.random.default_rng(which).integers(len(raw))] ^= 0x10
    path.write_bytes(raw)
    found = ask(tiny_model, folder)
    assert found.logprobs == plain.logprobs
    assert found.report.cached_from_disk < 199
    assert len(disk_notes(found.report)) == 1
    again = ask(tiny_model, folder)
    assert again.report.cached_from_disk == 199
    assert disk_notes(again.report) == []
    assert {len(path.read_bytes()) for path in pages(folder)} == sizes


@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "foreign", "version", "folder"])
def test_what_is_no_page_is_not_believed(
    tiny_model: Path, folder: Path, plain: Completion, damage: str
) -> None:
    for path in pages(folder):
        raw = path.read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
            continue
        path.write_bytes(
            {
                "cut": raw[:-100],
                "empty": b"",
                "longer": raw + b"\0",
                "foreign": b"%PDF-1.7\n" * 100,
                "version": raw[:7] + b"0" + raw[8:],
            }[damage]
        )
    found = ask(tiny_model, folder)
    assert found.logprobs == plain.logprobs
    assert found.report.cached_from_disk == 0
    assert len(disk_notes(found.report)) == 1


def test_a_folder_that_goes_while_it_runs(
    tiny_model: Path, folder: Path, plain: Completion
) -> None:
    with LLM(tiny_model, cache_dir=folder) as llm:
        shutil.rmtree(folder)
        found = llm.generate(PROMPT, **SEEDED)
        assert found.logprobs == plain.logprobs
        notes = disk_notes(found.report)
        until = time.monotonic() + 30
        while not notes and time.monotonic() < until:  # the writer has a thread of its own
            notes = disk_notes(llm.generate([3, *PROMPT], **SEEDED).report)
        assert len(notes) == 1
        assert str(folder) not in notes[0]
        assert disk_notes(llm.generate(PROMPT, **SEEDED).report) == []


def test_a_folder_that_cannot_be_had_is_a_note(
    tiny_model: Path, tmp_path: Path, plain: Completion
) -> None:
    (tmp_path / "file").write_text("mine")
    with LLM(tiny_model, cache_dir=tmp_path / "file") as llm:
        assert any("cache_dir" in note for note in llm.model_info.notes)
        assert llm.generate(PROMPT, **SEEDED).logprobs == plain.logprobs
    with LLM(tiny_model, cache_dir=tmp_path / "other", engine="reference") as llm:
        assert any("cache_dir" in note for note in llm.model_info.notes)
    assert not (tmp_path / "other").exists()


FULL = """
import resource, sys
from insula import LLM
with LLM(sys.argv[1], cache_dir=sys.argv[2]) as llm:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    ids = list(range(2, 202))
    reports = [llm.generate(ids[n:], seed=1, max_tokens=30).report for n in range(6)]
notes = [note for report in reports for note in report.notes if "disk" in note]
print(len(notes), *notes)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_disk_that_takes_no_more_is_one_note(tiny_model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tiny_model), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 "), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "kv").iterdir()) == []


KILLED = """
import sys
from insula import LLM
with LLM(sys.argv[1], cache_dir=sys.argv[2]) as llm:
    for n in range(2, 300):
        llm.generate([n, *eval(sys.argv[3])], max_tokens=1)
        print(n, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_what_a_killed_process_left_is_right(tiny_model: Path, tmp_path: Path) -> None:
    found = 0
    for after in range(1, 5):
        command = [sys.executable, "-c", KILLED, str(tiny_model), str(tmp_path), str(PROMPT)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(after):
                process.stdout.readline()
            process.kill()
        for n in range(2, 2 + after):
            ids = [n, *PROMPT]
            answer = ask(tiny_model, tmp_path, ids)
            found += answer.report.cached_from_disk
            assert disk_notes(answer.report) == []
            assert answer.logprobs == ask(tiny_model, "", ids).logprobs
    assert found > 0


def test_the_folder_stays_within_its_bound(tiny_model: Path, tmp_path: Path) -> None:
    with LLM(tiny_model, cache_dir=tmp_path) as llm:
        llm.generate(PROMPT, **SEEDED)
    size = pages(tmp_path)[0].stat().st_size
    with LLM(tiny_model, cache_dir=tmp_path, cache_dir_bytes=6 * size) as llm:
        for first in range(2, 8):
            llm.generate([first, *PROMPT], **SEEDED)
    assert 0 < len(pages(tmp_path)) <= 6


def test_two_engines_may_share_the_folder(
    tiny_model: Path, tmp_path: Path, plain: Completion
) -> None:
    with LLM(tiny_model, cache_dir=tmp_path) as one, LLM(tiny_model, cache_dir=tmp_path) as two:
        assert one.generate(PROMPT, **SEEDED).logprobs == plain.logprobs
        assert two.generate(PROMPT, **SEEDED).logprobs == plain.logprobs
    assert ask(tiny_model, tmp_path).report.cached_from_disk == 199


def test_the_environment_names_the_folder_and_an_empty_argument_refuses_it(
    tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSULA_CACHE_DIR", str(folder))
    with LLM(tiny_model) as llm:
        assert llm.generate(PROMPT, **SEEDED).report.cached_from_disk == 199
    with LLM(tiny_model, cache_dir="") as llm:
        assert llm.generate(PROMPT, **SEEDED).report.cached_from_disk == 0


@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_logits_are_those_of_the_request_alone_whatever_comes_from_disk(
    tiny_model: Path, shared_llm: LLM, data: st.DataObject
) -> None:
    """The native engine, several lives of one folder, little memory: every log probability."""
    with TemporaryDirectory() as folder:
        for _ in range(data.draw(st.integers(2, 3))):
            with LLM(tiny_model, cache_dir=folder, kv_memory="160K", max_running=4) as llm:
                streams = []
                for _ in range(data.draw(st.integers(1, 5))):
                    cut = data.draw(st.integers(1, 200))
                    own = data.draw(st.lists(st.integers(2, 319), max_size=3))
                    options = {**SEEDED, "max_tokens": data.draw(st.integers(1, 70))}
                    streams.append(([*PROMPT[:cut], *own], options))
                opened = [llm.stream(ids, **options) for ids, options in streams]
                for stream, (ids, options) in zip(opened, streams, strict=True):
                    for _ in stream:
                        pass
                    alone = shared_llm.generate(ids, use_cache=False, **options)
                    assert stream.completion is not None
                    assert stream.completion.logprobs == alone.logprobs


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_random_schedules_with_few_pages_and_a_damaged_folder(data: st.DataObject) -> None:
    """The exact model: one wrong, stale or missing position would change what follows."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    prefix = rng.integers(0, 250, 40).tolist()
    with TemporaryDirectory() as folder:
        for _ in range(3):
            runner = PrefixRunner(n_pages=data.draw(st.integers(13, 30)))
            files = PageFiles(
                Path(folder),
                page_tokens=runner.page_size,
                page_bytes=runner.page_bytes,
                most_bytes=data.draw(st.sampled_from([2000, 20_000])),
            )
            engine = Engine(
                runner,
                ByteTokenizer(),
                n_ctx=50,
                max_running=data.draw(st.integers(1, 6)),
                step_tokens=data.draw(st.sampled_from([3, 16, 64])),
                disk=DiskCache(files, runner, model=b"exact"),
            )
            handles = []
            for _ in range(data.draw(st.integers(1, 8))):
                cut = data.draw(st.integers(1, 40))
                own = data.draw(st.lists(st.integers(0, 9), max_size=3))
                request = Request(
                    ids=(*prefix[:cut], *own),
                    params=SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True),
                    use_cache=data.draw(st.booleans()) or data.draw(st.booleans()),
                    salt=data.draw(st.sampled_from(["", "other"])),
                )
                handles.append((request, engine.submit(request)))
                for _ in range(data.draw(st.integers(0, 6))):
                    engine.step()
                if data.draw(st.integers(0, 9)) == 0:
                    handles.pop()[1].cancel()
            for request, handle in handles:
                ids = list(request.ids)
                for token in handle.result().token_ids:
                    shown = logits_after(ids).copy()
                    shown[list(ByteTokenizer.eog_ids)] = -np.inf
                    assert token == int(np.argmax(shown))
                    ids.append(token)
            engine.run()
            pool = engine.scheduler.pool
            assert pool.n_free + pool.n_evictable == pool.n_pages
            engine.close()
            for path in pages(Path(folder)):
                if rng.random() < 0.2:
                    raw = bytearray(path.read_bytes())
                    raw[rng.integers(len(raw))] ^= 1
                    path.write_bytes(raw)


def test_less_room_than_a_page_takes_is_said(tiny_model: Path, tmp_path: Path) -> None:
    with LLM(tiny_model, cache_dir=tmp_path / "cache", cache_dir_bytes=1000) as llm:
        assert any("cache_dir_bytes is 1000" in note for note in llm.model_info.notes)
        llm.generate("the island " * 30, max_tokens=2)
    with LLM(tiny_model, cache_dir=tmp_path / "cache", cache_dir_bytes="1M") as llm:
        assert not any("on disk" in note for note in llm.model_info.notes)
