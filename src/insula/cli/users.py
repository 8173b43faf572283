"""`insula users`: who may sign in to the server's page. Passwords are typed, never arguments."""

from __future__ import annotations

import getpass
import sys
import time
from dataclasses import asdict
from typing import Annotated

import typer

from insula.cli.keys import when
from insula.cli.output import columns, is_terminal, say, say_json
from insula.errors import ConfigError
from insula.locale import text
from insula.security import passwords
from insula.server.audit_here import recorded
from insula.store import users as table
from insula.store.place import open_store

_Json = Annotated[bool, typer.Option("--json", help=text("help.json"))]
_Name = Annotated[str, typer.Argument(metavar="USER", help=text("help.users_name"))]


def add(
    name: _Name,
    role: Annotated[str, typer.Option(metavar="ROLE", help=text("help.users_role"))] = "user",
    as_json: _Json = False,
) -> None:
    """The command."""
    table.check_name(name)
    with open_store() as store:
        hashed = passwords.hash_password(_new_password(name))
        with recorded(store) as record:
            user = table.add(store, name=name, role=role, password_hash=hashed, now=time.time())
            record("user.added", user=user.id, name=user.name, role=user.role)
    if as_json:
        say_json(asdict(user))
    else:
        say(text("access.user_added", name=user.name, role=user.role))


def list_users(as_json: _Json = False) -> None:
    """The command."""
    with open_store() as store:
        found = table.list_users(store)
    if as_json:
        say_json({"users": [asdict(user) for user in found]})
    elif not found:
        say(text("access.no_users"))
    else:
        header = (text("access.head_name"), text("access.head_role"), text("access.created"))
        say(columns(header, [(user.name, user.role, when(user.created)) for user in found]))


def passwd(name: _Name) -> None:
    """The command."""
    with open_store() as store:
        table.get(store, name)
        hashed = passwords.hash_password(_new_password(name))
        with recorded(store) as record:
            user = table.set_password(store, name, hashed)
            record("user.password", user=user.id, name=user.name)
    say(text("access.password_set", name=user.name))


def remove(name: _Name) -> None:
    """The command."""
    with open_store() as store, recorded(store) as record:
        user = table.remove(store, name)
        record("user.removed", user=user.id, name=user.name)
    say(text("access.user_removed", name=user.name))


COMMANDS = {
    "add": (add, "help.users_add"),
    "list": (list_users, "help.users_list"),
    "passwd": (passwd, "help.users_passwd"),
    "rm": (remove, "help.users_rm"),
}


def _new_password(name: str) -> str:
    """Typed twice at a terminal, unseen; otherwise the first line of standard input."""
    if is_terminal(sys.stdin):
        first = getpass.getpass(text("access.password_prompt", name=name))
        if getpass.getpass(text("access.password_again")) != first:
            raise ConfigError(text("access.passwords_differ"))
    else:
        first = sys.stdin.readline(passwords.LONGEST + 2).rstrip("\r\n")
    if not passwords.SHORTEST <= len(first) <= passwords.LONGEST:
        raise ConfigError(
            text("access.bad_password", least=passwords.SHORTEST, most=passwords.LONGEST)
        )
    return first
