from collections.abc import Sequence

import numpy as np

class Tape:
    n_parameter: int
    n_register: int
    dependence: list[int]
    def __init__(
        self,
        n_parameter: int,
        scalars: Sequence[float],
        n_column: int,
        n_register: int,
        scalar_code: np.ndarray,
        vector_code: np.ndarray,
        level_end: Sequence[int],
        value: int,
        gradient: Sequence[int],
        dependence: Sequence[int],
        log_link: bool,
    ) -> None: ...

def fit_batch(
    tape: Tape,
    columns: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    starts: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    delta: float,
    spread: float,
    n_resample: int = 0,
    cluster: np.ndarray | None = None,
    seed: int = 0,
    threads: int = 1,
    over: float = 1.0,
) -> dict[str, np.ndarray]: ...
def resample_counts(n_cluster: int, n_resample: int, seed: int = 0) -> np.ndarray: ...
def evaluate(
    tape: Tape,
    columns: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    theta: np.ndarray,
    delta: float,
    level: int = 1,
    repeat: int = 1,
    over: float = 1.0,
) -> tuple[float, np.ndarray, np.ndarray]: ...
def jacobian(tape: Tape, columns: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
