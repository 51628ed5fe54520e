"""What is measured and when. Imports neither torch nor ray."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainables.trial import canonical_json, content_id

STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Every(BaseModel):
    """Every ``every`` epochs."""

    model_config = STRICT
    every: Annotated[float, Field(ge=1e-3)]

    def epochs(self, end: float) -> list[float]:
        """Measurement epochs strictly before ``end``."""
        return [k * self.every for k in range(1, int(end / self.every) + 1) if k * self.every < end]


class Log(BaseModel):
    """``log`` epochs, halving back from the endpoint: end, end/2, end/4, ..."""

    model_config = STRICT
    log: Annotated[int, Field(ge=1, le=40)]

    def epochs(self, end: float) -> list[float]:
        """Measurement epochs strictly before ``end``."""
        return [end / 2**k for k in range(self.log - 1, 0, -1)]


class Hessian(BaseModel):
    """How curvature is measured; every setting enters ``measure_id``."""

    model_config = STRICT
    top: Annotated[int, Field(ge=1, le=100)] = 5  # eigenvalues at the upper end
    trace_probes: Annotated[int, Field(ge=1, le=100_000)] = 32  # Rademacher vectors
    examples: Annotated[int, Field(ge=1)] = 1024  # of the trial's own training set, the same for every trial
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-3  # residual of each eigenvalue, relative to |lambda|_max
    max_iterations: Annotated[int, Field(ge=2, le=2000)] = 100  # Lanczos steps


class Measure(BaseModel):
    """The ``measure`` section of a sweep file."""

    model_config = STRICT
    at: list[Annotated[float, Field(ge=0)]] | Every | Log = Every(every=5)
    hessian: Hessian | Literal[False] = Hessian()
    metrics: tuple[str, ...] = ()  # plug-ins, "package.module:callable"

    @field_validator("metrics", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _metrics_are_plugins(self) -> Measure:
        if bad := [m for m in self.metrics if ":" not in m]:
            raise ValueError(f"a metric is named as package.module:callable, not {bad[0]!r}")
        return self

    def epochs(self, end: float) -> list[float]:
        """All measurement epochs, ascending, the start and the endpoint included."""
        between = self.at if isinstance(self.at, list) else self.at.epochs(end)
        return sorted({0.0, end, *(e for e in between if e < end)})

    def steps(self, end: float, examples: int, batch_size: int) -> dict[int, float]:
        """Measurement steps and their epochs: epoch e falls on step round(e * examples / batch_size).

        Of epochs that fall on one step the first counts; on the last step, the endpoint.
        """
        moments: dict[int, float] = {}
        for epoch in self.epochs(end):
            moments.setdefault(step_of(epoch, examples, batch_size), epoch)
        return moments | {step_of(end, examples, batch_size): end}

    @property
    def measure_id(self) -> str:
        """Identity of these settings, defaults resolved."""
        return content_id(canonical_json(self.model_dump(mode="json")))


def step_of(epoch: float, examples: int, batch_size: int) -> int:
    """The step at which ``epoch`` epochs of ``examples`` examples have been seen."""
    return round(epoch * examples / batch_size)
