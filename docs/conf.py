"""Sphinx: the documentation site, with an API page for each room made from its `__all__`."""

import importlib
import inspect
import pkgutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import jaxprune  # noqa: E402

project = "jaxprune"
author = "The jaxprune authors"
copyright = "2026, the jaxprune authors"  # noqa: A001
release = version = jaxprune.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
nb_execution_mode = "auto"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Links into other documentations need a network; without one the site builds without them.
intersphinx_mapping = {}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "jaxprune"
# Formulas are drawn by the browser's own MathML: no script is fetched from elsewhere.
html_math_renderer = "mathjax"


def write_api_pages() -> None:
    """Writes `api/index.md` and a page for each room, from the rooms' docstrings and `__all__`."""
    folder = HERE / "api"
    folder.mkdir(exist_ok=True)
    rooms = [info.name for info in pkgutil.iter_modules(jaxprune.__path__) if not info.name.startswith("_")]
    index = ["# API reference", "", "Each public name stands in one room.", "", ":::{toctree}", ":maxdepth: 1", ""]
    for room in ["jaxprune", *(f"jaxprune.{name}" for name in rooms)]:
        module = importlib.import_module(room)
        names = getattr(module, "__all__", None)
        if not names:
            continue
        index.append(room)
        (folder / f"{room}.md").write_text(_page(room, module, names))
    (folder / "index.md").write_text("\n".join([*index, ":::", ""]))


def _page(room: str, module: object, names: list[str]) -> str:
    about = inspect.getdoc(module) or ""
    lines = [f"# {room}", "", f":::{{py:module}} {room}", ":::", "", about, "", "| | |", "|---|---|"]
    members = [(name, getattr(module, name)) for name in names]
    for name, member in members:
        if not inspect.ismodule(member):
            first = (inspect.getdoc(member) or "").partition("\n")[0].replace("|", "\\|")
            lines.append(f"| [`{name}`](#{room}.{name}) | {first} |")
    for name, member in members:
        if inspect.ismodule(member):
            continue
        kind = "autoclass" if inspect.isclass(member) else "autofunction" if callable(member) else "autodata"
        options = "\n:members:" if kind == "autoclass" else ""
        lines += ["", f"## {name}", "", "```{eval-rst}", f".. {kind}:: {room}.{name}"]
        lines += ["   :members:"] if options else []
        lines += ["```"]
    return "\n".join([*lines, ""])


write_api_pages()
