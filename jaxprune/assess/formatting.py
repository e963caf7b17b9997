"""Numbers and tables as text, the same on every machine."""

import math
from collections.abc import Sequence
from typing import Any

MISSING = "-"


def percent(value: float) -> str:
    """A fraction as a percentage with two decimals.

    Example:
      >>> percent(0.98765)
      '98.77 %'
    """
    return f"{100 * value:.2f} %"


def quantity(value: float) -> str:
    """A count in three significant digits, with a unit prefix.

    Example:
      >>> quantity(999), quantity(999_999), quantity(20_000_000_000)
      ('999', '1.00 M', '20.0 G')
    """
    rounded = float(f"{value:.3g}")  # 999,999 is 1.00 M, not 1000 k
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(rounded) >= 10**power:
            scaled = rounded / 10**power
            return f"{scaled:.{2 - int(math.log10(abs(scaled)))}f} {prefix}"
    return f"{value:.0f}"


def memory(n: int) -> str:
    """A number of bytes.

    Example:
      >>> memory(24), memory(123456)
      ('24 B', '123 kB')
    """
    text = quantity(n)
    return f"{text} B" if text[-1].isdigit() else f"{text}B"


def plain(value: Any) -> str:
    """Anything else: integers with separators, other numbers in four significant digits.

    Example:
      >>> plain(12345), plain(0.123456), plain(None), plain(float('nan')), plain('SET')
      ('12,345', '0.1235', '-', 'nan', 'SET')
    """
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns: the first to the left, the others to the right.

    Example:
      >>> print(table(['name', 'kept'], [['a', '10'], ['bcdef', '5']]))
      name   kept
      -----  ----
      a        10
      bcdef     5
    """
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
