"""What a law is, whatever it is called and however it is spelt: closed forms hang on that, and not on its name."""

from collections.abc import Mapping
from functools import lru_cache
from itertools import permutations, product

import numpy as np

from pyscaling import laws
from pyscaling.laws import Law

_FEW = 5  # parameters, of which any may be shared


@lru_cache(maxsize=256)
def parameters_as(law: Law, name: str) -> Mapping[str, str] | None:
    """Parameter of the built-in law `name` -> what `law` calls it, if `law` is that law; None if it is another.

    Two laws of the same variables are one where some assignment of parameters makes them equal at places that no two laws
    share by chance. Two parameters of the built-in one may be the same of `law`: chinchilla_tied is a chinchilla.
    """
    known = laws.get(name)
    if set(law.variables) != set(known.variables) or len(law.names) > len(known.names) or law.indicators:
        return None
    generator = np.random.default_rng(0)
    values = generator.uniform(0.3, 0.9, len(law.names))
    # On both sides of one, of each other, and so of a kink such as min(D, U).
    places = {v: np.exp(generator.uniform(-2.0, 2.0, 12)) for v in sorted(known.variables)}
    own = range(len(law.names))
    ways = product(own, repeat=len(known.names)) if len(known.names) <= _FEW else permutations(own, len(known.names))
    choices = np.array(list(ways), dtype=np.intp).reshape(-1, len(known.names))  # [K, P]
    wanted = law.evaluate(dict(zip(law.names, values, strict=True)), **places)
    given = {parameter: values[choices[:, k]][:, None] for k, parameter in enumerate(known.names)}
    same = np.isclose(known.evaluate(given, **places), wanted, rtol=1e-11, atol=0).all(axis=1)
    # Every parameter of the law has a place; one without any effect would not show.
    same &= np.array([len(set(row)) == len(law.names) for row in choices], dtype=bool)
    if not same.any():
        return None
    return dict(zip(known.names, (law.names[j] for j in choices[np.argmax(same)]), strict=True))
