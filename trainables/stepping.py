"""SGD steps of a pack along the example streams of its trials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainables.engines import Engine
from trainables.snapshot import PackData
from trainables.streams import examples
from trainables.trial import Trial


def advance(engine: Engine, data: PackData, trials: Sequence[Trial], begin: int, end: int) -> None:
    """Takes the steps from ``begin`` to ``end``, each on the next ``batch_size`` examples of every trial's stream."""
    batch = trials[0].batch_size
    order = _minibatches(trials, begin, end, data.dataset.train_size).to(data.targets.device)
    inputs, rows = data.dataset.train_inputs, torch.arange(len(trials), device=order.device)[:, None]
    for step in range(begin, end):
        chosen = order[:, step - begin]
        x = inputs.index_select(0, chosen.reshape(-1)).view(len(trials), batch, *inputs.shape[1:])
        engine.step(x, data.targets[rows, chosen], step)


def _minibatches(trials: Sequence[Trial], begin: int, end: int, train_size: int) -> Tensor:
    """Example indices, shape (trials, end - begin, batch_size); drawn once per distinct order seed."""
    batch = trials[0].batch_size
    replacement = trials[0].sampler == "replacement"
    streams = {
        seed: examples(seed, begin * batch, end * batch, train_size, replacement=replacement)
        for seed in {t.order for t in trials}
    }
    return torch.from_numpy(np.stack([streams[t.order] for t in trials]).reshape(len(trials), end - begin, batch))
