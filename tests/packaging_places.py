"""Where the packaging tests build and run: the repository, and a PATH without any compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def bare_environment(home: Path) -> dict[str, str]:
    """The environment of a machine without compiler, CMake or anything else on PATH.

    What this machine's pip was told (a mirror, a certificate) stays, or it would install nothing.
    """
    (home / "bin").mkdir(parents=True, exist_ok=True)
    told = ("SSL_CERT_FILE", "LANG", "SYSTEMROOT")
    kept = {
        key: value
        for key, value in os.environ.items()
        if key in told or key.startswith("PIP_") or key.endswith(("_PROXY", "_proxy"))
    }
    return kept | {
        "PATH": str(home / "bin"),
        "HOME": str(home),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_CACHE_HOME": str(home / "cache"),
    }


def fresh_environment(folder: Path) -> Path:
    """A new virtual environment of this Python in `folder`; returns its python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / "bin" / "python"


def run(
    *command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end; a failure shows the end of what the command said."""
    result = subprocess.run(
        [str(part) for part in command],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    said = (result.stdout + result.stderr)[-4000:]
    assert result.returncode == 0, f"{command[0]} returned {result.returncode}:\n{said}"
    return result
