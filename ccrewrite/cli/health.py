"""``ccrewrite doctor`` and ``ccrewrite env``."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from ccrewrite.cli.console import say
from ccrewrite.cli.parameters import Json


def doctor(as_json: Json = False) -> None:
    """Say what works on this machine, what doesn't, and how to mend it. Exits with 1 where something is broken."""
    from ccrewrite.cli.examined import examined

    findings = list(examined())
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            say(f"{finding.state:7}  {finding.part}: {finding.found}")
            if finding.state != "ok":
                say(f"         for: {finding.serves}\n         mend: {finding.mend}")
        states = [finding.state for finding in findings]
        say(f"{states.count('ok')} ok, {states.count('missing')} missing, {states.count('broken')} broken")
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def env(as_json: Json = False) -> None:
    """Print versions, processor and device, for a bug report. Names no user, machine or folder."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from ccrewrite.cli.examined import EXTRAS
    from ccrewrite.report.environment import environment

    found = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for package in ("numpy", *(name for packages, _ in EXTRAS.values() for name in packages), "triton"):
        try:
            found["versions"][package] = version(package)
        except PackageNotFoundError:
            found["versions"][package] = None
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    versions = found.pop("versions")
    for name, value in (found | versions).items():
        say(f"{name}: {'-' if value is None else value}")
