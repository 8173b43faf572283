"""Who may begin, and who is sent away."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from insula.server.admission import Admission
from insula.server.errors import RefusalError


def test_no_more_than_there_is_room_for():
    gate = Admission(running=2, waiting=2)
    with ExitStack() as inside:
        inside.enter_context(gate.enter(3, ""))
        with pytest.raises(RefusalError) as caught, gate.enter(2, ""):
            pass
        assert caught.value.status == 503
        assert 1 <= caught.value.retry_after <= 60
        inside.enter_context(gate.enter(1, ""))
        assert gate.inside == 4
    assert gate.inside == 0
    with gate.enter(4, ""):
        pass


def test_one_tenant_cannot_take_what_is_anothers():
    """FAULTS 17: fair per key."""
    gate = Admission(running=4, waiting=4)
    with ExitStack() as inside:
        for _ in range(4):
            inside.enter_context(gate.enter(1, "greedy"))
        inside.enter_context(gate.enter(1, "modest"))
        with pytest.raises(RefusalError, match="this key has 4 of 4 places"):
            inside.enter_context(gate.enter(1, "greedy"))
        for _ in range(3):
            inside.enter_context(gate.enter(1, "modest"))
    with ExitStack() as alone:  # alone it may have all
        for _ in range(8):
            alone.enter_context(gate.enter(1, "greedy"))


def test_when_it_stops_nobody_gets_in():
    gate = Admission(running=4, waiting=4)
    gate.stopping = True
    with pytest.raises(RefusalError, match="stopping"), gate.enter(1, ""):
        pass
