"""What the repository promises about itself: README's commands, extras, workflows, clean text."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from packaging_places import ROOT, run

READMES = ("README.md", "README.es.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def blocks(readme: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block."""
    return FENCE.findall((ROOT / readme).read_text(encoding="utf-8"))


def commands(readme: str) -> list[list[str]]:
    """The words of each line of its shell blocks."""
    lines = []
    for language, content in blocks(readme):
        if language in ("console", "bash", "sh"):
            for line in content.splitlines():
                line = line.removeprefix("$ ").split("#")[0].strip()
                if line:
                    lines.append(line.split())
    return lines


@pytest.mark.parametrize("readme", READMES)
def test_readme_names_commands_that_exist(readme: str) -> None:
    from insula.cli.commands import COMMANDS

    seen = [words[1] for words in commands(readme) if words[0] == "insula"]
    seen = [word for word in seen if not word.startswith("-")]
    assert {"run", "pull", "list", "show"} <= set(seen)
    assert not set(seen) - set(COMMANDS)
    for name, (module, function, _) in COMMANDS.items():
        command = importlib.import_module(f"insula.cli.{module}")
        found = getattr(command, function)
        parts = [part for part, _ in found.values()] if isinstance(found, dict) else [found]
        assert parts, name
        assert all(callable(part) for part in parts), name


@pytest.mark.parametrize("readme", READMES)
def test_readme_names_targets_that_exist(readme: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    seen = {words[1].split("=")[0] for words in commands(readme) if words[0] == "make"}
    assert {"run", "test", "test-all", "check", "wheel"} <= seen
    assert not seen - targets


@pytest.mark.parametrize("readme", READMES)
def test_readme_python_compiles_and_imports(readme: str) -> None:
    programs = [content for language, content in blocks(readme) if language == "python"]
    assert programs
    for program in programs:
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "insula":
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("readme", READMES)
def test_readme_python_runs(readme: str, tmp_path: Path) -> None:
    for language, program in blocks(readme):
        if language == "python":
            said = run(sys.executable, "-c", program, cwd=tmp_path)
            assert said.stdout.strip()


@pytest.mark.parametrize("readme", READMES)
def test_readme_links_lead_somewhere(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_both_readmes_say_the_same() -> None:
    english, spanish = (blocks(readme) for readme in READMES)
    assert [language for language, _ in english] == [language for language, _ in spanish]
    for (_, left), (_, right) in zip(english, spanish, strict=True):
        # Comments and prompts are translated; what is typed is not.
        def typed(content: str) -> list[str]:
            return [re.sub(r'"[^"]*"|#.*', "", line).strip() for line in content.splitlines()]

        assert typed(left) == typed(right)
    headings = [
        [len(mark) for mark in re.findall(r"^(#+) ", (ROOT / name).read_text(), re.MULTILINE)]
        for name in READMES
    ]
    assert headings[0] == headings[1]


def test_extras_are_those_of_the_decisions() -> None:
    extras = project()["project"]["optional-dependencies"]
    wanted = "server rag vectors mcp langchain llamacpp train eval pii otel scale all dev"
    assert set(wanted.split()) <= set(extras)
    # Torch takes gigabytes: nothing but `train` may bring it.
    for name, requirements in extras.items():
        brings = [r for r in requirements if re.match(r"(torch|peft|trl|accelerate)\b", r)]
        assert bool(brings) == (name == "train"), name
    for requirements in [project()["project"]["dependencies"], *extras.values()]:
        for requirement in requirements:
            assert re.search(r"(>=|==)|^insula\[", requirement), f"no lower bound: {requirement}"


def test_the_version_is_one() -> None:
    import insula

    version = project()["project"]["version"]
    assert insula.__version__ == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert project()["project"]["license"] == "Apache-2.0"


def test_typed_marker_ships_with_the_package() -> None:
    assert (ROOT / "src" / "insula" / "py.typed").exists()


def test_workflows_cover_the_platforms() -> None:
    wheels = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())
    names = {row["name"] for row in wheels["jobs"]["wheels"]["strategy"]["matrix"]["include"]}
    systems = ("linux", "macos", "windows")
    assert names == {f"{system}-{arch}" for system in systems for arch in ("x86_64", "arm64")}
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert "bash .ci/run" in str(ci["jobs"]["all"]["steps"])
    builds = project()["tool"]["cibuildwheel"]["build"].split()
    assert builds == ["cp311-*", "cp312-*", "cp313-*"]


@pytest.mark.parametrize(
    "target", ["help", "run", "test", "test-all", "check", "bench", "wheel", "native", "clean"]
)
def test_make_knows_its_targets(target: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    result = subprocess.run(
        ["make", "-n", target, "PROMPT=it costs $5, `id` \"and\" 'more'"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: no list of the project's own files")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def test_no_machine_paths_or_mirrors_in_the_text() -> None:
    """A path of one machine or the host of a mirror works for one person only."""
    forbidden = re.compile(
        "|".join(["/wor" + "k/", "/ro" + "ot/", "/home" + "/[a-z]+/", "python" + "hosted"])
        + "|"
        + "|".join(["registry" + r"\.npmjs", "deb" + r"\.debian"])
    )
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if forbidden.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_no_room_is_called_utils() -> None:
    homeless = {"utils", "helpers", "common", "misc", "util", "helper"}
    assert [path for path in tracked() if path.stem in homeless] == []
