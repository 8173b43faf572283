"""The chat on a terminal, typed at."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("needs a pseudo-terminal", allow_module_level=True)

from cli.terminal import CTRL_C, CTRL_D, ENTER, NEW_LINE, UP, Terminal

PROMPT = r"\n>>>"
SHORT = ("-n", "8", "--seed", "7")


@pytest.fixture
def chat(env, tiny):
    with Terminal(["run", str(tiny), *SHORT], env) as terminal:
        assert "/help" in terminal.expect(PROMPT)
        yield terminal


def say(terminal: Terminal, line: str) -> str:
    """Type a line; what is shown until the next prompt."""
    terminal.keys(line + ENTER)
    return terminal.expect(PROMPT)


def test_a_conversation(chat, env):
    say(chat, "hello")
    assert "messages" in (shown := say(chat, "/show"))
    assert "user" in shown
    assert "native" in shown
    chat.keys(CTRL_D)
    assert chat.end() == 0
    assert "Traceback" not in chat.text


def test_bye_leaves(chat):
    chat.keys("/bye" + ENTER)
    assert chat.end() == 0


def test_the_commands(chat, env):
    for name in ("/system", "/clear", "/save", "/load", "/set", "/show", "/regenerate", "/help"):
        assert name in say(chat, "/help")
    assert "there is no system prompt" in say(chat, "/system")
    assert "is set" in say(chat, "/system Be brief.")
    assert "Be brief." in say(chat, "/system")
    say(chat, "hello")
    saved = say(chat, "/save first")
    path = Path(env["INSULA_HOME"]) / "chats" / "first.json"
    assert str(path) in saved.replace("\n", "")
    assert path.stat().st_mode & 0o777 == 0o600
    messages = json.loads(path.read_text())["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    assert "cleared" in say(chat, "/clear")
    assert "Be brief." in say(chat, "/system")
    assert "3 messages loaded" in say(chat, "/load first")
    assert "there is no system prompt" in say(chat, "/system off")


def test_settings(chat):
    assert "temperature = 0.0 *" in say(chat, "/set temperature 0")
    assert "top_k = 5 *" in say(chat, "/set top-k=5")
    shown = say(chat, "/set")
    assert re.search(r"^temperature +0\.0 \*$", shown, re.MULTILINE)
    assert re.search(r"^top_p +0\.95$", shown, re.MULTILINE)
    assert r"dry_sequence_breakers = '\n', 'END' *" in say(
        chat, r"/set dry_sequence_breakers \n|END"
    )
    assert "dry_sequence_breakers = - *" in say(chat, "/set dry-sequence-breakers none")
    assert "mirostat: 1 was given" in say(chat, "/set mirostat 1")
    assert "temperature = 0.8" in say(chat, "/set temperature default")


def test_mistakes_are_a_line_and_the_chat_goes_on(chat):
    for line, part in (
        ("/nonsense", "/help"),
        ("/set warmth 3", "temperature"),
        ("/set temperature warm", "warm"),
        ("/set top_p 7", "top_p"),
        ("/set temperature", "/set NAME VALUE"),
        ("/load nowhere", "nowhere"),
        ("/load /etc/passwd", "passwd"),
        ("/save", "name"),
        ("/save /nowhere/at/all", "no folder /nowhere/at"),
        ("/regenerate", "nothing"),
    ):
        shown = say(chat, line)
        assert "insula: " in shown, line
        assert part in shown.partition("insula: ")[2], line
    say(chat, "hello")
    assert "Traceback" not in chat.text


def test_regenerate_answers_the_same_question(chat):
    say(chat, "hello")
    assert "/set seed default" in say(chat, "/regenerate")
    shown = say(chat, "/show")
    assert shown.count("  user") == 1
    assert shown.count("  assistant") == 1


def test_several_lines(chat):
    chat.keys("first" + NEW_LINE + "second" + ENTER)
    chat.expect(PROMPT)
    assert "first second" in say(chat, "/show")
    say(chat, "/clear")
    chat.keys('"""' + ENTER)
    chat.expect(r"\n\.\.\.")
    chat.keys("third" + ENTER + 'fourth"""' + ENTER)
    chat.expect(PROMPT)
    assert "third fourth" in say(chat, "/show")


def test_a_message_that_begins_with_a_slash(chat):
    say(chat, "//help")
    assert "user       /help" in say(chat, "/show")


def test_the_history_lasts_and_is_private(chat, env, tiny):
    say(chat, "/system a text to find again")
    chat.keys(CTRL_D)
    chat.end()
    path = Path(env["INSULA_HOME"]) / "history"
    assert path.stat().st_mode & 0o777 == 0o600
    with Terminal(["run", str(tiny), *SHORT], env) as again:
        again.expect(PROMPT)
        again.keys(UP)
        again.expect("a text to find again")
        again.keys(ENTER)
        again.expect("is set")


def test_ctrl_c_stops_the_answer_and_not_the_program(env, endless):
    with Terminal(["run", str(endless), "--ignore-eos"], env) as chat:
        chat.expect(PROMPT)
        chat.keys("hello" + ENTER)
        chat.expect(r"hello\n[^\n]+")
        chat.keys(CTRL_C)
        chat.expect(r"\(stopped\)" + PROMPT)
        shown = say(chat, "/show")
        assert "assistant" in shown  # what was said stays
        chat.keys("half a line" + CTRL_C)
        assert "Ctrl-D" in chat.expect(PROMPT)
        chat.keys(CTRL_D)
        assert chat.end() == 0
        assert "Traceback" not in chat.text


