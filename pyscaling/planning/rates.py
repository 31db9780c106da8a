"""Which learning rate and batch: the published rules as data, each with its source and the runs that it was fitted to.

No rule is a law of nature: optimiser, schedule, warm-up and what counts as N differ, and around the optimum the loss is flat (a
factor of two in either costs little). A sweep of one's own comes first: `ps.fit(sweep, law="step_law_learning_rate")` over
columns N, D and learning_rate, the best for each N and D, then `.predict(N=7e9, D=1.4e11)`; `law="step_law_batch"` over D and
batch.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np

from pyscaling.accounting import Shape, flops_per_token
from pyscaling.fitting.result import Result
from pyscaling.planning.text import wrapped
from pyscaling.units import format_count, parse_count

# (lowest, highest) of what the rule was fitted to, by quantity
Fitted = tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Rule:
    """One published rule: value(N, D, C) with C the training FLOPs without embeddings and head, attention counted.

    fitted: (quantity, lowest, highest) of the runs behind it. note: how its batch or rate is meant.
    """

    source: str
    formula: str
    value: Callable[[float, float, float], float]
    fitted: Fitted
    note: str = ""

    def beyond(self, **at: float) -> tuple[float, str]:
        """By how much a run lies outside what the rule was fitted to: the largest factor, 1 inside, and all in words."""
        factors = {name: max(at[name] / high, low / at[name], 1.0) for name, low, high in self.fitted}
        sides = {name: "up" if at[name] > high else "down" for name, _, high in self.fitted}
        words = ", ".join(f"{name} {factor:.2g} x {sides[name]}" for name, factor in factors.items() if factor > 1.01)
        return max(factors.values()), words


LEARNING_RATES: tuple[Rule, ...] = (
    Rule(
        "Li et al. 2025 (Step law)",
        "1.79 N^-0.713 D^0.307",
        lambda N, D, C: 1.79 * N**-0.713 * D**0.307,
        (("N", 6e7, 1.1e9), ("D", 2e9, 1e11)),
        "AdamW; peak rate, decayed to 1e-5",
    ),
    Rule(
        "Bi et al. 2024 (DeepSeek LLM)",
        "0.3118 C^-0.125",
        lambda N, D, C: 0.3118 * C**-0.125,
        (("C", 1e17, 2e19),),
        "AdamW; peak rate of a stepwise schedule",
    ),
    Rule(
        "Kaplan et al. 2020, eq. D.1",
        "0.003239 - 0.0001395 ln N",
        lambda N, D, C: 0.003239 - 0.0001395 * float(np.log(N)),
        (("N", 768.0, 1.5e9),),
        "Adam at batches of 2^19 tokens",
    ),
)

# 22.91 (D / 1e6)^0.47 sequences of 512 tokens. Held against the steps to the goal that the authors' notebook prints for 85 M to
# 1.2 B parameters at 20 tokens each: the batch where these take 20 % more tokens is 0.78 to 1.24 times the rule's.
ZHANG_SEQUENCES, ZHANG_EXPONENT, ZHANG_CONTEXT = 22.91, 0.47, 512

BATCHES: tuple[Rule, ...] = (
    Rule(
        "Zhang et al. 2024",
        "11,730 (D / 1e6)^0.47",
        lambda N, D, C: ZHANG_SEQUENCES * ZHANG_CONTEXT * (D / 1e6) ** ZHANG_EXPONENT,
        (("N", 8.5e7, 1.2e9), ("D", 1.7e9, 2.5e10)),
        "critical: takes 20 % more tokens",
    ),
    Rule(
        "Li et al. 2025 (Step law)",
        "0.58 D^0.571",
        lambda N, D, C: 0.58 * D**0.571,
        (("N", 6e7, 1.1e9), ("D", 2e9, 1e11)),
        "of the least loss for N and D",
    ),
    Rule(
        "Bi et al. 2024 (DeepSeek LLM)",
        "0.2920 C^0.3271",
        lambda N, D, C: 0.2920 * C**0.3271,
        (("C", 1e17, 2e19),),
        "of the least loss for C",
    ),
)


_NEAR = 10.0


@dataclass(frozen=True)
class Recommendation:
    """What one rule says: `value` of `quantity` ("learning rate" or "batch", in tokens).

    factor, beyond: how far outside the rule's own runs this one lies, 1 and empty inside.
    """

    quantity: str
    value: float
    source: str
    formula: str
    note: str
    factor: float
    beyond: str


@dataclass(frozen=True)
class LearningRateAndBatch(Result):
    """What each published rule says of a run; made by `learning_rate_and_batch`. Iterates over Recommendations.

    N: non-embedding parameters. D: tokens. C: FLOPs of training, with attention where the shape is known.
    """

    N: float
    D: float
    C: float
    rules: tuple[Recommendation, ...]

    def nearest(self, quantity: str) -> Recommendation:
        """The first of the rules whose runs are within ten times of this one, else the one whose runs are nearest."""
        return min((rule for rule in self.rules if rule.quantity == quantity), key=lambda rule: max(rule.factor, _NEAR))

    @property
    def learning_rate(self) -> float:
        """The peak rate by the Step law, which knows of N and D both, or by the rule whose runs are nearer."""
        return self.nearest("learning rate").value

    def __iter__(self) -> Any:
        return iter(self.rules)

    def __str__(self) -> str:
        lines = [f"N = {format_count(self.N)}, D = {format_count(self.D)}, by published rules"]
        for quantity in ("learning rate", "batch"):
            lines.append(quantity if quantity == "learning rate" else "batch, tokens")
            for rule in (rule for rule in self.rules if rule.quantity == quantity):
                value = f"{rule.value:.2e}" if quantity == "learning rate" else format_count(rule.value)
                where = f"; beyond its runs by {rule.beyond}" if rule.beyond else ""
                lines.append(f"  {value:>9}  {rule.source}: {rule.formula}")
                lines += wrapped(f"{rule.note}{where}", 13)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("", "value", "rule", "", "beyond its runs by"))
        cells = "".join(
            "<tr>" + "".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in row) + "</tr>"
            for row in (
                (rule.quantity, f"{rule.value:.3g}", f"{rule.source}: {rule.formula}", rule.note, rule.beyond)
                for rule in self.rules
            )
        )
        caption = f"N = {format_count(self.N)}, D = {format_count(self.D)}; batches in tokens"
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row a rule."""
        import pandas as pd

        return pd.DataFrame([asdict(rule) for rule in self.rules])


