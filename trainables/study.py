"""A group of trials at one moment, and what its statistics share so that nothing is computed twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from trainables.lanczos import complement
from trainables.operators import Operator, gradient_and_outputs, hessian_of, in_chunks
from trainables.settings import Measure
from trainables.snapshot import Snapshot
from trainables.streams import Purpose, rademacher


@dataclass(frozen=True)
class Subspace:
    """The span of each trial's top eigenvectors.

    Attributes:
        vectors: orthonormal, shape (trials, k, parameters); the sharpest direction first.
        sine: of the largest angle to the true subspace, at most (Davis and Kahan 1970), as far as Lanczos saw the gap
            below it; shape (trials,).
        sines: the same of each vector; shape (trials, k).
    """

    vectors: Tensor
    sine: Tensor
    sines: Tensor

    def share(self, directions: Tensor) -> Tensor:
        """||U'v||^2/||v||^2 of vectors of shape (trials, parameters); NaN for a zero one; shape (trials,)."""
        return self.coordinates(directions).double().square().sum(1) / directions.double().square().sum(1)

    def coordinates(self, directions: Tensor) -> Tensor:
        """U'v of vectors of shape (trials, parameters); shape (trials, k)."""
        return torch.bmm(self.vectors, directions[:, :, None])[:, :, 0]

    def project_out(self, directions: Tensor) -> Tensor:
        """(I - U'U) v of vectors of shape (trials, parameters)."""
        return complement(directions[:, None], self.vectors)[:, 0]

    def take(self, part: list[int]) -> Subspace:
        """Of some of the trials, or of some of them repeatedly."""
        return Subspace(self.vectors[part], self.sine[part], self.sines[part])

    @classmethod
    def join(cls, groups: Sequence[Subspace]) -> Subspace:
        """Of the trials of all groups."""
        return cls(*(torch.cat([getattr(g, f.name) for g in groups]) for f in fields(cls)))


@dataclass
class Study:
    """Trials that are measured together.

    Attributes:
        group: the trials.
        settings: what is due.
        chunk: most examples in one forward pass that is to be differentiated.
        before: the top eigenvectors of the measurement before, if there was one.
        steps: what the next minibatches would add to the parameters, each (trials, parameters); where asked for.
        top: the top eigenvectors, once they are known.
    """

    group: Snapshot
    settings: Measure
    chunk: int
    before: Subspace | None = None
    steps: Sequence[Tensor] = ()
    top: Subspace | None = None

    @cached_property
    def training(self) -> tuple[Tensor, Tensor]:
        """Gradient of the training loss, shape (trials, parameters), and outputs, (trials, N, outputs)."""
        of = self.group
        return gradient_and_outputs(of.engine, of.parameters, of.buffers, self.training_set(), len(of.targets[0]))

    @property
    def train_gradient(self) -> Tensor:
        """Gradient of the training loss; shape (trials, parameters)."""
        return self.training[0]

    @property
    def train_outputs(self) -> Tensor:
        """Outputs on the training set; shape (trials, N, outputs)."""
        return self.training[1]

    @cached_property
    @torch.no_grad()
    def test_outputs(self) -> Tensor:
        """Outputs on the test set; shape (trials, M, outputs)."""
        of = self.group
        chunks = map(of.inputs.test, _slices(len(of.data.dataset.test_inputs), self.chunk))
        return torch.cat([of.engine.outputs(of.parameters, of.buffers, c) for c in chunks], 1)

    @property
    def test_targets(self) -> Tensor:
        """Targets of the test set, for every trial; shape (trials, M[, outputs])."""
        targets = self.group.data.dataset.test_targets
        return targets.expand(len(self.group.trials), *targets.shape)

    @cached_property
    def inputs(self) -> Tensor:
        """The curvature examples; shape (trials, n, ...), expanded where trials share them."""
        return self.group.inputs.training(self.group.data.curvature_examples)

    @property
    def targets(self) -> Tensor:
        """Their targets, noise included; shape (trials, n[, outputs])."""
        return self.group.targets[:, self.group.data.curvature_examples]

    @cached_property
    def hessian(self) -> Operator:
        """Of the mean loss over the curvature examples."""
        of = self.group
        return hessian_of(of.engine, of.parameters, of.buffers, self.inputs, self.targets, self.chunk)

    @cached_property
    def curvature_gradient(self) -> Tensor:
        """Gradient of the mean loss over the curvature examples; shape (trials, parameters)."""
        of = self.group
        batches = in_chunks(self.inputs, self.targets, self.chunk)
        return gradient_and_outputs(of.engine, of.parameters, of.buffers, batches, self.targets.shape[1])[0]

    def by_parameter(self, vectors: Tensor) -> dict[str, Tensor]:
        """Vectors of shape (trials, parameters) cut into parameters by name, each (trials, ...)."""
        like = self.group.parameters
        pieces = vectors.split([v[0].numel() for v in like.values()], 1)
        return {name: piece.view_as(like[name]) for name, piece in zip(like, pieces, strict=True)}

    def signs(self, purpose: Purpose, index: int) -> Tensor:
        """Random signs, shape (trials, parameters); keyed by epoch, so that iso-ratio trials of a seed share them."""
        block, dimension = round(self.group.epoch * 2**20), sum(v[0].numel() for v in self.group.parameters.values())
        drawn = [rademacher(t.seed, purpose, dimension, block, index) for t in self.group.trials]
        like = next(iter(self.group.parameters.values()))
        return torch.from_numpy(np.stack(drawn)).to(like)

    def training_set(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of the training set, chunk by chunk, each of shape (trials, chunk, ...)."""
        for part in _slices(self.group.data.dataset.train_size, self.chunk):
            yield self.group.inputs.training(part), self.group.targets[:, part]

    def members(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Parameters and buffers of one trial after the other, by name."""
        for i in range(len(self.group.trials)):
            yield {k: v[i] for k, v in self.group.parameters.items()}, {k: v[i] for k, v in self.group.buffers.items()}


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
