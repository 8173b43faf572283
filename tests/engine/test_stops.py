"""Stop strings: the cut is a function of the text, however it arrives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from insula.engine.stops import StopStrings

TEXT = st.text(alphabet="ab<>é", max_size=30)


def by_character(text: str, stops: list[str]) -> str:
    """The definition: the first moment at which the text ends with a stop string."""
    for end in range(1, len(text) + 1):
        ending = [s for s in stops if text[:end].endswith(s)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(
    pieces=st.lists(st.text(alphabet="ab<>é", max_size=6), max_size=12),
    stops=st.lists(st.text(alphabet="ab<>é", min_size=1, max_size=5), max_size=4),
)
def test_any_split_gives_the_same_cut(pieces: list[str], stops: list[str]) -> None:
    machine = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += machine.push(piece)
        # What was shown is never taken back, and never holds a stop string.
        assert not any(stop in shown for stop in stops)
    hit = machine.hit
    shown += machine.flush()
    text = "".join(pieces)
    assert shown == by_character(text, stops)
    assert (hit is not None) == any(stop in text for stop in stops)


def test_only_a_possible_beginning_is_held_back() -> None:
    machine = StopStrings(["</end>"])
    assert machine.push("so </e") == "so "
    assert machine.push("lse") == "</else"
    assert machine.push("</end") == ""
    assert machine.push("> and more") == ""
    assert machine.hit == "</end>"
    assert machine.push("nothing after it") == ""
    assert machine.flush() == ""


def test_held_text_comes_out_at_the_end() -> None:
    machine = StopStrings(["stop"])
    assert machine.push("a sto") == "a "
    assert machine.flush() == "sto"
