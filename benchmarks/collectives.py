"""The bytes a compiled program moves between devices, read from its text.

Counted is the size of what each collective gives one device (of a reduce-scatter, what goes into it), once for every
time it runs: the body of a loop whose number of turns is known (a scan) that many times, of any other loop as often as
the caller says, who may tell an outer loop from those inside it.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (?P<type>\(.*?\)|\S+) (?P<op>[\w-]+)\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:to_apply|calls|true_computation|false_computation|branch_computations)=(\{[^}]*\}|%?[\w.-]+)")
_WHILE = re.compile(r"condition=%?([\w.-]+), body=%?([\w.-]+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Moved(NamedTuple):
    """One collective.

    Attributes:
      kind: such as `all-reduce`.
      largest: bytes of the largest array in it.
      size: bytes each time it runs.
      times: how often it runs.
    """

    kind: str
    largest: int
    size: int
    times: int


@dataclass
class _Computation:
    collectives: list[tuple[str, int, int]]
    called: list[tuple[str, int | None]]  # its name, and how often: None is as often as a loop of unknown length turns


def collectives(compiled: Any, *, turns: tuple[int, ...] = (1,)) -> list[Moved]:
    """Every collective of a compiled program.

    Args:
      compiled: what `jax.jit(...).lower(...).compile()` returns.
      turns: how often a loop turns of which the program does not tell: an outermost one, one inside such a loop, and so
        on; the last number holds for all further inside.

    Returns:
      One entry for each place in the program that runs.

    Raises:
      ValueError: the program has no text, or an asynchronous collective that this does not know.
    """
    text = compiled.as_text()
    if text is None:
        raise ValueError("the compiled program has no text to read")
    computations, entry = _parse(text)
    found: list[Moved] = []

    def visit(name: str, times: int, depth: int) -> None:
        computation = computations[name]
        found.extend(Moved(kind, largest, size, times) for kind, largest, size in computation.collectives)
        for called, count in computation.called:
            own = turns[min(depth, len(turns) - 1)] if count is None else count
            visit(called, times * own, depth + (count is None))

    visit(entry, 1, 0)
    return found


def total(moved: list[Moved]) -> int:
    """The bytes of all of them."""
    return sum(each.size * each.times for each in moved)


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    entry, current = "", _Computation([], [])
    for line in text.splitlines():
        header = re.match(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$", line)
        if header:
            current = computations[header[2]] = _Computation([], [])
            entry = header[2] if header[1] else entry
            continue
        instruction = _INSTRUCTION.match(line)
        if instruction:
            _read(line, instruction["type"], instruction["op"], current)
    return computations, entry


def _read(line: str, shape: str, op: str, into: _Computation) -> None:
    kind = op.removesuffix("-start")
    if kind in _KINDS:
        # The start of an asynchronous one has its operands in its type too: count what is largest of each twice.
        sizes = [_size(*array) for array in _ARRAY.findall(shape)]
        if op != kind and kind != "all-reduce":
            raise ValueError(f"an asynchronous collective, whose type is not understood: {line.strip()[:200]}")
        group = _group(line) if kind == "reduce-scatter" else 1
        into.collectives.append((kind, max(sizes, default=0) * group, sum(sizes) * group))
        return
    loop = _WHILE.search(line)
    if op == "while" and loop:
        turns = _TURNS.search(line)
        count = int(turns[1]) if turns else None
        into.called.extend([(loop[1], count), (loop[2], count)])
        return
    for called in _CALLED.findall(line):
        names = [name.strip().lstrip("%") for name in called.strip("{}").split(",")]
        # A reducer or a fusion has no collectives; a name that is none is dropped with them.
        into.called.extend((name, 1) for name in names if op in ("call", "conditional"))


def _group(line: str) -> int:
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    return int(iota[2]) if iota else 1


def _size(dtype: str, dims: str) -> int:
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])  # pyright: ignore[reportOptionalSubscript]
    return math.prod(int(n) for n in dims.split(",") if n) * bits // 8
