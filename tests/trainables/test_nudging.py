"""Nudged SGD against dense eigenvectors and against SGD."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dense import dense
from packs import endpoint, stepper, study, trial
from torch import Tensor

from trainables.engine import Engine
from trainables.operators import hessian_of
from trainables.settings import Measure

MLP = '{"activation":"tanh","depth":1,"name":"mlp","width":5}'
ALL = 50  # examples of the data set


def nudged(factor: float, top: int = 2, every: int = 1000) -> str:
    return f'{{"every":{every},"examples":{ALL},"factor":{factor},"name":"nudged_sgd","top":{top}}}'


def vector(engine: Engine) -> Tensor:
    return torch.cat([v.flatten(1) for v in engine.state()[0].values()], 1).clone()


@pytest.mark.parametrize("engine", ["fused", "vmap", "loop"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_only_what_lies_in_the_top_eigenvectors_is_scaled(engine: str, momentum: float) -> None:
    pack = [trial(arch=MLP, seed=s, lr=0.1, momentum=momentum) for s in range(2)]
    seen = study(pack, engine, examples=ALL)
    matrix = dense(
        hessian_of(seen.group.engine, seen.group.parameters, seen.group.buffers, seen.inputs, seen.targets, 1000)
    )
    eigenvectors = torch.linalg.eigh(matrix).eigenvectors[:, :, -2:]
    plain, scaled = (
        stepper(pack, engine),
        stepper([t.model_copy(update={"optimizer": nudged(0.1)}) for t in pack], engine),
    )
    before = vector(plain.engine)
    plain.advance(0, 1)
    scaled.advance(0, 1)
    step, other = vector(plain.engine) - before, vector(scaled.engine) - before
    inside = torch.bmm(eigenvectors, torch.bmm(eigenvectors.mT, step[:, :, None]))[:, :, 0]
    assert (inside.norm(dim=1) > 0.05 * step.norm(dim=1)).all()
    np.testing.assert_allclose(other, step - 0.9 * inside, rtol=1e-3, atol=1e-3 * float(step.abs().max()))


def test_a_factor_of_one_is_sgd() -> None:
    plain, nudge = (endpoint([trial(arch=MLP, optimizer=o)]) for o in ("sgd", nudged(1.0)))
    assert plain.keys() == nudge.keys()
    for name, value in plain.items():
        np.testing.assert_allclose(nudge[name], value, rtol=1e-12, err_msg=name)


def test_the_eigenvectors_are_measured_every_so_often() -> None:
    losses = {
        every: endpoint([trial(arch=MLP, lr=0.5, optimizer=nudged(0.0, every=every))])["train_loss"]
        for every in (1, 4, 1000)
    }
    assert len({float(loss) for loss in losses.values()}) == 3


def test_smaller_steps_in_sharp_directions_end_where_it_is_sharper() -> None:
    """The finding of the paper, on a small scale."""
    measure = Measure(at=[], hessian={"top": 1, "trace_probes": 1, "examples": ALL})
    train = {"arch": MLP, "lr": 1.0, "epochs": 12}
    sharpness = {
        factor: endpoint(
            [trial(**train, seed=s, optimizer=nudged(factor, every=5)) for s in range(6)], "fused", measure
        )
        for factor in (1.0, 0.1)
    }
    plain, gentle = (sharpness[f]["lambda_max"].numpy() for f in (1.0, 0.1))
    assert (gentle > plain).mean() > 0.8
