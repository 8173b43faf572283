"""`insula doctor`, and the memory it reads from control groups."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from insula.hub.advice import kv_bytes_per_token, linux_memory


def test_everything_for_a_program(insula):
    done = insula("doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["cpu"]["isa_levels"][-1] == "scalar"
    assert found["cpu"]["threads"] >= 1
    assert all(rate > 0 for rate in found["bandwidth_gb_per_s"].values())
    assert found["memory"]["total"] is None or found["memory"]["total"] > 1 << 20
    assert {row["name"] for row in found["backends"]} >= {"native", "llamacpp", "reference"}
    assert "HF_TOKEN" not in done.stdout


def test_for_a_person_in_both_languages(insula):
    assert "processor" in insula("doctor", "--fast").stdout
    assert "procesador" in insula("doctor", "--fast", INSULA_LANG="es").stdout
    assert json.loads(insula("doctor", "--fast", "--json").stdout)["bandwidth_gb_per_s"] is None


def group(root: Path, meminfo: str, cgroup: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(meminfo)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


MEMINFO = "MemTotal:       16000 kB\nMemFree: 100 kB\nMemAvailable:   8000 kB\n"


def test_memory_without_a_limit(tmp_path):
    memory = linux_memory(group(tmp_path, MEMINFO, "0::/\n", {"memory.max": "max\n"}))
    assert (memory.total, memory.available, memory.limit) == (16000 << 10, 8000 << 10, None)


def test_the_tightest_group_counts(tmp_path):
    files = {
        "a/b/memory.max": "max\n",
        "a/b/memory.current": "100\n",
        "a/memory.max": "5000000\n",
        "a/memory.current": "3000000\n",
        "a/memory.stat": "anon 1\ninactive_file 400000\nactive_file 100000\n",
    }
    memory = linux_memory(group(tmp_path, MEMINFO, "0::/a/b\n", files))
    assert (memory.limit, memory.available) == (5_000_000, 2_500_000)


def test_the_first_version_of_control_groups(tmp_path):
    files = {
        "memory/x/memory.limit_in_bytes": "4000000",
        "memory/x/memory.usage_in_bytes": "1000000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": "1",
    }
    memory = linux_memory(group(tmp_path, MEMINFO, "5:cpu,memory:/x\n2:cpuset:/\n", files))
    assert (memory.limit, memory.available) == (4_000_000, 3_000_000)


def test_a_system_that_says_nothing(tmp_path):
    memory = linux_memory(tmp_path)
    assert (memory.total, memory.available, memory.limit) == (None, None, None)


@pytest.mark.parametrize(
    ("heads_kv", "extra", "expected"),
    [
        (2, {}, 3 * 2 * 2 * 8 * 2),
        ([2, 0, 1], {}, (2 + 0 + 1) * 2 * 8 * 2),
        (None, {}, 3 * 4 * 2 * 8 * 2),
        (2, {"attention.key_length": 10, "attention.value_length": 6}, 3 * 2 * 16 * 2),
        ([2, 2], {}, None),
        ("two", {}, None),
    ],
)
def test_kv_bytes(heads_kv, extra, expected):
    values = {"block_count": 3, "embedding_length": 32, "attention.head_count": 4, **extra}
    if heads_kv is not None:
        values["attention.head_count_kv"] = heads_kv
    metadata = {"general.architecture": "x", **{f"x.{k}": v for k, v in values.items()}}
    assert kv_bytes_per_token(metadata) == expected
