"""Tables of trials whose truth is known."""

import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from analysis.contrasts import Contrasts

RATIOS = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
BATCH_SIZES = (8, 16, 32, 64, 128)


def table(rows: list[dict]) -> pa.Table:
    """Rows with `status`, and `seed`, filled in."""
    return pa.Table.from_pylist([{"status": "finished", **row} for row in rows])


def cells(ratios=RATIOS, batch_sizes=BATCH_SIZES) -> list[tuple[float, int]]:
    return [(float(f"{r * b:.12g}"), b) for r in ratios for b in batch_sizes]


def grid(
    truth: Callable[[float, int], float],
    seeds: int = 8,
    sd: float = 0.03,
    seed_sd: float = 0.2,
    rng: int | np.random.Generator = 0,
    metric: str = "lambda_max",
    ratios=RATIOS,
    batch_sizes=BATCH_SIZES,
    **fields,
) -> pa.Table:
    """exp(truth(lr, batch size) + seed effect + noise) in every cell, for a metric on the log scale."""
    rng = np.random.default_rng(rng)
    effects = rng.normal(0, seed_sd, seeds)
    points = [(lr, b, s) for lr, b in cells(ratios, batch_sizes) for s in range(seeds)]
    y = [truth(lr, b) + effects[s] + rng.normal(0, sd) for lr, b, s in points]
    config = [{"lr": lr, "batch_size": b, "seed": s, **fields} for lr, b, s in points]
    return table([{**c, metric: math.exp(v)} for c, v in zip(config, y, strict=True)])


def bent(lr: float, batch_size: int) -> float:
    """Nonlinear in the ratio, like lambda_max on digits; the same on every iso-ratio line."""
    return 2.4 - 0.12 * (math.log(lr / batch_size / 2.5e-4)) ** 2


def made(estimate, sd=0.1, n=10, lr=None, ratio=None, **marks) -> Contrasts:
    """Contrasts with the statistics given; lr ascending unless given."""
    shape = len(estimate)
    lr = np.arange(1.0, shape + 1) if lr is None else np.array(lr)
    n = np.broadcast_to(n, shape).copy()
    blank = np.zeros(shape, dtype=bool)
    return Contrasts(
        lr=lr,
        batch_size=lr / (np.full(shape, 0.01) if ratio is None else np.array(ratio)),
        reference_batch_size=np.full(shape, 8.0),
        n=n,
        estimate=np.array(estimate, dtype=float),
        sd=np.broadcast_to(sd, shape).astype(float),
        df=n - 1.0,
        **{name: marks.get(name, blank) for name in ("constant", "unpaired", "spoiled", "extinct")},
    )
