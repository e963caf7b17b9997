"""`table`: the one table of text that everything prints."""

from collections.abc import Sequence


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True, width: int | None = None
) -> str:
    """Returns a table with aligned columns: words to the left, numbers to the right.

    Args:
      header: the names of the columns.
      rows: the cells of each row.
      numbers: True (default): the columns after the first contain numbers, and a line separates the header from them.
        False: all columns contain words.
      width: the largest number of characters of a line; columns that do not fit follow in tables below, each with the
        first column. None (default) for lines of any length.

    Returns:
      Lines of text.

    Example:
      >>> print(table(['name', 'kept'], [['a', '10'], ['bcdef', '5']]))
      name   kept
      -----  ----
      a        10
      bcdef     5
      >>> print(table(['leaf', 'shape'], [['kernel', '2x3']], numbers=False))
      leaf    shape
      kernel  2x3
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width and len(widths) > 2:
        fits = [k for k in range(2, len(widths)) if sum(widths[: k + 1]) + 2 * k <= width]
        cut = max(fits, default=1) + 1
        parts = [[row[:cut] for row in (header, *rows)], [[row[0], *row[cut:]] for row in (header, *rows)]]
        shown = [table(part[0], part[1:], numbers=numbers, width=width) for part in parts if len(part[0]) > 1]
        return "\n\n".join(shown)
    lines = [header, *([["-" * n for n in widths]] if numbers else []), *rows]
    adjust = [str.ljust, *[str.rjust if numbers else str.ljust] * (len(widths) - 1)]
    padded = ([pad(cell, n) for pad, cell, n in zip(adjust, line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)
