"""Groups as a table and as a graph."""

from typing import Any

Groups = Any  # groups.Groups, which imports this file
_MEMBERS = 6


def table(groups: Groups) -> str:
    """A table that a person can read: the groups with what is in them, then what is frozen and why.

    Args:
      groups: the groups.

    Returns:
      Several lines of text.
    """
    rows = [("group", "units", "exact", "members: positions of a unit")]
    for group in groups:
        layers = f" in each of {group.layers} layers" if group.layer is not None else ""
        shown = [f"{m.name}[{m.axis}]:{m.positions}" for m in group.members[:_MEMBERS]]
        more = len(group.members) - _MEMBERS
        shown += [f"and {more} more"] if more > 0 else []
        exact = "yes" if group.exact else f"no: {group.inexact}"
        rows.append((group.name, f"{group.count // group.layers}{layers}", exact, ", ".join(shown)))
    lines = _aligned(rows) if len(groups) else ["no groups: nothing can be removed"]
    frozen = _frozen(groups)
    if frozen:
        lines += ["", *_aligned([("frozen", "positions", "reason"), *frozen])]
    return "\n".join(lines)


def _frozen(groups: Groups) -> list[tuple[str, ...]]:
    # The axes of a leaf that are frozen for one reason share a line.
    lines: dict[tuple[str, str], list[Any]] = {}
    for found in groups.frozen:
        lines.setdefault((found.name, found.reason), []).append(found)
    return [
        (f"{name}[{', '.join(str(f.axis) for f in axes)}]", ", ".join(f"{f.positions} of {f.of}" for f in axes), reason)
        for (name, reason), axes in lines.items()
    ]


def dot(groups: Groups) -> str:
    """The groups (boxes) and the leaves they hold (ellipses) in Graphviz' language."""
    lines = ["graph groups {", "  rankdir=LR;"]
    for k, group in enumerate(groups):
        colour = "black" if group.exact else "orange"
        lines.append(f'  g{k} [shape=box, color={colour}, label="{_quoted(group.name)}\\n{group.count} units"];')
    for k, leaf in enumerate(groups.analysis.leaves):
        if leaf.shape is not None:
            lines.append(f'  p{k} [label="{_quoted(leaf.name)}\\n{"x".join(map(str, leaf.shape))}"];')
    for k, group in enumerate(groups):
        lines += [f'  g{k} -- p{m.leaf} [label="{m.axis}"];' for m in group.members]
    return "\n".join([*lines, "}"])


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
