"""A fit as plain JSON: what was fitted, to what, how and with which result, so that it is loaded without fitting again."""

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from pyscaling.cores import available_cores
from pyscaling.fitting.evidence import Evidence
from pyscaling.fitting.fit import Fit
from pyscaling.fitting.groups import GroupedLaw
from pyscaling.fitting.problem import Problem
from pyscaling.laws import Law, Parameter
from pyscaling.tables import Runs

_FORMAT, _VERSION = "pyscaling fit", 1


def save(fit: Fit, path: str | Path) -> None:
    """See Fit.save. Written beside its place and renamed, so that a file is whole or not there."""
    problem = fit.problem
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "law": _law_to_dict(fit.law),
        "runs": {
            "source": fit.runs.source,
            "renamed": fit.runs.renamed,
            "derived": sorted(fit.runs.derived),
            "declared": sorted(fit.runs.declared),
            "notes": list(fit.runs.notes),
            "rows": fit.runs.rows.tolist(),
            "columns": {
                name: {"dtype": column.dtype.str if column.dtype != object else "object", "values": column.tolist()}
                for name, column in fit.runs.to_dict().items()
            },
        },
        "rows": None if fit._rows is None else fit._rows.tolist(),
        "options": {
            "objective": problem.objective,
            "delta": problem.delta,
            "residual": problem.residual,
            "overestimate_penalty": problem.penalty,
            "known_noise": problem.known_noise,
            "weights": None if np.all(problem.weights == 1) else problem.weights.tolist(),
            "lower": problem.lower.tolist(),
            "upper": problem.upper.tolist(),
            "units": list(problem.units),
        },
        "theta": fit.theta.tolist(),
        "minima": fit._minima.tolist(),
        "objective_value": fit.objective_value / problem.objective_scale(),
        "params": fit.params,
        "evidence": asdict(fit.evidence),
    }
    path = Path(path)
    aside = path.with_name(f"{path.name}.part")
    aside.write_text(json.dumps(_plain(document), indent=1, allow_nan=False) + "\n")
    aside.replace(path)


def load(path: str | Path) -> Fit:
    """The fit that Fit.save wrote: it predicts, resamples and prints as the one that was saved, to the bit.

    Raises ValueError for a file that is none, or of a later version.
    """
    try:
        document = json.loads(Path(path).read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no fit: {error}. Write one with fit.save({str(path)!r}).") from None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f"{path} is JSON but no fit that fit.save wrote; a table of runs is read by ps.read_runs.")
    if document["version"] > _VERSION:
        raise ValueError(
            f"{path} is of version {document['version']}, this pyscaling reads up to {_VERSION}; take a newer pyscaling."
        )
    table, options = document["runs"], document["options"]
    columns = {name: _column(column) for name, column in table["columns"].items()}
    runs = Runs(columns, source=table["source"], renamed=table["renamed"])
    runs.derived, runs.declared = frozenset(table["derived"]), frozenset(table["declared"])
    runs.notes, runs.rows = tuple(table["notes"]), np.array(table["rows"], dtype=np.intp)
    law = _law_from_dict(document["law"])
    response = np.array(runs[law.response], dtype=np.float64)
    problem = Problem(
        law=law,
        variables={name: np.ascontiguousarray(runs[name], dtype=np.float64) for name in law.variables},
        y=np.log(response) if options["residual"] == "log" else response,
        weights=np.ones(len(runs)) if options["weights"] is None else np.array(options["weights"], dtype=np.float64),
        lower=_numbers(options["lower"]),
        upper=_numbers(options["upper"]),
        objective=options["objective"],
        delta=options["delta"],
        residual=options["residual"],
        threads=available_cores(),
        units=tuple(options["units"]),
        penalty=options["overestimate_penalty"],
        known_noise=options["known_noise"],
    )
    return Fit(
        runs,
        problem,
        _numbers(document["theta"]),
        float(document["objective_value"]),
        _evidence(document["evidence"]),
        np.array([_numbers(row) for row in document["minima"]]),
        None if document["rows"] is None else np.array(document["rows"], dtype=np.intp),
    )


def _law_to_dict(law: Law) -> dict[str, Any]:
    if isinstance(law, GroupedLaw):
        return {"base": _law_to_dict(law.base), "labels": list(law.labels), "shared": list(law.shared)}
    return {
        "expression": law.expression,
        "variables": list(law.variables),
        "name": law.name,
        "source": law.source,
        "response": law.response,
        "parameters": {name: asdict(domain) for name, domain in law.parameters.items()},
    }


def _law_from_dict(law: dict[str, Any]) -> Law:
    if "base" in law:
        return GroupedLaw(_law_from_dict(law["base"]), law["labels"], law["shared"])
    parameters = {name: Parameter(**domain) for name, domain in law["parameters"].items()}
    return Law(
        law["expression"],
        variables=law["variables"],
        name=law["name"],
        source=law["source"],
        response=law["response"],
        parameters=parameters,
    )


def _column(column: dict[str, Any]) -> np.ndarray:
    values = column["values"]
    if column["dtype"] == "object":
        return np.array(values, dtype=object)
    dtype = np.dtype(column["dtype"])
    return np.array([float(value) for value in values] if dtype.kind == "f" else values, dtype=dtype)


def _evidence(given: dict[str, Any]) -> Evidence:
    """Lists are tuples again, keys rows, and numbers that are not finite numbers."""
    found = {}
    for field in fields(Evidence):
        value = given[field.name]
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, dict):
            value = {int(row): float(size) for row, size in value.items()}
        elif isinstance(value, str):
            value = float(value)
        found[field.name] = value
    return Evidence(**found)


def _numbers(values: list[Any]) -> np.ndarray:
    return np.array([float(value) for value in values])


def _plain(value: Any) -> Any:
    """What JSON can say: a number that is not finite as the text "inf", "-inf" or "nan"."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
