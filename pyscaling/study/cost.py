"""What a study will cost, from its spec alone."""

from dataclasses import dataclass

from pyscaling.accounting import PF_DAY, Shape, flops_per_token, parameter_count
from pyscaling.study.spec import SizeSpec, StudySpec
from pyscaling.training.segments import branch_segments


@dataclass(frozen=True)
class SizeCost:
    """Of one size's fleet: members, tokens each of them trains on (trunk and branches), FLOPs of all."""

    shape: Shape
    members: int
    tokens: int
    flops: float


@dataclass(frozen=True)
class StudyCost:
    """Predicted cost of a study; FLOPs count attention and the head (convention "full")."""

    sizes: tuple[SizeCost, ...]

    @property
    def flops(self) -> float:
        return sum(size.flops for size in self.sizes)

    def hours(self, flops_per_second: float) -> float:
        return self.flops / flops_per_second / 3600

    def __str__(self) -> str:
        lines = [f"{'shape':>14} {'N':>12} {'members':>8} {'tokens each':>12} {'FLOPs':>10}"]
        for size in self.sizes:
            name = f"{size.shape.d_model} x {size.shape.n_layer}"
            lines.append(
                f"{name:>14} {parameter_count(size.shape):>12,} {size.members:>8} {size.tokens:>12.3g} {size.flops:>10.3g}"
            )
        hours = ", ".join(f"{self.hours(rate):.3g} h at {rate:.0e} FLOP/s" for rate in (1e11, 1e14, 4e14))
        return "\n".join(
            [*lines, f"{'all':>14} {self.flops:>56.3g} FLOPs = {self.flops / PF_DAY:.3g} PF-days; {hours}"]
        )


def predict_cost(spec: StudySpec) -> StudyCost:
    """The cost of every fleet of a spec, evaluations left out."""
    return StudyCost(tuple(_size_cost(spec, size) for size in spec.sizes))


def _size_cost(spec: StudySpec, size: SizeSpec) -> SizeCost:
    shape = spec.shape(size, spec.corpus.vocab_size)
    members = size.seeds * len(size.rate_factors)
    training, budgets = spec.training, spec.budgets(size)
    groups = [budgets] if training.schedule in ("wsd", "constant") else [(budget,) for budget in budgets]
    decay = training.decay_fraction if training.schedule == "wsd" else 0.0
    steps = sum(
        trunk + branch for group in groups for trunk, branch, _ in branch_segments(group, training.batch_tokens, decay)
    )
    tokens = steps * training.batch_tokens
    return SizeCost(shape, members, tokens, members * tokens * flops_per_token(shape, "full"))
