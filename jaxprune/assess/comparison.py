"""Several models side by side in one table, as text, HTML and JSON: `comparison_table` of `ModelResult`s."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxprune import _tree
from jaxprune.assess import formatting
from jaxprune.assess.complexity import Complexity
from jaxprune.assess.metrics import Metrics


@dataclass(frozen=True)
class ModelResult:
    """One model of a comparison.

    Attributes:
      name: the name of the model in the table; unique.
      metrics: the quality of the model, from `evaluate`; default None.
      complexity: the cost of the model, from `complexity`; default None.
      extra: further values by the name of their column: numbers, strings, None.
    """

    name: str
    metrics: Metrics | None = None
    complexity: Complexity | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparisonTable:
    """A comparison: columns and rows of plain values, and sentences to read with them. Notebooks show it as a table.

    Attributes:
      columns: the keys of the values, in order.
      rows: the name of each model and its values by column; a value may be missing.
      notes: sentences on the data, the seeds and operations that were not counted.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, Mapping[str, Any]], ...]
    notes: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Returns the table with its notes below."""
        return "\n".join([formatting.table(*self._cells()), *self.notes])

    def _repr_html_(self) -> str:
        return formatting.html_table(*self._cells(), notes=self.notes)

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        header = ["model", *(_LABELS.get(key, key) for key in self.columns)]
        return header, [[name, *(_cell(key, values.get(key)) for key in self.columns)] for name, values in self.rows]

    def to_json(self) -> str:
        """Returns every value in full precision as JSON; missing, infinite and NaN values are null."""
        models = [
            {"name": name, **{key: _number(values.get(key)) for key in self.columns}} for name, values in self.rows
        ]
        content = {"columns": list(self.columns), "models": models, "notes": list(self.notes)}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        return self.to_text()


def comparison_table(results: Sequence[ModelResult], *, notes: Sequence[str] = ()) -> ComparisonTable:
    """Puts the results of several models side by side.

    Args:
      results: the models, in the order of the rows.
      notes: sentences to print below the table.

    Returns:
      A table with the columns for which any result has a value: sparsity, parameters, effective FLOPs, accuracy, NLL,
      Brier score, ECE, and then the columns of `extra` in the order of their first appearance. `print(table)` and
      `table.to_json()` show it.

    Raises:
      ValueError: there are no results, two results share a name, or an extra column has the name of a standard column.

    Example:
      >>> results = [ModelResult('dense', extra={'seconds': 1.5}), ModelResult('pruned', extra={'seconds': 2})]
      >>> print(comparison_table(results))
      model   seconds
      ------  -------
      dense       1.5
      pruned        2
    """
    results = list(results)
    for result in results:
        if not isinstance(result, ModelResult) or not isinstance(result.name, str):
            raise TypeError(
                "results must be a list of assess.ModelResult(name, metrics, complexity); got "
                f"{_tree.shown(result.name if isinstance(result, ModelResult) else result)}"
            )
    names = [result.name for result in results]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise ValueError(
            f"each row needs a name of its own; twice: {', '.join(twice)}"
            if twice
            else "no results: pass a list of assess.ModelResult"
        )
    extra = dict.fromkeys(key for result in results for key in result.extra)
    taken = [key for key in extra if key in _LABELS]
    if taken:
        raise ValueError(f"extra columns may not be called {', '.join(taken)}: metrics and complexity have these")
    rows = tuple((result.name, _values(result)) for result in results)
    columns = [key for key in (*_LABELS, *extra) if any(key in values for _, values in rows)]
    return ComparisonTable(tuple(columns), rows, tuple(notes))


_LABELS = {
    "sparsity": "sparsity",
    "kept": "kept",
    "effective_flops": "FLOPs",
    "accuracy": "accuracy",
    "nll": "NLL",
    "brier": "Brier",
    "ece": "ECE",
}
_FORMATS: dict[str, Callable[[Any], str]] = {
    "sparsity": formatting.percent,
    "kept": formatting.quantity,
    "effective_flops": formatting.quantity,
    "accuracy": formatting.percent,
    **dict.fromkeys(("nll", "brier", "ece"), lambda value: f"{value:.4f}"),
}


def _values(result: ModelResult) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if result.complexity is not None:
        values.update({key: getattr(result.complexity, key) for key in ("sparsity", "kept", "effective_flops")})
    if result.metrics is not None:
        values.update(result.metrics.as_dict())
    return {**values, **{key: _plain(value) for key, value in result.extra.items()}}


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _cell(key: str, value: Any) -> str:
    return formatting.MISSING if value is None else _FORMATS.get(key, formatting.plain)(value)


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
