"""Numbers and tables as text and HTML, the same on every machine."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

MISSING = "-"


def percent(value: float) -> str:
    """Returns a fraction as a percentage with two decimals.

    Example:
      >>> percent(0.98765)
      '98.77 %'
    """
    return f"{100 * value:.2f} %"


def quantity(value: float) -> str:
    """Returns a count in three significant digits, with a unit prefix.

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
    """Returns a number of bytes as text, in three significant digits with a unit.

    Example:
      >>> memory(24), memory(123456)
      ('24 B', '123 kB')
    """
    text = quantity(n)
    return f"{text} B" if text[-1].isdigit() else f"{text}B"


def p_value(value: float) -> str:
    """Returns a p-value in two digits; values below 0.0001 read "<0.0001".

    Example:
      >>> p_value(0.0456), p_value(0.0005), p_value(1e-9)
      ('0.046', '0.0005', '<0.0001')
    """
    return "<0.0001" if value < 1e-4 else f"{value:.2g}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """Returns names joined by commas; if there are many, the first names and the number of the others.

    Example:
      >>> listed(['a', 'b']), listed([str(k) for k in range(20)], 3)
      ('a, b', '0, 1, 2 and 17 more')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count(number: int, what: str) -> str:
    """Returns a number and the name of what it counts, in the plural unless the number is 1.

    Example:
      >>> count(1, 'sample'), count(1200, 'sample')
      ('1 sample', '1,200 samples')
    """
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def plain(value: Any) -> str:
    """Returns any other value as text: integers with separators, other numbers in four significant digits.

    Example:
      >>> plain(12345), plain(0.123456), plain(None), plain(float('nan')), plain('SET')
      ('12,345', '0.1235', '-', 'nan', 'SET')
    """
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Returns an HTML table with paragraphs below it, the first column to the left and the other columns to the right.

    Example:
      >>> html_table(['name', 'kept'], [['a', '<9']])[-75:]
      '</tr></thead><tbody><tr><th>a</th><td>&lt;9</td></tr></tbody></table></div>'
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in cells) for _, *cells in rows)
    body = "".join(f"<tr><th>{escape(row[0])}</th>{line}</tr>" for row, line in zip(rows, lines, strict=True))
    below = "".join(f"<p>{escape(note)}</p>" for note in notes)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div style="overflow-x: auto">{table}{below}</div>'
