"""What holds for every command: help, versions, wrong command lines, exit codes, languages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.conftest import failed
from insula import __version__
from insula.cli import main as cli_main
from insula.cli.commands import COMMANDS

FULL = Path("/dev/full")
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and descriptors")


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(insula, option):
    done = insula(option)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"insula {__version__}\n", "")


def test_version_imports_next_to_nothing(env):
    code = (
        "import sys; from insula.cli.main import main; main(['--version']);"
        "heavy = {'typer', 'rich', 'numpy', 'httpx2', 'prompt_toolkit', 'insula._native'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == b"[]"


def test_help_names_every_command(insula):
    done = insula("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout
    assert insula().stdout == done.stdout


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_explains_itself_in_both_languages(insula, command):
    english, spanish = insula(command, "--help"), insula(command, "-h", LC_ALL="es_ES.UTF-8")
    assert (english.returncode, spanish.returncode) == (0, 0)
    assert english.stdout.startswith(f"Usage: insula {command}")
    assert spanish.stdout.startswith(f"Uso: insula {command}")
    for left in ("Options:", "Arguments:", "Show this", "[default", "[required"):
        assert left not in spanish.stdout
    assert "\x1b" not in english.stdout


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (("nonsense",), ["nonsense", "run, pull, list"]),
        (("pul",), ["did you mean pull"]),
        (("list", "--jsn"), ["--jsn", "did you mean --json", "insula list --help"]),
        (("--jsn",), ["--jsn"]),
        (("show",), ["MODEL", "missing"]),
        (("show", "a", "b"), ["b", "too many"]),
        (("show", "a", "--ctx", "many"), ["--ctx", "number"]),
        (("show", "a", "--ctx"), ["--ctx", "needs a value"]),
        (("rm",), ["--unused"]),
        (("pull", "hf.co/x"), ["hf.co/owner/repo"]),
        (("pull", "../../etc/passwd"), ["passwd"]),
        (("run", "--temperature", "warm"), ["--temperature", "number"]),
        (("run", "--top-p", "7", "m", "x"), ["top_p"]),
        (("run", "--samplers", "magic", "m", "x"), ["magic"]),
        (("bench", "--repetitions", "0"), ["--repetitions"]),
    ],
)
def test_wrong_command_lines_are_one_line_and_exit_2(insula, args, parts):
    done = insula(*args)
    line = failed(done, 1 if args[:2] == ("pull", "../../etc/passwd") else 2)
    for part in parts:
        assert part in line


def test_wrong_command_lines_in_spanish(insula):
    line = failed(insula("list", "--jsn", LANG="es_ES.UTF-8"), 2)
    assert "no existe la opción --jsn; ¿querías decir --json?; mira insula list --help" in line
    assert "no existe la orden" in failed(insula("lista", INSULA_LANG="es"), 2)
    line = failed(insula("show", "x", "--ctx", "uno", INSULA_LANG="es"), 2)
    assert "--ctx/-c debe ser un número" in line


def test_a_bad_variable_is_named(insula):
    assert "INSULA_THREADS" in failed(insula("list", INSULA_THREADS="many"), 2)


def test_a_traceback_only_where_it_is_asked_for(insula):
    done = insula("show", "nothing.gguf", INSULA_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "Traceback" not in insula("show", "nothing.gguf", INSULA_DEBUG="0").stderr


def test_a_message_cannot_drive_the_terminal(insula):
    line = failed(insula("show", "\x1b[2J\x1b]0;owned\x07.gguf"), 1)
    assert "\x1b" not in line
    assert "\\x1b[2J" in line


@posix
def test_a_closed_standard_output(env, tmp_path):
    command = f"exec {sys.executable} -m insula list >&-"
    done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("insula: standard output is closed")
    assert len(done.stderr.splitlines()) == 1


@posix
def test_closed_standard_input_and_error(env):
    command = f"exec {sys.executable} -m insula list --json <&- 2>&-"
    done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["store"] == []


@posix
def test_a_reader_that_goes_away(env):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "insula", "list"],
        env=env,
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output(env):
    with FULL.open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "insula", "list"],
            env=env,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


_SAYS_WHEN_UP = (
    "import sys, insula.cli.main as cli; print('up', flush=True); sys.exit(cli.main(sys.argv[1:]))"
)


@posix
@pytest.mark.parametrize("pause", [0.05, 0.2, 0.6])
def test_ctrl_c_at_any_time(env, hub, pause):
    """While it imports, parses or waits for the network: 130 and no traceback."""

    def stall(handler) -> bool:
        time.sleep(20)
        return True

    hub.api_faults += [stall]
    command = [sys.executable, "-c", _SAYS_WHEN_UP, "pull", "hf.co/o/r"]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=15)
    assert process.returncode == 130
    assert b"Traceback" not in err


@posix
def test_an_interrupt_in_the_midst_of_an_import_comes_after_it(monkeypatch):
    """Where Python would show it and go on: in a weak reference's callback, while importing."""
    program = """if True:
        import os, signal, time, weakref
        class Thing: pass
        thing = Thing()
        told = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
        del thing
    """
    code = compile(program, "<frozen importlib._bootstrap>", "exec")

    def run(args):
        exec(code, {})
        time.sleep(5)
        return 0

    monkeypatch.setattr(cli_main, "_run", run)
    assert cli_main.main([]) == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_completion_is_installed_in_the_persons_language(insula, monkeypatch, tmp_path):
    from typer import completion

    monkeypatch.setattr(completion, "_get_shell_name", lambda: "bash")
    monkeypatch.setattr(completion, "install", lambda shell: (shell, tmp_path / "there"))
    assert "bash is installed in" in insula("--install-completion").stdout
    assert "está instalado" in insula("--install-completion", LANG="es_ES").stdout
    monkeypatch.setattr(completion, "_get_shell_name", lambda: None)
    assert "bash, zsh" in failed(insula("--install-completion"), 2)
