"""The tree of errors. Every failure a user can cause or meet is one of these.

InsulaError                    the root; `exit_code` is what the command line returns
├── ConfigError                an option, setting or argument that is not allowed (exit 2)
│   └── ConstraintError        a schema or grammar that cannot be followed; carries `keyword`
├── NotFoundError              a model, file or name that is not there
├── FormatError                a file whose content is malformed; carries `offset`
├── UnsupportedError           well-formed, but this backend cannot do it; carries `backend`
├── TokenizerError             a vocabulary that lies, or text it cannot take
├── TemplateError              a chat template that fails, escapes or exceeds its bounds
├── QualityError               a rewritten model that lost more than was allowed (exit 3)
├── ContextOverflowError       more tokens than the context holds; carries both numbers
├── ResourceError              memory, disk or descriptors are not enough
├── DownloadError              a transfer failed; carries whether trying again may help
│   ├── OfflineError           nothing answered
│   └── ChecksumError          the bytes are not the ones promised
├── StoreError                 the database of keys, users, chats and records; carries `retryable`
│   ├── StoreBusyError         another process is writing
│   ├── StoreFullError         no room on the disk; a ResourceError too
│   ├── StoreKeyError          encrypted, and the key is missing or another one
│   └── StoreVersionError      written by a newer Insula
└── EngineError                the engine failed while it ran
    └── RemoteError            another server refused, failed or fell silent; carries `status`

A message says what was found, what is allowed, and what to do next.
"""

from __future__ import annotations


class InsulaError(Exception):
    """Root of every error that Insula raises on purpose."""

    exit_code = 1


class ConfigError(InsulaError, ValueError):
    """An option, setting or argument that is not allowed."""

    exit_code = 2


class ConstraintError(ConfigError):
    """A schema or grammar that is malformed, too large, or asks for what cannot be enforced.

    `keyword`: the schema's keyword that is not supported, None where it is something else.
    """

    def __init__(self, message: str, *, keyword: str | None = None) -> None:
        super().__init__(message)
        self.keyword = keyword


class NotFoundError(InsulaError, LookupError):
    """A model, file or name that is not there."""

    def __str__(self) -> str:  # KeyError-style bases quote their message
        return str(self.args[0]) if self.args else ""


class FormatError(InsulaError, ValueError):
    """A file whose content is malformed.

    `offset` is the byte in the file where the fault was found, if known.
    """

    def __init__(self, message: str, *, offset: int | None = None) -> None:
        super().__init__(message if offset is None else f"{message} (at byte {offset})")
        self.offset = offset


class UnsupportedError(InsulaError):
    """Well-formed, but `backend` cannot do it."""

    def __init__(self, message: str, *, backend: str | None = None) -> None:
        super().__init__(message)
        self.backend = backend


class TokenizerError(InsulaError, ValueError):
    """A vocabulary that contradicts itself, or text that it cannot take."""


class TemplateError(InsulaError, ValueError):
    """A chat template that fails, tries to escape, or exceeds its bounds."""


class QualityError(InsulaError):
    """A rewritten model lost more than was allowed; it was not kept."""

    exit_code = 3


class ContextOverflowError(InsulaError, ValueError):
    """`needed` tokens were asked for and `limit` fit. at_least: not all of them were counted."""

    def __init__(self, needed: int, limit: int, hint: str = "", *, at_least: bool = False) -> None:
        count = f"at least {needed}" if at_least else str(needed)
        super().__init__(
            f"the request needs {count} tokens and the context holds {limit}"
            + (f"; {hint}" if hint else "")
        )
        self.needed = needed
        self.limit = limit


class ResourceError(InsulaError):
    """Memory, disk space or file descriptors are not enough."""


class DownloadError(InsulaError):
    """A transfer failed. `retryable` says whether the same call may work later."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class OfflineError(DownloadError):
    """Nothing answered: no network, no name, no route."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True)


class ChecksumError(DownloadError):
    """The bytes that arrived are not the ones promised."""


class StoreError(InsulaError):
    """The database failed. `retryable` says whether the same call may work later."""

    retryable = False


class StoreBusyError(StoreError):
    """Another process was writing for longer than we wait."""

    retryable = True


class StoreFullError(StoreError, ResourceError):
    """The disk, a quota or a file-size limit leaves no room. Reading and deleting still work."""

    retryable = True


class StoreKeyError(StoreError):
    """The database is encrypted and the key is missing or another one, or it is no database."""

    exit_code = 2


class StoreVersionError(StoreError):
    """A newer Insula wrote the database."""


class EngineError(InsulaError):
    """The engine failed while it ran."""


class RemoteError(EngineError):
    """A server that runs the model refused, failed, or stopped answering.

    `status`: of HTTP, None where there was no answer. `retry_after`: seconds that the server asked
    to wait, None where it did not say. `retryable`: whether the same call may work later.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.retryable = retryable
