"""A folder of small pages whose bytes follow from their tokens, for this process and others."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from insula import _native
from insula.engine.page_files import PageFiles

PAGE_TOKENS, PAGE_BYTES = 4, 80
FILE_BYTES = 64 + 4 * PAGE_TOKENS + PAGE_BYTES
ROOT = b"r" * 16


def page_files(folder: Path, *, most: int = 1000) -> PageFiles:
    return PageFiles(
        folder, page_tokens=PAGE_TOKENS, page_bytes=PAGE_BYTES, most_bytes=most * FILE_BYTES
    )


def page_of(*tokens: int) -> np.ndarray:
    """What the page after these tokens carries."""
    return np.random.default_rng(list(tokens)).integers(0, 256, PAGE_BYTES, dtype=np.uint8)


def put(files: PageFiles, parent: bytes, tokens: tuple[int, ...], page: np.ndarray) -> bytes:
    files.put(parent, tokens, page, _native.checksum(page))
    return files.child(parent, tokens)


def get(files: PageFiles, parent: bytes, tokens: tuple[int, ...]) -> bytes | None:
    """The page's bytes; None if it is not there, or not to be believed."""
    opened = files.open(parent, files.child(parent, tokens))
    if opened is None:
        return None
    try:
        raw = os.pread(opened.file, PAGE_BYTES, files.offset)
        checksum = None
        if len(raw) == PAGE_BYTES:
            checksum = _native.checksum(np.frombuffer(raw, np.uint8))
        return raw if files.whole(opened, tokens, checksum) else None
    finally:
        os.close(opened.file)
