"""What Isoratio's curvature kernel is compared with: PyHessian, curvlinops with scipy's eigsh, and plain autograd."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from statistics import mean
from typing import Any, ClassVar

import numpy as np
import pyhessian
import torch
from curvlinops import HessianLinearOperator, hutchinson_trace, xtrace
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

warnings.filterwarnings("ignore", "Using backward.. with create_graph")  # PyHessian's way

TOP = 5
Pairs = tuple[Sequence[float], Sequence[Tensor]]
"""Eigenvalues and eigenvectors, each (parameters,)."""


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def products_of(module: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """The map v -> Hv through a retained graph."""
    parameters = list(module.parameters())
    loss = nn.functional.cross_entropy(module(inputs), targets)
    gradient = flat(torch.autograd.grad(loss, parameters, create_graph=True))
    return lambda v: flat(torch.autograd.grad(gradient, parameters, v, retain_graph=True))


class Rival(ABC):
    """One trial with one library; building it counts as part of finding the eigenvalues.

    Attributes:
        settings: of :meth:`eigenpairs`, to be tried.
        estimators: of the trace.
    """

    settings: ClassVar[Sequence[dict[str, Any]]]
    estimators: ClassVar[Sequence[str]] = ("hutchinson",)

    def __init__(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        self.module, self.inputs, self.targets = module, inputs, targets

    @abstractmethod
    def eigenpairs(self, **settings: Any) -> Pairs:
        """The five largest."""

    @abstractmethod
    def trace(self, probes: int, estimator: str = "hutchinson") -> float:
        """Estimated from so many products."""


class PyHessian(Rival):
    """Power iteration with deflation; it finds the largest by magnitude. Stricter settings come later."""

    settings = tuple({"tol": 10.0**-k, "maxIter": 1000} for k in (3, 4, 5, 6, 7, 8))

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        on_gpu = self.inputs.device.type == "cuda"
        self.hessian = pyhessian.hessian(self.module, nn.CrossEntropyLoss(), (self.inputs, self.targets), cuda=on_gpu)

    def eigenpairs(self, **settings: Any) -> Pairs:
        values, vectors = self.hessian.eigenvalues(top_n=TOP, **settings)
        return values, [flat(v) for v in vectors]

    def trace(self, probes: int, estimator: str = "hutchinson") -> float:
        return float(np.mean(self.hessian.trace(maxIter=probes, tol=-np.inf)))  # never stops early


class InBlocks(HessianLinearOperator):
    """Eight columns at a time: faster than one, and on the CNN several times faster than all at once."""

    def _matmat(self, M: list[Tensor]) -> list[Tensor]:
        blocks = zip(*(m.split(8, -1) for m in M), strict=True)
        products = [super(InBlocks, self)._matmat(list(block)) for block in blocks]
        return [torch.cat(parts, -1) for parts in zip(*products, strict=True)]


class Curvlinops(Rival):
    """Forward over reverse, anew for each product."""

    settings = tuple({"ncv": ncv, "tol": tol} for ncv, tol in product((12, 16, 20, 32), (3e-2, 1e-2, 1e-3)))
    estimators = ("hutchinson", "xtrace")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        parameters, data = list(self.module.parameters()), [(self.inputs, self.targets)]
        options = {"num_data": len(self.inputs), "check_deterministic": False}
        self.hessian = InBlocks(self.module, nn.CrossEntropyLoss(), parameters, data, **options)

    def eigenpairs(self, **settings: Any) -> Pairs:
        values, vectors = eigsh(self.hessian.to_scipy(), k=TOP, which="LA", **settings)
        return values.tolist(), list(torch.from_numpy(vectors.T).to(self.inputs))

    def trace(self, probes: int, estimator: str = "hutchinson") -> float:
        return float({"xtrace": xtrace, "hutchinson": hutchinson_trace}[estimator](self.hessian, probes))


class Autograd(Rival):
    """What a careful user writes without a library: eigsh on products through a retained graph, as in plain.py."""

    settings = Curvlinops.settings

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.products = products_of(self.module, self.inputs, self.targets)
        self.dimension = sum(p.numel() for p in self.module.parameters())

    def eigenpairs(self, **settings: Any) -> Pairs:
        def matvec(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return self.products(torch.from_numpy(v.reshape(-1)).to(self.inputs)).cpu().numpy()

        operator = LinearOperator((self.dimension, self.dimension), matvec=matvec, dtype=np.float32)
        values, vectors = eigsh(operator, k=TOP, which="LA", **settings)
        return values.tolist(), list(torch.from_numpy(vectors.T).to(self.inputs))

    def trace(self, probes: int, estimator: str = "hutchinson") -> float:
        signs = (2.0 * torch.randint(2, (self.dimension,)).to(self.inputs) - 1 for _ in range(probes))
        return mean(float(v @ self.products(v)) for v in signs)


RIVALS: dict[str, type[Rival]] = {"pyhessian": PyHessian, "curvlinops": Curvlinops, "autograd": Autograd}
