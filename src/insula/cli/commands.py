"""The table of commands. A command's module is imported when it is asked for.

A new command is one file here with one function, one row in COMMANDS, and its texts.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from insula.cli.output import say
from insula.errors import ConfigError
from insula.locale import language, text

#: name -> (module below insula.cli, function or Subcommands in it, its help text)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("run", "run", "help.run"),
    "pull": ("pull", "pull", "help.pull"),
    "list": ("list_models", "list_models", "help.list"),
    "serve": ("serve", "serve", "help.serve"),
    "search": ("search", "search", "help.search"),
    "recommend": ("recommend", "recommend", "help.recommend"),
    "show": ("show", "show", "help.show"),
    "create": ("create", "create", "help.create"),
    "cp": ("cp", "cp", "help.cp"),
    "rm": ("rm", "rm", "help.rm"),
    "embed": ("embed", "embed", "help.embed"),
    "prune": ("prune", "prune", "help.prune"),
    "export": ("export", "export", "help.export"),
    "import": ("import_model", "import_model", "help.import"),
    "lock": ("lock", "lock", "help.lock"),
    "tokenize": ("tokenize", "tokenize", "help.tokenize"),
    "quantize": ("quantize", "quantize", "help.quantize"),
    "convert": ("convert", "convert", "help.convert"),
    "merge": ("merge", "merge", "help.merge"),
    "bench": ("bench", "bench", "help.bench"),
    "doctor": ("doctor", "doctor", "help.doctor"),
    "keys": ("keys", "COMMANDS", "help.keys"),
    "users": ("users", "COMMANDS", "help.users"),
    "audit": ("audit", "COMMANDS", "help.audit"),
}

#: Of a command that has commands: name -> (its function, its help text).
Subcommands = Mapping[str, tuple[Callable[..., None], str]]
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

#: Shells whose completion can be installed.
COMPLETIONS = ("bash", "zsh", "fish", "powershell", "pwsh")

#: What the parser's own help says, where there is no other way to have it in Spanish.
_HELP_ES = (
    (re.compile(r"^Usage:", re.MULTILINE), "Uso:"),
    (re.compile(r"^Options:", re.MULTILINE), "Opciones:"),
    (re.compile(r"^Arguments:", re.MULTILINE), "Argumentos:"),
    (re.compile(r"^Commands:", re.MULTILINE), "Órdenes:"),
    (re.compile(r"\[OPTIONS\]"), "[OPCIONES]"),
    (re.compile(r"COMMAND \[ARGS\]\.\.\."), "ORDEN [ARGUMENTOS]..."),
    (re.compile(r"\[required\]"), "[obligatorio]"),
    (re.compile(r"\[default:"), "[por defecto:"),
    (re.compile(r"Show this message and exit\."), "Muestra esta ayuda y sale."),
    (
        re.compile(r"Install completion for the current shell\."),
        "Instala el autocompletado en este intérprete.",
    ),
    (
        re.compile(r"Show completion for the current shell, to copy it or\s+customize[^.]*\."),
        "Muestra el autocompletado de este intérprete.",
    ),
)


def _localized(help_text: str) -> str:
    if language() == "es":
        for pattern, spanish in _HELP_ES:
            help_text = pattern.sub(spanish, help_text)
    return help_text


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # The parser does not say whose help would help.
            if getattr(error, "ctx", ctx) is None:
                error.ctx = ctx  # type: ignore[attr-defined]
            raise

    def get_help(self, ctx: Any) -> str:
        return _localized(super().get_help(ctx))


class _Group(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], names, n=1)
            key = "cli.no_such_command_close" if close else "cli.no_such_command"
            known = ", ".join(names)
            raise ConfigError(text(key, name=args[0][:80], close="".join(close), known=known))
        return super().resolve_command(ctx, args)

    def get_help(self, ctx: Any) -> str:
        return _localized(super().get_help(ctx))


class _Root(_Group):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        row = COMMANDS.get(cmd_name)
        if row is None:
            return None
        module, function, help_key = row
        found = getattr(importlib.import_module(f"insula.cli.{module}"), function)
        if isinstance(found, Mapping):
            return _with_commands(cmd_name, found, help_key)
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        _add(app, cmd_name, found, help_key)
        return typer.main.get_command(app)


def _add(app: typer.Typer, name: str, function: Callable[..., None], help_key: str) -> None:
    app.command(
        name,
        cls=_Command,
        help=text(help_key),
        short_help=text(help_key).partition("\n")[0],
        context_settings=_CONTEXT,
    )(function)


def _with_commands(name: str, commands: Subcommands, help_key: str) -> Any:
    """`insula keys`, which has commands itself and shows them where none is given."""
    app = typer.Typer(name=name, cls=_Group, add_completion=False, rich_markup_mode=None)
    for subcommand, (function, key) in commands.items():
        _add(app, subcommand, function, key)

    def show_help(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help())

    app.callback(
        invoke_without_command=True,
        help=text(help_key),
        short_help=text(help_key).partition("\n")[0],
        context_settings=_CONTEXT,
    )(show_help)
    return typer.main.get_command(app)


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help=text("help.version"))] = False,
) -> None:
    if version:
        from insula import __version__

        print(f"insula {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _install_completion(context: Any, param: Any, value: Any) -> Any:
    """typer's own, in the person's language."""
    if not value or context.resilient_parsing:
        return value
    from typer import completion

    shell = value if isinstance(value, str) else completion._get_shell_name()  # type: ignore[attr-defined]
    if shell not in COMPLETIONS:
        known = ", ".join(COMPLETIONS)
        raise ConfigError(text("cli.completion_unknown", shell=shell or "?", known=known))
    shell, path = completion.install(shell=shell)  # type: ignore[attr-defined]
    say(text("cli.completion_installed", shell=shell, path=path))
    raise typer.Exit


def invoke(args: list[str]) -> int:
    """Parse `args` and run the command. Errors are raised, not printed."""
    app = typer.Typer(cls=_Root, rich_markup_mode=None, add_completion=True)
    app.callback(invoke_without_command=True, help=text("help.insula"), context_settings=_CONTEXT)(
        _root
    )
    command = typer.main.get_command(app)
    for param in command.params:
        if param.name == "install_completion":
            param.callback = _install_completion
    # The shell's completion protocol, if that is what this call is (it ends the process).
    command._main_shell_completion({}, "insula")
    # Not command.main(): it would turn Ctrl-C and end of input into its own messages.
    with command.make_context("insula", args) as context:
        code = command.invoke(context)
    return code if isinstance(code, int) else 0
