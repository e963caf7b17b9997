"""Prepared data on disk: written once through tensorflow-datasets, read back whole, checked, rebuilt if damaged."""

import contextlib
import io
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .builders import Arrays, Split, Splits, fingerprint
from .problems import ProblemError, brief


class Source(NamedTuple):
    """Where data come from.

    `make` makes the builder, which writes into the folder `prepared`; `check` raises a ProblemError if preparing cannot
    work now; `title` names the source to people.
    """

    make: Callable[[], Arrays]
    prepared: Path
    title: str
    check: Callable[[], None] = lambda: None


def splits(source: Source) -> tuple[Splits, str]:
    """The splits of a source, from what is prepared; where nothing or something damaged is there, it is prepared first.

    Args:
        source: The source.

    Returns:
        The splits, and the SHA-256 of their content.

    Raises:
        ProblemError: If the data cannot be fetched, written or read.
    """
    if source.prepared.exists():
        try:
            return _read(source)
        except Exception as error:  # a damaged file makes tfds, protobuf, json or array_record raise what they like
            damage = f"The prepared data in {source.prepared} are damaged ({brief(error)})"
        try:
            source.check()
        except ProblemError as error:
            raise ProblemError(f"{damage} and cannot be prepared again now: {error}") from error
        print(f"{damage}: preparing them again.", file=sys.stderr)
        shutil.rmtree(source.prepared)
    _prepare(source)
    return _read(source)


def _prepare(source: Source) -> None:
    source.check()
    try:
        source.prepared.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        where = source.prepared.parent
        raise ProblemError(f"{where} cannot be made ({error.strerror}): choose another folder with --cache.") from error
    print(f"Preparing {source.title} in {source.prepared} (once).", file=sys.stderr)
    try:
        with _quiet():
            source.make().download_and_prepare()
    except ProblemError:
        raise
    except Exception as error:  # tfds raises its own, those of requests and of the operating system
        if source.prepared.exists():  # another process was quicker
            return
        advice = "check the network and the free space, or choose another folder with --cache"
        raise ProblemError(f"Preparing {source.title} failed ({brief(error)}): {advice}.") from error


def _read(source: Source) -> tuple[Splits, str]:
    with _quiet():
        builder = source.make()
        found = {name: _split(builder, name) for name in ("train", "test")}
    expected = json.loads((source.prepared / "metadata.json").read_text())["sha256"]
    if fingerprint(found) != expected:
        raise ValueError("the content does not have the fingerprint that was written with it")
    return found, expected


def _split(builder: Arrays, name: str) -> Split:
    opened: Any = builder  # tfds decorates the next method such that types are lost
    records = opened.as_data_source(name)
    rows = records.__getitems__(range(len(records)))  # all at once: several times faster than one by one
    images = np.stack([row["image"] for row in rows])
    return Split(images, np.array([row["label"] for row in rows], np.int32))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what tfds prints and logs about its own workings to itself; its progress bars show on a terminal only."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        bars = sys.stderr if sys.stderr.isatty() else io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(bars):
            yield
    finally:
        log.setLevel(level)
