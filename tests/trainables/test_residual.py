"""Cosines of residual branches against closed forms and against gradients taken from each block on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from packs import study, trial, values
from torch import Tensor, nn

from trainables.architectures import Residual
from trainables.findings import Finding, Rows
from trainables.residual import branch_cosines
from trainables.study import Study

LINEAR = {"arch": "plugins:linear_residual", "dataset": "plugins:regression", "loss": "mse"}


def profile(findings: list[Finding]) -> dict[str, Tensor]:
    (rows,) = [f for f in findings if isinstance(f, Rows)]
    assert (rows.table, rows.profile) == ("profiles", "residual_cosine")
    return rows.columns


def net_of(of: Study) -> nn.Module:
    return of.group.engine.module.eval()


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    return nn.functional.cosine_similarity(a, b, dim=1, eps=0).mean()


def test_linear_blocks_in_closed_form() -> None:
    """o = W(I+B)(I+A)x, loss |o - y|^2/K: gradients (I+A)'(I+B)'W'(o-y) and (I+B)'W'(o-y) up to 2/K."""
    of = study([trial(**LINEAR)])
    a, b, w = (v[0] for v in of.group.parameters.values())
    x, y, one = of.inputs[0], of.targets[0], torch.eye(4, dtype=torch.float64)
    h = x @ (one + a).T
    behind_second = (h @ (one + b).T @ w.T - y) @ w @ (one + b)
    expected = torch.stack(
        [mean_cosine(x @ a.T, -behind_second @ (one + a)), mean_cosine(h @ b.T, -behind_second)]
    ).detach()
    found = list(branch_cosines(of))
    torch.testing.assert_close(profile(found)["value"][0], expected, rtol=1e-12, atol=1e-12)
    assert profile(found)["x"].tolist() == [0, 1]
    torch.testing.assert_close(values(found)["residual_cosine"], expected.mean()[None], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("label_noise", [0, 0.5])
def test_against_the_gradient_of_the_rest_of_the_net(label_noise: float) -> None:
    """Example by example, block by block, whatever lies behind taken as a function of the block's input."""
    of = study([trial(arch="plugins:residual", label_noise=label_noise)], examples=12)
    blocks, expected = list(net_of(of)), []
    for k, block in enumerate(blocks):
        if not isinstance(block, Residual):
            continue
        rest = nn.Sequential(*blocks[k:])
        cosines = []
        for x, y in zip(of.inputs[0], of.targets[0], strict=True):
            h = nn.Sequential(*blocks[:k])(x[None]).detach()
            g = torch.func.grad(lambda v, rest=rest, y=y: nn.functional.cross_entropy(rest(v), y[None]))(h)
            f = block.branch(h)
            cosines.append(mean_cosine(f, -g) if f.shape == h.shape else torch.full((), torch.nan).double())
        expected.append(torch.stack(cosines).mean().detach())
    found = list(branch_cosines(of))
    torch.testing.assert_close(profile(found)["value"][0], torch.stack(expected), rtol=1e-9, atol=0, equal_nan=True)
    assert torch.stack(expected).isnan().tolist() == [True, False, False, False]
    assert values(found)["residual_cosine"][0] == profile(found)["value"][0, 1:].mean()


def test_a_branch_that_steps_down_the_loss_has_cosine_one() -> None:
    """f(h) = -c(Wh - y)W for one y: at small c the loss behind the block has the gradient of the loss before it."""
    of = study([trial(**LINEAR)], examples=1)
    w, y = of.group.parameters["2.weight"][0], of.targets[0, 0]
    branch = nn.Linear(4, 4).double()
    branch.weight.data, branch.bias.data = -1e-7 * w.T @ w, 1e-7 * y @ w
    module = nn.Sequential(Residual(branch), nn.Linear(4, 2, bias=False))
    of.group.engine.modules[0] = of.group.engine.module = module  # type: ignore[attr-defined]
    parameters = {"0.branch.weight": branch.weight, "0.branch.bias": branch.bias, "1.weight": w}
    of = replace(of, group=replace(of.group, parameters={k: v.detach()[None] for k, v in parameters.items()}))
    assert float(values(branch_cosines(of))["residual_cosine"]) == pytest.approx(1, abs=1e-5)


def test_what_has_no_direction_is_left_out() -> None:
    """A branch that is zero everywhere, as ResNets often start, has no cosine; the other block has."""
    of = study([trial(**LINEAR)])
    zeroed = of.group.parameters | {"0.branch.weight": torch.zeros(1, 4, 4, dtype=torch.float64)}
    found = list(branch_cosines(replace(of, group=replace(of.group, parameters=zeroed))))
    assert profile(found)["value"][0].isnan().tolist() == [True, False]
    assert values(found)["residual_cosine"][0] == profile(found)["value"][0, 1]


def test_an_example_without_gradient_is_left_out() -> None:
    """Fitted to the last bit it has none; the mean is that of the other examples."""
    of = study([trial(**LINEAR)], examples=10)
    outputs = net_of(of)(of.inputs[0]).detach()
    rows = of.group.data.curvature_examples
    targets = of.group.targets.clone()
    targets[0, rows[0]] = outputs[0]
    some = replace(of.group, targets=targets)
    data = replace(of.group.data, curvature_examples=rows[1:])
    found = [values(branch_cosines(replace(of, group=g))) for g in (some, replace(some, data=data))]
    torch.testing.assert_close(found[0]["residual_cosine"], found[1]["residual_cosine"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("arch", ["linear", "mlp", "plugins:with_batchnorm"])
def test_a_net_without_blocks_yields_nothing(arch: str) -> None:
    assert list(branch_cosines(study([trial(arch=arch)]))) == []


@pytest.mark.parametrize("arch", ["plugins:residual", "plugins:linear_residual"])
def test_engines_packs_and_chunks_agree(arch: str) -> None:
    pack = [trial(arch=arch, seed=s, label_noise=0.3, input_noise=0.3) for s in range(3)]
    together = list(branch_cosines(study(pack, "vmap", chunk=7)))
    for i, one in enumerate(pack):
        alone = list(branch_cosines(study([one], "loop")))
        torch.testing.assert_close(
            profile(together)["value"][i], profile(alone)["value"][0], rtol=1e-9, atol=1e-12, equal_nan=True
        )
        torch.testing.assert_close(values(together)["residual_cosine"][i], values(alone)["residual_cosine"][0])
    assert together[0].value.isfinite().all()  # type: ignore[union-attr]


def test_a_block_adds_its_branch_to_its_shortcut() -> None:
    x = torch.randn(3, 4)
    branch, shortcut = nn.Linear(4, 4), nn.Linear(4, 4)
    assert torch.equal(Residual(branch)(x), x + branch(x))
    assert torch.equal(Residual(branch, shortcut)(x), shortcut(x) + branch(x))