def test_ctrl_c_while_loading_is_130(env, tiny):
    with Terminal(["run", str(tiny)], env) as chat:
        chat.keys(CTRL_C)
        code = chat.end(10)
        assert code in (130, -2)  # -2: before Python was up
        assert "Traceback" not in chat.text


def test_a_full_context_drops_the_oldest_and_says_so(chat):
    for _ in range(12):
        shown = say(chat, "hello there, how are you today? " * 3)
        if "dropped" in shown:
            break
    else:
        raise AssertionError("nothing was dropped")


def test_spanish(env, tiny):
    with Terminal(["run", str(tiny), *SHORT], {**env, "LANG": "es_ES.UTF-8"}) as chat:
        assert "para salir" in chat.expect(PROMPT)
        assert "no existe la orden" in say(chat, "/nada")


def test_an_answer_on_a_terminal_has_no_control_characters(env, tiny):
    with Terminal(["run", str(tiny), "hello", "-n", "300", "--ignore-eos"], env) as terminal:
        assert terminal.end() == 0
        controls = {c for c in terminal.raw if ord(c) < 32 or 127 <= ord(c) < 160}
        assert controls <= {"\r", "\n", "\t"}


def test_tokens_in_colour(env, tiny):
    with Terminal(["tokenize", str(tiny), "hello\nthere"], env) as terminal:
        assert terminal.end() == 0
    assert "\x1b[48;5;" in terminal.raw
    assert "↵" in terminal.text
    assert "11 characters" in terminal.text
    with Terminal(["tokenize", str(tiny), "hello"], {**env, "NO_COLOR": "1"}) as terminal:
        assert terminal.end() == 0
    assert "\x1b" not in terminal.raw


def test_a_progress_bar(env, hub, tiny):
    hub.add("o/r", {"m.gguf": tiny.read_bytes() * 20})
    with Terminal(["pull", "hf.co/o/r"], env) as terminal:
        assert terminal.end() == 0
    assert "is ready" in terminal.text
    assert "\x1b[" in terminal.raw


def context(shown: str) -> str:
    found = re.search(r"context +(\S+) / ", shown)
    assert found, shown
    return found[1]


def test_show_forgets_figures_of_another_history(chat):
    say(chat, "hello")
    assert int(context(say(chat, "/show"))) > 0
    say(chat, "/save first")
    say(chat, "/clear")
    assert context(say(chat, "/show")) == "0"
    say(chat, "hello again, and a good deal longer")
    say(chat, "/load first")
    assert context(say(chat, "/show")) == "?"


def test_commands_do_not_ignore_what_they_cannot_use(chat, tmp_path):
    for line in ("/clear foo", "/regenerate more", "/show all"):
        shown = say(chat, line)
        assert f"insula: {line.split()[0]} takes nothing after it" in shown
    assert "allowed: None (no limit of its own), or 0 to" in say(
        chat, "/set max_tokens 9" + "9" * 22
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "is a folder" in say(chat, f"/save {folder}")
    (tmp_path / "bin.txt").write_bytes(b"\xff\x00")
    assert "is not a saved chat" in (shown := say(chat, f"/load {tmp_path}/bin.txt"))
    assert "codec" not in shown


def test_a_block_is_one_entry_of_the_history(chat, env):
    chat.keys('"""' + ENTER)
    chat.expect(r"\n\.\.\.")
    chat.keys("third" + ENTER + 'fourth"""' + ENTER)
    chat.expect(PROMPT)
    history = (Path(env["INSULA_HOME"]) / "history").read_text()
    assert history.count("\n# ") == 1
    assert '+"""\n+third\n+fourth"""\n' in history


def test_sigterm_ends_the_chat_in_order(chat):
    chat.process.terminate()
    assert chat.end(10) == 143
    assert "Traceback" not in chat.text


def test_a_full_context_is_told_once_in_spanish(env, tiny):
    spanish = {**env, "LANG": "es_ES.UTF-8"}
    with Terminal(["run", str(tiny), *SHORT, "-c", "200"], spanish) as chat:
        chat.expect(PROMPT)
        for _ in range(12):
            shown = say(chat, "hello there, how are you today? " * 2)
            if "olvidado" in shown:
                break
        else:
            raise AssertionError("nothing was dropped")
        assert shown.count("tokens") == 2  # the context's and the dropped ones, in one line
        assert "dropped" not in shown
        say(chat, "/set max_tokens 500")
        assert "max_tokens es 500" in say(chat, "hi").replace("\n", "")


def test_a_model_made_of_a_modelfile(env, tiny, insula, tmp_path):
    (tmp_path / "Modelfile").write_text(
        f"FROM {tiny}\nPARAMETER top_k 3\nPARAMETER num_predict 4\nPARAMETER seed 7\n"
        "SYSTEM Be brief.\nMESSAGE user one\nMESSAGE assistant two\n"
    )
    assert insula("create", "mine", "-q").returncode == 0
    with Terminal(["run", "mine"], env) as terminal:
        terminal.expect(PROMPT)
        assert "Be brief." in say(terminal, "/system")
        shown = say(terminal, "/set")
        assert re.search(r"^top_k +3$", shown, re.MULTILINE)
        assert "top_k = 5 *" in say(terminal, "/set top_k 5")
        assert "top_k = 3" in say(terminal, "/set top_k default")
        say(terminal, "hello")
        assert "assistant" in say(terminal, "/show")
        say(terminal, "/clear")
        shown = say(terminal, "/show")
        assert re.search(r"assistant +two", shown)
        assert "hello" not in shown
