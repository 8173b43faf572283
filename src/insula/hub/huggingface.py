"""What a Hugging Face hub offers: the files of a repository, and which one a name means.

Speaks the hub's own routes (https://huggingface.co/docs/hub/api): the model's record for its
commit and licence, the paged tree for names, sizes and sha256, and /resolve/ for the bytes, all
at the endpoint that HF_ENDPOINT names. The token is HF_TOKEN, or the file where the hub's own
login keeps it. A file is chosen by its exact quantization, else Q4_K_M, else the only one there
is; otherwise the error lists what there is. A split model is one file here, with its parts.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

from insula.config import settings
from insula.errors import ConfigError, DownloadError, NotFoundError
from insula.hub.names import HubRef
from insula.hub.remote_file import Remote
from insula.hub.transport import Progress, Transport
from insula.locale import text

PREFERRED = "Q4_K_M"
MAX_PAGES = 200

_SPLIT = re.compile(r"^(?P<base>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)
# A quantization as llama.cpp and those who publish files write it, at the end of the name.
_QUANT = re.compile(
    r"(?:^|[-_.])(?P<quant>(?:UD-)?(?:I?Q\d+|TQ\d+)(?:_[A-Z0-9]+)*"
    r"|BF16|F16|F32|FP16|FP32|MXFP4(?:_MOE)?|NVFP4)(?:[-_.]imat)?$",
    re.IGNORECASE,
)
_NOT_MODELS = re.compile(r"(?:^|[-_./])(?:mmproj|imatrix)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class RepoFile:
    """A GGUF model in a repository: its first file's `path`, all its bytes, its sha256 if known.

    `parts` are the files that it is split into, in their order; none where it is whole. `missing`
    is how many of them are not there.
    """

    path: str
    size: int
    sha256: str | None
    quant: str | None
    parts: tuple[RepoFile, ...] = ()
    missing: int = 0


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository at one commit. `licence` as its card says it."""

    endpoint: str
    repo_id: str
    commit: str
    licence: str | None
    files: tuple[RepoFile, ...]

    def remote(self, file: RepoFile) -> Remote:
        """Where the bytes of `file` are, at this commit."""
        return Remote(
            url=f"{self.endpoint}/{self.repo_id}/resolve/{self.commit}/{quote(file.path)}",
            name=file.path.rpartition("/")[2],
            sha256=file.sha256,
            size=file.size,
        )


def endpoint() -> str:
    """HF_ENDPOINT or the public hub. ConfigError if it is not an http address."""
    value = settings().hub_endpoint
    if not re.fullmatch(r"https?://[^\s/?#]+(?:/[^\s?#]*)?", value):
        raise ConfigError(text("hub.bad_endpoint", value=value[:200]))
    return value


def token() -> str | None:
    """HF_TOKEN, or what the hub's own login left on this machine."""
    if value := (settings().hub_token or "").strip():
        return value
    default_home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    home = Path(os.environ.get("HF_HOME") or default_home)
    path = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def quant_of(path: str) -> str | None:
    """The quantization in a file's name, or that its folder is named after; in upper case."""
    folder, _, name = path.rpartition("/")
    split = _SPLIT.match(name)
    stem = split["base"] if split else name[: -len(".gguf")]
    found = _QUANT.search(stem) or _QUANT.fullmatch(folder.rpartition("/")[2])
    return found["quant"].upper() if found else None


def look(transport: Transport, ref: HubRef, *, progress: Progress | None = None) -> Repository:
    """Ask the hub what is in `ref`'s repository.

    Raises NotFoundError, OfflineError, DownloadError.
    """
    base = endpoint()
    revision = quote(ref.revision or "main", safe="")
    record, _ = transport.json(
        f"{base}/api/models/{ref.repo_id}/revision/{revision}", progress=progress
    )
    if not isinstance(record, dict) or not re.fullmatch(
        r"[0-9a-f]{7,64}", str(record.get("sha", ""))
    ):
        raise DownloadError(text("hub.not_a_hub", endpoint=base))
    commit = str(record["sha"])
    # The record tells where a renamed repository is now; older mirrors leave it out.
    repo_id = str(record.get("id") or ref.repo_id)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        repo_id = ref.repo_id
    items: list[Any] = []
    url = f"{base}/api/models/{repo_id}/tree/{commit}?recursive=true"
    for _ in range(MAX_PAGES):
        page, response = transport.json(url, progress=progress)
        if not isinstance(page, list):
            raise DownloadError(text("hub.not_a_hub", endpoint=base))
        items += page
        following = response.links.get("next", {}).get("url")
        if not following:
            break
        url = urljoin(url, following)
    return Repository(
        endpoint=base,
        repo_id=repo_id,
        commit=commit,
        licence=licence(record),
        files=_models(items),
    )


