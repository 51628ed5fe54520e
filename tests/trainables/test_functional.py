"""Modules called with other tensors than their own."""

from __future__ import annotations

import pytest
import torch
from packs import endpoint, engine_for, trial
from torch import nn

from trainables.datasets import load_dataset
from trainables.functional import functional_call
from trainables.streams import examples


class Tied(nn.Module):
    """A module under two names, a weight in two modules, and a weight under two names in one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = self.again = nn.BatchNorm1d(3)
        self.encode, self.decode = nn.Linear(3, 3), nn.Linear(3, 3)
        self.decode.weight = self.encode.weight
        self.scale = self.same = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.scale * self.decode(self.encode(self.norm(x) * self.same)))


def test_every_place_of_a_tensor_is_replaced_and_given_back() -> None:
    net, other = Tied().eval(), Tied().eval()
    with torch.no_grad():
        for tensor in (*other.parameters(), other.norm.running_mean):
            tensor.add_(torch.rand(3))
    before = [(m, name, t) for m in net.modules() for name, t in (*m._parameters.items(), *m._buffers.items())]
    x = torch.randn(5, 3)
    given = {k: v.detach() for k, v in other.named_parameters()}, dict(other.named_buffers())
    assert torch.equal(functional_call(net, given, (x,)), other(x))
    assert all(getattr(m, name) is t for m, name, t in before)


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_measuring_leaves_a_shared_block_to_be_trained(engine: str) -> None:
    """Each step written out in plain PyTorch, never measured, against a trial that was measured before it began."""

    one = trial(arch="plugins:residual", lr=0.5)
    dataset = load_dataset(one.dataset)
    net = engine_for([one], dataset, "loop").module.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for step in range(12):
        rows = torch.from_numpy(examples(0, 8 * step, 8 * step + 8, 50, replacement=False))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(dataset.train_inputs[rows]), dataset.train_targets[rows]).backward()
        optimizer.step()
    loss = nn.functional.cross_entropy(net.eval()(dataset.train_inputs), dataset.train_targets)
    assert float(endpoint([one], engine)["train_loss"]) == pytest.approx(loss.item(), rel=1e-9)
