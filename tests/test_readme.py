"""The README and the documentation are true: their Python runs, their commands and links exist."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from jaxprune import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if not {"api", "_build"} & {*p.parts})]

# A block that begins with "```python needs=keras" runs where these packages, separated by commas, are installed.
_BLOCK = re.compile(r"^```(\{?[\w-]+\}?)(?: needs=([\w,]+))?[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")


def _blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """A page's blocks in any of these languages, each with the number of its first line."""
    text = page.read_text()
    return [
        (text.count("\n", 0, block.start(3)) + 1, block[3])
        for block in _BLOCK.finditer(text)
        if block[1] in languages and _installed(block[2])
    ]


def _installed(packages: str | None) -> bool:
    return all(importlib.util.find_spec(package) for package in (packages or "").split(",") if package)


def _python(page: Path) -> list[tuple[int, str]]:
    return _blocks(page, "python", "{code-cell}")


def _commands(page: Path) -> list[list[str]]:
    lines = [line for _, block in _blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


def _parameters() -> list:
    """The pages with Python; tutorials are slow, for the site runs them when it is built, and so are long pages."""
    long = ("recover", "quantise", "frameworks", "devices", "training_loops", "layers", "your_own", "logging")
    is_slow = lambda page: "tutorials" in page.parts or page.stem in long
    return [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=[pytest.mark.slow] * is_slow(page))
        for page in PAGES
        if _python(page)
    ]


@pytest.mark.parametrize("page", _parameters())
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # One namespace for a page: a reader goes from top to bottom, and a block may use what an earlier one made.
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for line, source in _python(page):
        # Blank lines in front: a traceback then shows the page's own line numbers.
        exec(compile("\n" * (line - 1) + source, str(page), "exec"), namespace)


def test_make_commands_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [command for page in PAGES for command in _commands(page)]
    named = {word for command in commands if command[:1] == ["make"] for word in command[1:] if "=" not in word}
    assert {"demo", "test"} <= named
    assert named <= targets


def test_scripts_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"(?<=python )[\w/]+\.py", text))
    assert {path for path in named if not (ROOT / path).is_file()} == set()


def test_command_lines_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    commands = [c[1:] for page in PAGES for c in _commands(page) if c[:1] == ["jaxprune"]]
    assert commands
    for command in commands:
        # An option that does not exist ends the process; a folder that does not exist is an error with code 2.
        assert cli.main(command) == 2


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_links_lead_to_files(page: Path):
    links = [link for link in _LINK.findall(page.read_text()) if "://" not in link]
    made = re.compile(r"(\.\./)*api/")  # pages that the site makes from docstrings
    assert {link for link in links if not made.match(link) and not (page.parent / link).exists()} == set()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
