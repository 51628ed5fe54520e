"""Symmetric matrices with known spectra, as operators."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainables.lanczos import Krylov, Wanted, lanczos
from trainables.streams import Purpose, rademacher


class Matrices:
    """Symmetric matrices, shape (trials, d, d), as operators."""

    def __init__(self, matrices: Tensor) -> None:
        self.matrices = matrices
        self.shape = (matrices.shape[0], matrices.shape[1])

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return torch.stack([m @ v for m, v in zip(self.matrices, vectors, strict=True)])

    def take(self, part: list[int]) -> Matrices:
        return Matrices(self.matrices[part])


def signs(operator: Matrices, purpose: Purpose, index: int) -> Tensor:
    trials, d = operator.shape
    drawn = [rademacher(t, purpose, d, 0, index) for t in range(trials)]
    return torch.from_numpy(np.stack(drawn)).to(operator.matrices.dtype)


def run(operator: Matrices, max_iterations: int = 100, wanted: Wanted | None = None) -> Krylov:
    return lanczos(operator, signs(operator, Purpose.LANCZOS, 0), max_iterations, wanted)


def with_spectrum(eigenvalues: list[float], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return ((q * torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T).to(dtype)
