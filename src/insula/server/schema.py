"""What a body may hold: the base of every family's models, and what is said of a wrong one.

A parameter that a model does not know is refused by name, never ignored; null stands for "not
given" everywhere. Types are exact: "1" is no number and 1 is no string.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError

from insula.server.errors import RefusalError, unsupported
from insula.server.limits import read_json
from insula.server.options import Limits


class Body(BaseModel):
    """NEUTRAL: parameters that are not served, by the values that ask for nothing."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())
    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Raises RefusalError that names the parameter at fault."""
        given = {name: value for name, value in document.items() if value is not None}
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name in [name for name in given if name not in known]:
            if given.pop(name) not in cls.NEUTRAL.get(name, ()):
                raise unsupported(name[:80])
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise _wrong(error) from None


def _wrong(error: ValidationError) -> RefusalError:
    first = error.errors(include_url=False, include_context=False)[0]
    parts = [str(part) for part in first["loc"] if not _is_branch(part)]
    name = parts[0] if parts else "body"
    where = name + "".join(f"[{part}]" for part in parts[1:])[:80]
    if first["type"] == "missing":
        return RefusalError(400, f"{where}: is missing", code="missing_parameter", param=name)
    found = repr(first["input"])
    found = found if len(found) <= 60 else found[:57] + "..."
    message = f"{where}: found {found}; {first['msg'][:1].lower()}{first['msg'][1:]}"
    return RefusalError(400, message, code="invalid_value", param=name)


def _is_branch(part: int | str) -> bool:
    """A union's branch, which is our own matter."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part)


B = TypeVar("B", bound=Body)


async def read(request: Request, kind: type[B], limits: Limits) -> B:
    """The request's body. Raises RefusalError."""
    return kind.of(await read_json(request, limits))