def choose(repository: Repository, ref: HubRef) -> RepoFile:
    """The file that `ref` means; of a split one any part's path means all of it.

    NotFoundError lists what is there, or says how many parts are not.
    """
    files = repository.files
    name = repository.repo_id
    if not files:
        raise NotFoundError(text("hub.no_gguf", repo=name))
    if ref.path is not None:
        matches = [f for f in files if ref.path in (f.path, *(part.path for part in f.parts))]
    elif ref.quant is not None:
        wanted = ref.quant.upper()
        matches = [file for file in files if file.quant == wanted] or [
            file for file in files if _stem(file).upper() == wanted
        ]
    elif len(files) == 1:
        matches = list(files)
    else:
        matches = [file for file in files if file.quant == PREFERRED]
    if len(matches) > 1:
        # The same quantization in several folders: the shallowest is the model's own.
        depth = min(file.path.count("/") for file in matches)
        matches = [file for file in matches if file.path.count("/") == depth]
    if len(matches) != 1:
        asked = ref.path or ref.quant or PREFERRED
        key = "hub.several_match" if matches else "hub.no_such_quant"
        raise NotFoundError(text(key, repo=name, asked=asked, there=_listing(matches or files)))
    if matches[0].missing:
        raise NotFoundError(
            text("hub.split_missing", file=matches[0].path, missing=matches[0].missing)
        )
    return matches[0]


def _stem(file: RepoFile) -> str:
    return file.path.rpartition("/")[2][: -len(".gguf")]


def _listing(files: list[RepoFile] | tuple[RepoFile, ...]) -> str:
    """The quantizations there are, smallest first, each with its size."""
    shown = []
    for file in sorted(files, key=lambda file: file.size)[:40]:
        label = file.quant or file.path
        size = f"{file.size / 1e9:.2f} GB" if file.size >= 1e9 else f"{file.size / 1e6:.0f} MB"
        if file.parts:
            size += ", " + text("hub.split_in", parts=len(file.parts))
        shown.append(f"{label} ({size})")
    return ", ".join(shown)


def licence(record: dict[str, Any]) -> str | None:
    """What a repository's card states, from the hub's record of it."""
    card = record.get("cardData")
    stated = card.get("license") if isinstance(card, dict) else None
    if isinstance(stated, str):
        return stated
    tags = record.get("tags")
    for tag in tags if isinstance(tags, list) else ():
        if isinstance(tag, str) and tag.startswith("license:"):
            return tag.removeprefix("license:")
    return None


def _models(items: list[Any]) -> tuple[RepoFile, ...]:
    """The GGUF models among a tree's entries, the parts of a split one gathered into one."""
    whole: list[RepoFile] = []
    split: dict[tuple[str, int], dict[int, RepoFile]] = {}
    for item in items:
        if not isinstance(item, dict) or item.get("type") != "file":
            continue
        path, size = item.get("path"), item.get("size")
        if not isinstance(path, str) or not isinstance(size, int) or size < 0:
            continue
        if not path.lower().endswith(".gguf") or _NOT_MODELS.search(path):
            continue
        lfs = item.get("lfs")
        oid = str(lfs.get("oid", "")) if isinstance(lfs, dict) else ""
        file = RepoFile(
            path=path,
            size=size,
            sha256=oid if re.fullmatch(r"[0-9a-f]{64}", oid) else None,
            quant=quant_of(path),
        )
        name = _SPLIT.match(path)
        if name is None:
            whole.append(file)
        else:
            group = split.setdefault((name["base"], int(name["count"])), {})
            group.setdefault(int(name["index"]), file)
    for (_, count), group in split.items():
        parts = [group[number] for number in sorted(group) if 1 <= number <= count]
        if not parts:
            continue
        one = len(parts) == count == 1
        whole.append(
            replace(
                parts[0],
                size=sum(part.size for part in parts),
                sha256=parts[0].sha256 if one else None,
                parts=() if one else tuple(parts),
                missing=count - len(parts),
            )
        )
    return tuple(sorted(whole, key=lambda file: file.path))
