"""Nudged SGD: a step that is scaled only in the sharpest directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainables.eigenpairs import Top
from trainables.engine import Engine
from trainables.lanczos import Wanted, lanczos
from trainables.operators import chunk_and_group
from trainables.parameters import NudgedSGD
from trainables.registry import resolve
from trainables.settings import Hessian, Measure
from trainables.snapshot import Snapshot
from trainables.streams import Purpose, subset
from trainables.study import Study
from trainables.trial import Trial


@dataclass
class Nudge:
    """``w <- w + s + (factor - 1) U'U s`` for the step s of SGD and the top eigenvectors U of the Hessian.

    The eigenvectors are those of the mean loss over a fixed subset of the training set, measured every so many steps
    by Lanczos with the tolerance of ``measure.hessian``'s default.

    Source: Jastrzębski et al. 2019, arXiv:1807.05031, section 4.

    Attributes:
        settings: of the optimizer.
        vectors: U, orthonormal; shape (trials, k, parameters), zero rows where a trial has ended.
    """

    settings: NudgedSGD
    vectors: Tensor | None = None

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> Nudge | None:
        """That of the trials' optimizer, None where it has none."""
        resolved = resolve("optimizer", trials[0].optimizer)
        return cls(NudgedSGD(**resolved.parameters)) if resolved.name == "nudged_sgd" else None

    def is_due(self, step: int) -> bool:
        """Whether the eigenvectors are to be measured before this step."""
        return step % self.settings.every == 0

    def measure(self, snapshot: Snapshot) -> None:
        """Measures the eigenvectors of the trials that still train."""
        wanted, k = Hessian(), self.settings.top
        data = replace(snapshot.data, curvature_examples=self._examples(snapshot))
        snapshot = replace(snapshot, data=data)
        chunk, size = chunk_and_group(snapshot.engine, data.dataset.train_inputs, 2 * wanted.max_iterations)
        active = snapshot.engine.active.nonzero()[:, 0].tolist()
        like = next(iter(snapshot.parameters.values()))
        dimension = sum(v[0].numel() for v in snapshot.parameters.values())
        self.vectors = like.new_zeros(len(snapshot.trials), k, dimension)
        for start in range(0, len(active), size):
            part = active[start : start + size]
            study = Study(snapshot.take(part), Measure(), chunk)
            ends = Wanted(k, 0, wanted.tolerance)
            krylov = lanczos(study.hessian, study.signs(Purpose.NUDGE, 0), wanted.max_iterations, ends)
            self.vectors[part] = Top.of(krylov, k).vectors

    @contextmanager
    def applied(self, engine: Engine) -> Iterator[None]:
        """Corrects the step that is taken within."""
        before = {name: w.clone() for name, w in engine.state()[0].items()}
        yield
        after = engine.state()[0]
        step = torch.cat([(after[name] - w).flatten(1) for name, w in before.items()], 1)
        assert self.vectors is not None
        inside = torch.bmm(self.vectors, step[:, :, None])
        nudge = (self.settings.factor - 1) * torch.bmm(self.vectors.transpose(1, 2), inside)[:, :, 0]
        pieces = nudge.split([w[0].numel() for w in before.values()], 1)
        engine.shift({name: piece.view_as(w) for (name, w), piece in zip(before.items(), pieces, strict=True)})

    def _examples(self, snapshot: Snapshot) -> Tensor:
        chosen = subset(snapshot.data.dataset.train_size, self.settings.examples)
        return torch.from_numpy(chosen).to(snapshot.data.targets.device)
