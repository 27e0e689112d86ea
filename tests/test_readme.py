"""The README's Python blocks run, in order, as one session."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_blocks_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 3
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    printed = capsys.readouterr().out
    assert "3 rewritten" in printed
    assert "outputs are equal" in printed


def test_two_commands():
    text = README.read_text()
    assert "make demo" in text
    assert "make test" in text
