"""How many examples have another class nearby: Langevin adversarial sample search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainables.findings import Value
from trainables.functional import functional_call
from trainables.settings import CriticalSamples
from trainables.streams import Purpose, normals, words
from trainables.study import Study

Net = Callable[[Tensor], Tensor]


def critical_samples(study: Study, wanted: CriticalSamples) -> Iterator[Value]:
    """Fraction of the test examples near which the search finds a point that the net gives another class.

    An example x is critical where the predicted class, right or wrong, changes within the box |x' - x| <= radius. From
    x' = x the search repeats ``x' <- x' + radius * (step * sign(g) + noise * eta)``, clipped to the box, until the
    class changes: g is the gradient at x' of the cross-entropy on the class predicted at x, eta is standard normal.
    Where it finds nothing there may be something all the same: the ratio is a lower bound.

    The examples are the first `examples` of a fixed permutation of the test set; eta depends on seed and epoch, so that
    trials of a seed share it. The error is the standard error of what this search would find on the whole test set: 0
    where all of it is searched. Real-valued targets or a single output yield nothing.

    Source: Arpit et al. 2017, arXiv:1706.05394, algorithm 1, which leaves g open; it is that of its authors' code.
    """
    group = study.group
    dataset = group.data.dataset
    if not dataset.is_classification or study.test_outputs.shape[-1] < 2:
        return
    order = np.argsort(words(0, Purpose.SUBSET, len(dataset.test_inputs)), kind="stable")[: wanted.examples]
    centres = group.inputs.test(torch.from_numpy(order).to(dataset.test_inputs.device))
    searches = [_Search.of(net, own, study.chunk) for net, own in zip(_nets(study), centres, strict=True)]
    for iteration in range(wanted.iterations):
        noise = _noise(study, centres[0], iteration) if wanted.noise else {}
        for search, trial in zip(searches, group.trials, strict=True):
            search.advance(wanted, noise.get(trial.seed))
    found = torch.tensor([len(order) - len(s.rows) for s in searches], dtype=torch.float64)
    yield Value(
        "critical_sample_ratio", found / len(order), standard_error(found, len(order), len(dataset.test_inputs))
    )


def standard_error(found: Tensor, drawn: int, population: int) -> Tensor:
    """Of the fraction ``found / drawn``, drawn without replacement.

    ``sqrt(p (1 - p) / drawn * (population - drawn) / (population - 1))`` with Laplace's p = (found + 1) / (drawn + 2),
    so that it is not 0 where none or all were found.
    """
    p = (found + 1) / (drawn + 2)
    return (p * (1 - p) / drawn * (population - drawn) / max(1, population - 1)).sqrt()


@dataclass
class _Search:
    """The search of one trial, over the examples whose class it has not yet seen change.

    Attributes:
        net: outputs of inputs.
        chunk: most examples in one pass.
        rows: which examples are left; shape (m,).
        centres: they themselves; shape (m, ...).
        points: where the search stands; shape (m, ...).
        classes: predicted at the centres; shape (m,).
    """

    net: Net
    chunk: int
    rows: Tensor
    centres: Tensor
    points: Tensor
    classes: Tensor

    @classmethod
    def of(cls, net: Net, centres: Tensor, chunk: int) -> _Search:
        classes = _classes(net, centres, chunk)
        return cls(net, chunk, torch.arange(len(centres), device=centres.device), centres, centres, classes)

    def advance(self, wanted: CriticalSamples, noise: Tensor | None) -> None:
        """One iteration; noise of shape (examples, ...), None where there is none."""
        if not len(self.rows):
            return
        parts = zip(self.points.split(self.chunk), self.classes.split(self.chunk), strict=True)
        step = wanted.step * torch.cat([self._uphill(*part) for part in parts])
        if noise is not None:
            step += wanted.noise * noise[self.rows]
        low, high = self.centres - wanted.radius, self.centres + wanted.radius
        self.points = (self.points + wanted.radius * step).clamp(low, high)
        left = _classes(self.net, self.points, self.chunk) == self.classes
        self.rows, self.centres, self.points, self.classes = (
            v[left] for v in (self.rows, self.centres, self.points, self.classes)
        )

    def _uphill(self, points: Tensor, classes: Tensor) -> Tensor:
        """Sign of the gradient of the cross-entropy on the class, by its log odds, which do not underflow to 0."""
        label = classes[:, None]
        points = points.detach().requires_grad_()
        outputs = self.net(points)
        odds = outputs.scatter(1, label, -torch.inf).logsumexp(1) - outputs.gather(1, label)[:, 0]
        (gradient,) = torch.autograd.grad(odds.sum(), points)
        return gradient.sign()


@torch.no_grad()
def _classes(net: Net, inputs: Tensor, chunk: int) -> Tensor:
    return torch.cat([net(part).argmax(1) for part in inputs.split(chunk)])


def _nets(study: Study) -> Iterator[Net]:
    for parameters, buffers in study.members():
        module, own = study.group.engine.member(buffers)
        yield lambda x, m=module, p=parameters, b=own: functional_call(m, (p, b), (x,))  # type: ignore[misc]


def _noise(study: Study, like: Tensor, iteration: int) -> dict[int, Tensor]:
    """Standard normal numbers of each seed, of the shape of the examples."""
    block = round(study.group.epoch * 2**20)
    return {
        seed: torch.from_numpy(normals(seed, Purpose.CRITICAL, like.numel(), block, iteration))
        .view(like.shape)
        .to(like)
        for seed in {t.seed for t in study.group.trials}
    }
