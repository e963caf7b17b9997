"""The README is true: its Python runs, and its commands exist."""

import re
import shlex
from pathlib import Path

import pytest

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(root: Path, *languages: str) -> list[tuple[int, str]]:
    """The README's blocks in any of these languages, each with the number of its first line."""
    text = (root / "README.md").read_text()
    return [
        (text.count("\n", 0, block.start(2)) + 1, block[2]) for block in _BLOCK.finditer(text) if block[1] in languages
    ]


def test_python_blocks_run_in_order(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # One namespace for all: a reader goes from top to bottom, and a block may use what an earlier one made.
    monkeypatch.chdir(tmp_path)
    blocks = _blocks(root, "python")
    assert blocks
    namespace: dict[str, object] = {"__name__": "readme"}
    for line, source in blocks:
        # Blank lines in front: a traceback then shows the README's own line numbers.
        exec(compile("\n" * (line - 1) + source, str(root / "README.md"), "exec"), namespace)


def test_make_commands_exist(root: Path):
    targets = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    lines = [line for _, block in _blocks(root, "sh", "bash", "shell") for line in block.splitlines()]
    commands = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    named = {word for command in commands if command[:1] == ["make"] for word in command[1:] if "=" not in word}
    assert {"demo", "test"} <= named
    assert named <= targets


def test_scripts_exist(root: Path):
    shell = "\n".join(block for _, block in _blocks(root, "sh", "bash", "shell"))
    named = set(re.findall(r"(?<=python )[\w/]+\.py", shell))
    assert {path for path in named if not (root / path).is_file()} == set()
