"""One meaning of `progress` everywhere: where a bar is shown, and what happens without tqdm."""

import importlib
import os
import pty
import sys

import pytest

from jaxprune import _progress


class Terminal:
    """A stream that says it is a terminal."""

    def __init__(self, stream):
        self.write, self.flush = stream.write, stream.flush

    def isatty(self):
        return True


def test_none_shows_a_bar_on_a_terminal_only(capsys, monkeypatch):
    assert list(_progress.bar([1, 2], what="rounds")) == [1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
    assert list(_progress.bar([1, 2], what="rounds")) == [1, 2]
    assert "2/2" in capsys.readouterr().err
    assert list(_progress.bar([1, 2], False, what="rounds")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_a_bar_that_the_caller_moves(capsys):
    with _progress.bar(progress=True, what="steps", total=5) as steps:
        _ = steps.update(3)
    assert "3/5" in capsys.readouterr().err
    with _progress.bar(progress=False, what="steps", total=5) as steps:
        steps.update(3)
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:os.fork")  # the child runs Python at once
def test_a_terminal_without_a_width_shows_the_bar(tmp_path):
    code = "from jaxprune import _progress; [1 for _ in _progress.bar([1, 2], what='rounds')]"
    shown = bytearray()

    def read(file):
        shown.extend(data := os.read(file, 1024))
        return data

    _ = pty.spawn([sys.executable, "-c", code], read)  # a new terminal has the size 0 x 0
    assert b"rounds: 100%" in shown


def test_a_notebook_is_watched(monkeypatch):
    shell = type("Shell", (), {"config": {"IPKernelApp": {}}})()
    monkeypatch.setitem(sys.modules, "IPython", type("IPython", (), {"get_ipython": staticmethod(lambda: shell)}))
    assert _progress._is_watched()


def test_without_tqdm_only_true_is_an_error(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setattr(_progress, "_is_watched", lambda: True)
    assert list(_progress.bar([1, 2], what="rounds")) == [1, 2]
    with pytest.raises(ImportError, match="needs tqdm: pip install tqdm"):
        _ = _progress.bar([1, 2], True, what="rounds")
