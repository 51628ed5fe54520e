"""What is measured and when. Imports neither torch nor ray."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from trainables.schedules import Timeline
from trainables.trial import canonical_json, content_id

STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class At(BaseModel):
    """Moments by rule; several rules add up."""

    model_config = STRICT
    every: Annotated[float, Field(ge=1e-3)] | None = None  # epochs between moments
    log: Annotated[int, Field(ge=1, le=40)] | None = None  # so many, halving back from the endpoint: end, end/2, ...
    early_steps: Annotated[int, Field(ge=1)] | None = None  # steps 1, 2, 4, ... up to this one

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.every is None and self.log is None and self.early_steps is None:
            raise ValueError("at least one of every, log and early_steps is needed")
        return self

    def epochs(self, end: float) -> list[float]:
        """Epochs strictly between the start and ``end``."""
        regular = [k * self.every for k in range(1, int(end / self.every) + 1)] if self.every else []
        halving = [end / 2**k for k in range(1, self.log or 1)]
        return [e for e in (*regular, *halving) if e < end]

    def steps(self) -> list[int]:
        """Early steps: powers of two."""
        return [2**k for k in range((self.early_steps or 0).bit_length())]


Moments = list[Annotated[float, Field(ge=0)]] | At
"""Epochs, or rules; the start and the endpoint are always among them."""

Own = Moments | None
"""Moments of one group of statistics; None: those of ``measure.at``."""


def _default_for_true(value: Any) -> Any:
    return {} if value is True else value


Switch = BeforeValidator(_default_for_true)
"""A group's settings, or true for its defaults, or false."""


class Density(BaseModel):
    """Spectral density by stochastic Lanczos quadrature."""

    model_config = STRICT
    probes: Annotated[int, Field(ge=1, le=1000)] = 4  # random start vectors, one quadrature rule each
    steps: Annotated[int, Field(ge=2, le=2000)] = 40  # nodes of each rule
    z: Annotated[float, Field(gt=0)] = 1.0  # of the effective dimension, sum of lambda / (lambda + z)


class Hessian(BaseModel):
    """How curvature is measured; every setting enters ``measure_id``."""

    model_config = STRICT
    at: Own = None
    top: Annotated[int, Field(ge=1, le=100)] = 5  # eigenvalues at the upper end
    bottom: Annotated[int, Field(ge=0, le=100)] = 1  # eigenvalues at the lower end
    trace_probes: Annotated[int, Field(ge=1, le=100_000)] = 32  # Rademacher vectors
    examples: Annotated[int, Field(ge=1)] = 1024  # of the trial's own training set, the same for every trial
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-3  # residual of each eigenvalue, relative to |lambda|_max
    max_iterations: Annotated[int, Field(ge=2, le=2000)] = 100  # Lanczos steps
    sgd_steps: Annotated[int, Field(ge=0, le=1000)] = 0  # next SGD steps to compare with the top eigenvectors
    density: Annotated[Density | Literal[False], Switch] = False


class GradientNoise(BaseModel):
    """How the covariance C of per-example gradients is measured, on the examples of ``hessian``."""

    model_config = STRICT
    at: Own = None
    lambda_max: bool = False  # largest eigenvalue of C
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-3  # its residual, relative to it
    max_iterations: Annotated[int, Field(ge=2, le=2000)] = 100  # Lanczos steps for it
    probes: Annotated[int, Field(ge=0, le=100_000)] = 0  # Rademacher vectors for the alignment of C with H; 0: none


class CriticalSamples(BaseModel):
    """Langevin adversarial sample search (Arpit et al. 2017).

    The box is in units of the inputs as the net sees them, most often standard deviations of a pixel, the rest in units
    of the box. The paper: radius 0.3 on a scale of 0 to 255, step 0.25 / 0.3, noise 0.2 / 0.3.
    """

    model_config = STRICT
    at: Own = None
    examples: Annotated[int, Field(ge=1)] = 256  # test examples
    radius: Annotated[float, Field(gt=0)] = 0.1  # r: half the width of the box around an example
    step: Annotated[float, Field(gt=0)] = 0.83  # alpha / r: along the sign of the gradient
    noise: Annotated[float, Field(ge=0)] = 0.67  # beta / r: standard deviation of the Gaussian noise
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 20


class Moment(NamedTuple):
    """When something is measured, and what."""

    epoch: float
    due: Measure


class Measure(BaseModel):
    """The ``measure`` section of a sweep file.

    Losses, accuracies and the like are measured whenever anything is; each other group has moments of its own.
    """

    model_config = STRICT
    at: Moments = At(every=5)
    hessian: Annotated[Hessian | Literal[False], Switch] = Hessian()
    gradient_noise: Annotated[GradientNoise | Literal[False], Switch] = GradientNoise()
    critical_samples: Annotated[CriticalSamples | Literal[False], Switch] = False
    endpoints: bool = False  # keep the trained parameters
    metrics: tuple[str, ...] = ()  # plug-ins, "package.module:callable"

    @field_validator("metrics", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _metrics_are_plugins(self) -> Self:
        if bad := [m for m in self.metrics if ":" not in m]:
            raise ValueError(f"a metric is named as package.module:callable, not {bad[0]!r}")
        return self

    @model_validator(mode="after")
    def _alignment_needs_curvature(self) -> Self:
        if self.gradient_noise and self.gradient_noise.probes and not self.hessian:
            raise ValueError("gradient_noise.probes: the alignment of C with H needs hessian, which is off")
        return self

    def moments(self, timeline: Timeline) -> dict[int, Moment]:
        """Steps at which anything is measured, ascending: their epochs, and these settings without what is not due.

        An epoch falls on the step before which the examples seen are nearest to it. Of epochs that fall on one step
        the first counts; on the last step, the endpoint.
        """
        common = _when(self.at, timeline)
        own: dict[str, dict[int, float]] = {}
        for name in GROUPS:
            group = getattr(self, name)
            if group and group.at is not None:
                own[name] = _when(group.at, timeline)
        epochs: dict[int, float] = {}
        for step, epoch in sorted((s, e) for when in (common, *own.values()) for s, e in when.items()):
            epochs.setdefault(step, epoch)
        epochs[timeline.steps] = timeline.end
        found = {}
        for step, epoch in sorted(epochs.items()):
            idle: dict[str, Any] = {n: False for n in GROUPS if step not in own.get(n, common)}
            idle |= {} if step in common else {"metrics": ()}
            found[step] = Moment(epoch, self.model_copy(update=idle))
        return found

    @property
    def measure_id(self) -> str:
        """Identity of these settings, defaults resolved."""
        return content_id(canonical_json(self.model_dump(mode="json")))


GROUPS = ("hessian", "gradient_noise", "critical_samples")
"""Statistics with moments of their own."""


def _when(at: Moments, timeline: Timeline) -> dict[int, float]:
    """Steps and their epochs, the start and the endpoint included."""
    last, end = timeline.steps, timeline.end
    epochs = at if isinstance(at, list) else at.epochs(end)
    early = [] if isinstance(at, list) else at.steps()
    found = {last: end}
    for epoch in sorted({0.0, *(e for e in epochs if e < end)}):
        found.setdefault(timeline.step_at(epoch), epoch)
    for step in early:
        if step < last:
            found.setdefault(step, timeline.epoch(step))
    return found
