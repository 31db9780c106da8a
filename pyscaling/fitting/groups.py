"""One law for several groups of runs (data sets, architectures): some parameters shared, the others of each group's own."""

import ast
import re
from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from pyscaling.expression import parse_expression
from pyscaling.laws import Law
from pyscaling.tables import Runs


class GroupedLaw(Law):
    """A law whose parameter p is written p_<group> where groups have their own.

    base: the law of one group. labels: the groups, as strings. indicators: label -> the variable that is 1 for the
    group's runs and 0 for others. shared: parameters that all groups have in common.
    """

    def __init__(self, base: Law, labels: Collection[str], shared: Collection[str]) -> None:
        for name in shared:
            if name not in base.parameters:
                raise ValueError(
                    f"shared names {name!r}, not a parameter of {base.name}; those are {', '.join(base.names)}."
                )
        if len(set(shared)) == len(base.parameters):
            raise ValueError(
                f"shared names every parameter of {base.name}, so that the groups do not differ; leave at least one out, "
                "or fit without group."
            )
        self.base, self.labels, self.shared = base, tuple(labels), tuple(shared)
        slugs = {label: re.sub(r"\W", "_", label) for label in self.labels}
        if len(set(slugs.values())) < len(slugs):
            raise ValueError(f"the groups {', '.join(self.labels)} differ in punctuation alone; rename them.")
        self._slugs = slugs
        self.indicators = {label: f"in_{slug}" for label, slug in slugs.items()}
        separate = {name: domain for name, domain in base.parameters.items() if name not in shared}
        parameters = {name: base.parameters[name] for name in shared}
        for name, domain in separate.items():
            for label in self.labels:
                role = ":".join(self._own(part, separate, label) for part in domain.role.split(":"))
                parameters[self._own(name, separate, label)] = replace(domain, role=role)
        super().__init__(
            ast.unparse(_Separate(self, separate).visit(parse_expression(base.expression))),
            variables=[*base.variables, *self.indicators.values()],
            name=f"{base.name} of {len(self.labels)} groups",
            source=base.source,
            parameters=parameters,
            response=base.response,
        )

    def _own(self, name: str, separate: Collection[str], label: str) -> str:
        sign, bare = ("-", name[1:]) if name.startswith("-") else ("", name)
        return f"{sign}{bare}_{self._slugs[label]}" if bare in separate else name

    def own_name(self, name: str, label: str) -> str:
        """What a parameter of the base law is called for a group."""
        return self._own(name, set(self.base.parameters) - set(self.shared), label)

    def membership(self, label: Any) -> dict[str, float]:
        """The indicators of a group."""
        if label_of(label) not in self.indicators:
            raise ValueError(f"group={label!r} is unknown; the groups are {', '.join(self.labels)}.")
        return {name: float(own == label_of(label)) for own, name in self.indicators.items()}

    def expanded(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings by parameter, where a parameter of the base law stands for that of each group."""
        out: dict[str, Any] = {}
        for name, value in given.items():
            if name in self.base.parameters:
                out |= {self.own_name(name, label): value for label in self.labels}
            else:
                out[name] = value
        return out


def label_of(label: Any) -> str:
    """A group's label as text; a whole number of any kind as an integer."""
    whole = isinstance(label, float | np.floating) and float(label).is_integer()
    return str(int(label)) if whole else str(label)


class _Separate(ast.NodeTransformer):
    """p -> the p of the group: a product of powers for a logarithmic one, whose logarithm stays linear, else a sum."""

    def __init__(self, law: GroupedLaw, separate: Mapping[str, Any]) -> None:
        self.law, self.separate = law, separate

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in self.separate:
            return node
        pairs = [(self.law._own(node.id, self.separate, label), flag) for label, flag in self.law.indicators.items()]
        text = (
            "*".join(f"{name}**{flag}" for name, flag in pairs)
            if self.separate[node.id].logarithmic
            else "+".join(f"{name}*{flag}" for name, flag in pairs)
        )
        return ast.parse(f"({text})", mode="eval").body


def group_runs(runs: Runs, column: Any, law: Law, shared: Collection[str] | None) -> tuple[Runs, GroupedLaw]:
    """The runs with a column that says who belongs to each group, and the law of all of them.

    Raises ValueError for a missing label, a single group or an unknown shared parameter.
    """
    labels = np.array([label_of(label) for label in runs.labels(column, "group").tolist()])
    names = list(dict.fromkeys(labels.tolist()))
    if len(names) < 2:
        raise ValueError(f"group has the single value {names[0]!r}; a fit of groups needs at least two.")
    grouped = GroupedLaw(law, names, shared or ())
    flags = {flag: (labels == label).astype(np.float64) for label, flag in grouped.indicators.items()}
    return runs.with_columns(flags), grouped


class GroupFit:
    """One group of a fit of several, wherever a fit of its own is asked for: `ps.plan(fit, group="code")` is by one.

    joint: the fit of all groups. law: the law of one. params: its own and the shared ones, by the law's names. runs: the group's
    alone. evidence, and so any concern, is the joint fit's. Raises ValueError for a fit without groups or an unknown one.
    """

    def __init__(self, joint: Any, group: Any) -> None:
        law = joint.law
        if not isinstance(law, GroupedLaw):
            raise ValueError(f"group={group!r}: this fit of {law.name} has no groups; leave group out.")
        self.membership = law.membership(group)
        self.joint, self.group, self.law = joint, str(group), law.base
        self.names = {name: law.own_name(name, self.group) for name in law.base.names}
        self.params: dict[str, float] = joint.params_of(group)
        self.runs: Runs = joint.runs.select(joint.runs[law.indicators[self.group]] == 1)
        self.evidence = joint.evidence

    def evaluate(self, params: Mapping[str, Any] | None = None, **variables: Any) -> Any:
        """The law at the group's parameters, or at others."""
        return self.law.evaluate(self.params if params is None else params, **variables)

    def of_joint(self, boot: Any) -> Any:
        """A bootstrap of the joint fit as one of this group's parameters; one that is of these already is itself."""
        if list(boot.names) == list(self.names):
            return boot
        missing = [own for own in self.names.values() if own not in boot.names]
        if missing:
            raise ValueError(f"bootstrap is of another fit: it has {', '.join(boot.names)}, and no {missing[0]}.")
        columns = [list(boot.names).index(own) for own in self.names.values()]
        own = copy(boot)
        own.estimate, own.names, own.samples = dict(self.params), list(self.names), boot.samples[:, columns]
        return own

    def bootstrap(self, *arguments: Any, **options: Any) -> Any:
        """The joint fit's refits (see Fit.bootstrap), of this group's parameters."""
        return self.of_joint(self.joint.bootstrap(*arguments, **options))

    def _bootstrap_for_prediction(self, *arguments: Any) -> Any:
        return self.of_joint(self.joint._bootstrap_for_prediction(*arguments))

    def predict(self, **options: Any) -> Any:
        """As Fit.predict, for this group."""
        return self.joint.predict(group=self.group, **options)

    def __repr__(self) -> str:
        return f"GroupFit({self.group!r} of {self.joint!r})"


def one_of(fit: Any, group: Any) -> Any:
    """The fit of a group, or the fit itself where it has none. Raises ValueError where it has groups and none is named."""
    if group is not None:
        return GroupFit(fit, group)
    law = getattr(fit, "law", None)
    if isinstance(law, GroupedLaw):
        raise ValueError(
            f"group is missing: this fit is of {', '.join(law.labels)}; say which, as in group={law.labels[0]!r}."
        )
    return fit
