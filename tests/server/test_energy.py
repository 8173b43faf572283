"""Joules from a folder like /sys/class/powercap, made here."""

from __future__ import annotations

import pytest

from insula.server.energy import LONGEST_GAP, EnergyMeter, find_counters

RANGE = 262_143_328_850


@pytest.fixture
def machine(tmp_path):
    """set(zone, microjoules), over a machine with one package, memory, cores and psys."""

    def put(zone, value, name=None, top=RANGE):
        folder = tmp_path / zone
        folder.mkdir(exist_ok=True)
        if name is not None:
            (folder / "name").write_text(name + "\n")
            (folder / "max_energy_range_uj").write_text(f"{top}\n")
        (folder / "energy_uj").write_text(f"{value}\n")

    put("intel-rapl:0", 1000, "package-0")
    put("intel-rapl:0:0", 500, "core")
    put("intel-rapl:0:1", 100, "dram", top=65_532_610_987)
    put("intel-rapl:1", 9999, "psys")
    (tmp_path / "intel-rapl").mkdir()
    put.root = tmp_path
    return put


@pytest.fixture
def clock():
    now = [0.0]

    def read():
        return now[0]

    read.pass_ = lambda seconds: now.__setitem__(0, now[0] + seconds)
    return read


def test_what_is_counted(machine):
    assert [c.name for c in find_counters(machine.root)] == ["package-0", "dram"]


def test_one_request(machine, clock):
    meter = EnergyMeter(machine.root, clock=clock)
    assert meter.available
    request = object()
    meter.begin(request)
    machine("intel-rapl:0", 1000 + 5_000_000)
    machine("intel-rapl:0:0", 900_000_000)  # within the package: not added again
    machine("intel-rapl:0:1", 100 + 250_000)
    assert meter.end(request) == 5.25
    assert meter.end(request) is None


def test_a_counter_that_began_anew(machine, clock):
    meter = EnergyMeter(machine.root, clock=clock)
    machine("intel-rapl:0", RANGE - 1_000_000)
    meter.begin(1)
    machine("intel-rapl:0", 2_000_000)
    assert meter.end(1) == 3.0


def test_shared_time_is_shared_evenly(machine, clock):
    meter = EnergyMeter(machine.root, clock=clock)
    a, b = object(), object()
    machine("intel-rapl:0", 7_000_000)  # before anybody came: nobody's
    meter.begin(a)
    machine("intel-rapl:0", 8_000_000)  # a alone: 1
    meter.begin(b)
    machine("intel-rapl:0", 12_000_000)  # both: 2 each
    meter.tick()
    machine("intel-rapl:0", 14_000_000)  # both: 1 each
    assert meter.end(a) == pytest.approx(4.0)
    machine("intel-rapl:0", 20_000_000)  # b alone: 6
    assert meter.end(b) == pytest.approx(9.0)


def test_idle_time_is_nobodys(machine, clock):
    meter = EnergyMeter(machine.root, clock=clock)
    meter.begin(1)
    meter.end(1)
    clock.pass_(100_000)
    machine("intel-rapl:0", 50_000_000)
    meter.begin(2)
    machine("intel-rapl:0", 51_000_000)
    assert meter.end(2) == 1.0


def test_never_guessed(machine, clock):
    meter = EnergyMeter(machine.root, clock=clock)
    meter.begin(1)
    clock.pass_(LONGEST_GAP + 1)  # long enough for a wrap to hide in
    assert meter.end(1) is None
    meter.begin(2)
    (machine.root / "intel-rapl:0" / "energy_uj").write_text("nonsense")
    meter.tick()
    machine("intel-rapl:0", 5)
    assert meter.end(2) is None
    meter.begin(3)
    machine("intel-rapl:0", 1_000_005)
    assert meter.end(3) == 1.0


@pytest.mark.parametrize("what", ["none", "empty", "unreadable"])
def test_machines_without_counters(machine, clock, tmp_path_factory, what):
    root = machine.root
    if what != "unreadable":
        root = tmp_path_factory.mktemp("none") / ("." if what == "empty" else "absent")
    else:
        for zone in root.glob("*:*"):
            (zone / "energy_uj").unlink()
            (zone / "energy_uj").symlink_to("/nonexistent")
    meter = EnergyMeter(root, clock=clock)
    assert not meter.available
    meter.begin(1)
    assert meter.end(1) is None
