"""The command line: a thin shell, which imports torch only once a command runs."""

from __future__ import annotations


def main() -> None:
    """Entry point of the ``ccrewrite`` command."""
    from ccrewrite.cli.app import app

    app()