def learning_rate_and_batch(N: float | str, D: float | str, *, shape: Shape | None = None) -> LearningRateAndBatch:
    """Learning rate and batch in tokens for N non-embedding parameters on D tokens, by every published rule there is here.

    N, D: numbers, or texts such as "7B" and "140B". shape: counts attention for the rule that asks for it (Bi et al. 2024 count
    M = 72 n_layer d_model^2 + 12 n_layer d_model n_ctx FLOPs a token, C = M D); without one C = 6ND.
    Rules: Step law, Li et al. 2025 (arXiv:2503.04715); DeepSeek LLM, Bi et al. 2024 (arXiv:2401.02954, eq. 1); Kaplan et al. 2020
    (arXiv:2001.08361, eq. D.1), left out from N = 1.2e10 on, where its line has come to 0; Zhang et al. 2024 (arXiv:2410.21676),
    the critical batch.
    Raises ValueError for numbers that are not positive.
    """
    size, tokens = parse_count("N", N), parse_count("D", D)
    C = (6.0 * size if shape is None else flops_per_token(shape, "attention")) * tokens
    at = {"N": size, "D": tokens, "C": C}
    rules = [
        Recommendation(quantity, rule.value(size, tokens, C), rule.source, rule.formula, rule.note, *rule.beyond(**at))
        for quantity, known in (("learning rate", LEARNING_RATES), ("batch", BATCHES))
        for rule in known
        if rule.value(size, tokens, C) > 0  # a line in ln N ends
    ]
    return LearningRateAndBatch(size, tokens, C, tuple(rules))
