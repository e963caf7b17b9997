"""Sphinx: the documentation site, with an API page for each room made from its `__all__`."""

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx import addnodes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import jaxprune  # noqa: E402

project = "jaxprune"
author = "The jaxprune authors"
copyright = "2026, the jaxprune authors"  # noqa: A001
release = version = jaxprune.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "auto"
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "jaxprune"
html_static_path = ["assets"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"


def _rooms() -> dict[str, ModuleType]:
    """The public packages of jaxprune with an `__all__`, by name."""
    names = [info.name for info in pkgutil.iter_modules(jaxprune.__path__) if not info.name.startswith("_")]
    modules = {f"jaxprune.{name}": importlib.import_module(f"jaxprune.{name}") for name in names}
    return {name: module for name, module in modules.items() if getattr(module, "__all__", None)}


def _public() -> dict[str, str]:
    """Each way to write a public name, such as `masks.select`, and the name that its documentation has."""
    full = {f"{room}.{name}" for room, module in _rooms().items() for name in module.__all__}
    own = {f"jaxprune.{name}" for name in _own()}
    shorter = {name.removeprefix("jaxprune."): name for name in full | own}
    front = {f"jaxprune.{name}": _place(member) for name, member in vars(jaxprune).items() if _place(member) in full}
    return {**shorter, **{name: name for name in full | own}, **front}


def _place(member: Any) -> str:
    """The documented name of what the front door re-exports, or the empty string."""
    for room, module in _rooms().items():
        for name in module.__all__:
            if getattr(module, name) is member:
                return f"{room}.{name}"
    return ""


def _own() -> list[str]:
    """What the front door has and no room has."""
    shown = {name: member for name, member in vars(jaxprune).items() if not name.startswith("_")}
    return [name for name, member in shown.items() if not inspect.ismodule(member) and not _place(member)]


def write_api_pages() -> None:
    """Writes `api/index.md` and a page for each room, from the rooms' docstrings and `__all__`."""
    folder = HERE / "api"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    index = ["# API reference", "", "Each public name stands on the page of one room.", ""]
    index += ["| room | what is in it |", "|---|---|"]
    pages = {"jaxprune": (jaxprune, _own()), **{room: (module, module.__all__) for room, module in _rooms().items()}}
    for room, (module, names) in pages.items():
        first = (inspect.getdoc(module) or "").partition("\n")[0]
        index.append(f"| [{room}]({room}.md) | {first.partition(': ')[2] or first} |")
        (folder / f"{room}.md").write_text(_page(room, module, list(names)))
    index += ["", ":::{toctree}", ":hidden:", "", *pages, ":::", ""]
    (folder / "index.md").write_text("\n".join(index))


def _page(room: str, module: ModuleType, names: list[str]) -> str:
    about = inspect.getdoc(module) or ""
    lines = [f"# {room}", "", f":::{{py:module}} {room}", ":::", "", about, "", "| name | what it is |", "|---|---|"]
    members = [(name, getattr(module, name)) for name in names]
    members = [(name, member) for name, member in members if not inspect.ismodule(member)]
    returned = _returned(room, members)
    lines += [f"| {{py:obj}}`{name} <{room}.{name}>` | {_first(member)} |" for name, member in members]
    if module is jaxprune:
        places = {name: _place(member) for name, member in vars(jaxprune).items() if _place(member)}
        moved = {name: place for name, place in places.items() if not inspect.ismodule(getattr(jaxprune, name))}
        lines += [f"| {{py:obj}}`{name} <{place}>` | the same as `{place}` |" for name, place in moved.items()]
    for name, member in members:
        kind = "autoclass" if inspect.isclass(member) else "autofunction" if callable(member) else "autodata"
        if kind == "autofunction" and not inspect.isroutine(member):
            kind = "autodata"
        lines += ["", f"## {name}", "", "```{eval-rst}", f".. {kind}:: {room}.{name}"]
        lines += ["   :members:"] if kind == "autoclass" else ["   :no-value:"] if kind == "autodata" else []
        lines += ["```"]
    for member in returned:
        lines += ["", f"## {member.__name__}", "", "```{eval-rst}"]
        lines += [f".. autoclass:: {member.__module__}.{member.__name__}", "   :members:", "```"]
    return "\n".join([*lines, ""])


def _returned(room: str, members: list[tuple[str, Any]]) -> list[type]:
    """The classes that a room's functions return and that `__all__` leaves out, because nobody makes them by hand."""
    public = {member for _, member in members if inspect.isclass(member)}
    functions = [member for _, member in members if inspect.isfunction(member)]
    given = [inspect.signature(function).return_annotation for function in functions]
    found = {each for answer in given for each in (answer, *get_args(answer)) if inspect.isclass(each)}
    own = [each for each in found - public if each.__module__.startswith(f"{room}.")]
    return sorted(own, key=lambda each: each.__name__)


def _first(member: Any) -> str:
    if not (inspect.isclass(member) or inspect.isroutine(member)):
        return "a type for annotations"
    return (inspect.getdoc(member) or "").partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turns a docstring's Markdown into reStructuredText, before its sections are read.

    Formulas in dollars, names in backticks, tables, and blocks that are indented by four: the docstrings are written to
    be read as they stand in an editor.
    """
    made: list[str] = []
    in_sections = False
    lines[:] = _whole_spans(lines)
    for number, line in enumerate(lines):
        text, indent = line.strip(), len(line) - len(line.lstrip())
        before = lines[number - 1].strip() if number else ""
        in_sections |= bool(re.fullmatch(r"(Args|Returns|Raises|Attributes|Examples?|Yields):", text)) and indent == 0
        if text.startswith("|") and text.endswith("|"):
            made += _table_row(text, first=not before.startswith("|"), indent=" " * indent)
        elif indent >= 4 and not in_sections and not text.startswith(">>>"):
            made += [".. code-block:: text", ""] if not before else []
            made.append(line)
        elif text.startswith((">>>", "...")) or (in_sections and _in_doctest(lines, number)):
            made.append(line)
        else:
            made.append(_inline(line))
    lines[:] = made


def _whole_spans(lines: list[str]) -> list[str]:
    """The lines, where a name in backticks or a formula that is broken over two lines stands in the first of them."""
    whole: list[str] = []
    for line in lines:
        if whole and line.strip() and any(whole[-1].count(mark) % 2 for mark in "`$") and ">>>" not in whole[-1]:
            whole[-1] += " " + line.strip()
        else:
            whole.append(line)
    return whole


def _in_doctest(lines: list[str], number: int) -> bool:
    """Whether a line is what a doctest prints: no blank line between it and the prompt above."""
    while number and lines[number].strip():
        number -= 1
        if lines[number].strip().startswith(">>>"):
            return True
    return False


def _table_row(text: str, *, first: bool, indent: str) -> list[str]:
    if re.fullmatch(r"[|:\- ]+", text):
        return []
    cells = [_inline(cell.strip()) for cell in re.split(r"(?<!\\)\|", text)[1:-1]]
    head = [f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""] if first else []
    bullets = ["* - "] + ["  - "] * (len(cells) - 1)
    return [*head, *(f"{indent}   {bullet}{cell}" for bullet, cell in zip(bullets, cells, strict=True))]


_PARTS = re.compile(r"(``[^`]+``|(?::[\w:]+:)?`[^`]+`_?|\$[^$]+\$)")
_ARGUMENT = re.compile(r"^\s*\*{1,2}\w+(?=:)")


def _inline(line: str) -> str:
    head = match[0] if (match := _ARGUMENT.match(line)) else ""
    parts = _PARTS.split(line[len(head) :])
    made = [_part(part) if i % 2 else re.sub(r"([|*])", r"\\\1", part) for i, part in enumerate(parts)]
    for i in range(1, len(made), 2):  # names must end before a letter follows, as in a plural
        made[i] += "\\ " if made[i + 1][:1].isalnum() else ""
    return head + "".join(made)


def _part(part: str) -> str:
    if part.startswith("$"):
        return f":math:`{part[1:-1]}`"
    if part.startswith(("``", ":")) or part.endswith("_"):
        return part
    text = part[1:-1]
    place = _PUBLIC.get(text)
    return f":py:obj:`{text} <{place}>`" if place else f"``{text}``"


_PUBLIC = _public()


def link_names(app: Any, doctree: Any) -> None:
    """Makes links of the API's names in backticks; on the page of all methods they may lack their room."""
    names = {**_short_names(), **_PUBLIC} if app.env.docname == "start/methods" else _PUBLIC
    for literal in list(doctree.findall(nodes.literal)):
        inside = literal.parent
        if literal.astext() in names and not isinstance(inside, nodes.reference | nodes.title | addnodes.pending_xref):
            options = {"refdomain": "py", "reftype": "obj", "reftarget": names[literal.astext()], "refexplicit": True}
            link = addnodes.pending_xref("", literal.deepcopy(), refdoc=app.env.docname, refwarn=False, **options)
            literal.replace_self(link)


def _short_names() -> dict[str, str]:
    """The public names without their room, where only one room has the name."""
    ends = [full.rpartition(".")[2] for full in set(_PUBLIC.values())]
    return {end: full for end, full in zip(ends, set(_PUBLIC.values()), strict=True) if ends.count(end) == 1}


def skip_fields(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out the fields of tuples and dataclasses: the docstring of the class has described them."""
    return True if what == "class" and not inspect.isroutine(obj) and not isinstance(obj, property) else None


def _mathml(translator: Any, node: Any, *, block: bool) -> None:
    """Formulas as MathML, which browsers draw themselves: no script is fetched from elsewhere."""
    mathml = latex2mathml.tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="math">{mathml}</div>' if block else mathml)
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Registers the conversion of docstrings, the links of names, and the drawing of formulas."""
    _ = app.connect("autodoc-process-docstring", as_rst, priority=400)
    _ = app.connect("autodoc-skip-member", skip_fields)
    _ = app.connect("doctree-read", link_names)
    inline = lambda translator, node: _mathml(translator, node, block=False)
    block = lambda translator, node: _mathml(translator, node, block=True)
    app.add_html_math_renderer("mathml", (inline, None), (block, None))


write_api_pages()
