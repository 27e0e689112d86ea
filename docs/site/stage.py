"""Lays out the pages of the site in a folder: those of docs/, what their links lead to elsewhere in the repository, and the
command line's reference, made of its own help.

    python docs/site/stage.py build/pages
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from commands import reference

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ALWAYS = {ROOT / "CHANGELOG.md": "changelog.md", ROOT / "CONTRIBUTING.md": "contributing.md"}
"""Pages that lie outside docs/ -> their place in the site."""
LISTINGS = {".py": "python", ".mjs": "javascript", ".txt": "text", ".toml": "toml"}
"""Files that are shown as they are -> the language of their listing."""

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
STYLE = re.compile(r"<style>.*?</style>", re.DOTALL)


def main(pages: Path) -> int:
    """Write all pages into the new folder ``pages``; 1 where a link leads nowhere."""
    shutil.rmtree(pages, ignore_errors=True)
    queue = {file: place(file) for file in sorted(DOCS.rglob("*.md"))} | ALWAYS
    written: set[Path] = set()
    broken: list[str] = []
    while queue:
        file, where = queue.popitem()
        target = pages / where
        target.parent.mkdir(parents=True, exist_ok=True)
        written.add(file)
        if file.suffix == ".md":
            text, found = page(file, Path(where), broken)
            target.write_text(text, encoding="utf-8")
            queue |= {other: there for other, there in found.items() if other not in written}
        elif file.suffix in LISTINGS:
            target.write_text(listing(file), encoding="utf-8")
        else:
            shutil.copy(file, target)
    (pages / "reference" / "cli.md").write_text(reference(), encoding="utf-8")
    shutil.copytree(DOCS / "site" / "assets", pages / "assets")
    for message in broken:
        print(message, file=sys.stderr)
    return 1 if broken else 0


def place(file: Path) -> str:
    """Where a file of the repository lies in the site."""
    if file in ALWAYS:
        return ALWAYS[file]
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS).as_posix()
    if file.suffix == ".html":  # report.md becomes report.html
        return file.with_stem(f"{file.stem}-page").relative_to(ROOT).as_posix()
    path = file.relative_to(ROOT).as_posix()
    return f"source/{path}.md" if file.suffix in LISTINGS else re.sub(r"/README\.md$", "/index.md", path)


def page(file: Path, where: Path, broken: list[str]) -> tuple[str, dict[Path, str]]:
    """The text of a page with its links as they are in the site, and which files those lead to."""
    found: dict[Path, str] = {}

    def link(match: re.Match[str]) -> str:
        image, label, target, anchor = match.groups(default="")
        if not target or ":" in target:
            return match[0]
        other = (file.parent / target).resolve()
        other = other / "README.md" if other.is_dir() else other
        if other == DOCS / "reference" / "cli.md":
            there = "reference/cli.md"
        elif not other.is_file():
            broken.append(f"{file.relative_to(ROOT)}: {target} is not there")
            return match[0]
        elif image and other.suffix == ".svg":
            return drawing(other, label)
        else:
            there = found[other] = place(other)
        up = "../" * (len(where.parts) - 1)
        return f"{image}[{label}]({up}{there}{anchor})"

    text = file.read_text(encoding="utf-8")
    # Hidden blocks are for the tests alone. Links are not looked for in code.
    text, code = COMMENT.sub("", text), []
    text = FENCE.sub(lambda block: code.append(block[0]) or f"\0{len(code) - 1}\0", text)
    text = LINK.sub(link, text)
    return re.sub("\0(\\d+)\0", lambda number: code[int(number[1])], text), found


def drawing(file: Path, label: str) -> str:
    """An SVG in the page itself, where it takes the page's colours, light or dark."""
    svg = STYLE.sub("", file.read_text(encoding="utf-8")).strip()
    svg = re.sub(r"\n\s*\n", "\n", svg)
    return f'<figure markdown="0" class="drawing" role="img" aria-label="{label}">\n{svg}\n</figure>'


def listing(file: Path) -> str:
    path = file.relative_to(ROOT).as_posix()
    fence = f"```{LISTINGS[file.suffix]}\n{file.read_text(encoding='utf-8').rstrip()}\n```"
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n{fence}\n"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
