"""The reference of the command line, as a page, from the commands themselves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ccrewrite.cli.app import app


def reference() -> str:
    """The page."""
    program: Any = typer.main.get_command(app)
    parts = [
        "# Command line",
        f"{program.help}\n\n`python -m ccrewrite` is the same program; `ccrewrite COMMAND --help` says what this page says.",
    ]
    for name, command in program.commands.items():
        parts += [f"## {name}", command.help or "", f"```text\n{usage(name, command)}\n```", table(command)]
    return "\n\n".join(part for part in parts if part) + "\n"


def usage(name: str, command: Any) -> str:
    arguments = [p.name.upper() + ("..." if p.nargs == -1 else "") for p in command.params if p.param_type_name == "argument"]
    return " ".join([f"ccrewrite {name}", *arguments, "[OPTIONS]"])


def table(command: Any) -> str:
    rows = [row(parameter) for parameter in command.params if not parameter.hidden]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""


def row(parameter: Any) -> str:
    """A line of the table: names, what it is for, whether it must be given, what it is without."""
    argument = parameter.param_type_name == "argument"
    names = [parameter.name.upper()] if argument else [*parameter.opts, *parameter.secondary_opts]
    notes = [text for text in (parameter.help,) if text]
    if parameter.required and not argument:
        notes.append("required")
    if parameter.default not in (None, "", False, ()) and not parameter.required:
        notes.append(f"default: `{'--' + parameter.name if parameter.default is True else parameter.default}`")
    return f"| {', '.join(f'`{name}`' for name in names)} | {'; '.join(notes).replace('|', chr(92) + '|')} |"
