"""The sweep file: its model, how it is read, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator

from analysis.claims import claims_of
from orchestrator.axes import check_value, expand_axis
from orchestrator.controls import Controls, NoiseFree
from orchestrator.explain import did_you_mean, explain, unknown_key
from orchestrator.grid import COLUMNS, RATES, Axes, Finding, findings
from orchestrator.source import Place, Problem, Source, SweepFileError, read
from trainables.checkpoint import CHECKPOINT_SECONDS
from trainables.registry import batch_statistics, can_fuse, resolve
from trainables.resources import PACK_MEMORY, Prices, Resources, with_gpus
from trainables.settings import GROUPS, STRICT, At, CriticalSamples, Density, GradientNoise, Hessian, Measure
from trainables.statistics import ERROR_COLUMN, OF_ENDPOINT
from trainables.store import SWEEP_NAME
from trainables.trial import Trial

__all__ = ["SweepFile", "SweepFileError", "init", "load"]

STARTER = Path(__file__).with_name("starter.yaml")

Engine = Literal["auto", "loop", "vmap", "fused"]


def _checked_claims(expected: dict[str, Any]) -> dict[str, Any]:
    claims_of(expected)
    return expected


class Packing(BaseModel):
    """How trials are trained together, and what a step may hold in memory."""

    model_config = STRICT
    max_trials: Annotated[int, Field(ge=1, le=4096)] = 64
    engine: Engine = "auto"
    memory: Annotated[float, Field(gt=0)] = PACK_MEMORY  # GiB for what the trials of a pack keep during a step
    physical_batch_size: Annotated[int, Field(ge=1)] | None = None  # examples in one forward pass; null: as fits memory
    checkpoint_seconds: Annotated[float, Field(ge=0)] = CHECKPOINT_SECONDS  # between two checkpoints


def _growing(looks: list[int]) -> list[int]:
    if any(after <= before for before, after in pairwise(looks)):
        raise ValueError(f"{looks} should grow: numbers of seeds, each more than the one before")
    return looks


class SweepFile(BaseModel):
    """A sweep file that is right, every value checked and every axis written out.

    Attributes:
        dataset: name or canonical JSON; None where it is an axis of the grid.
        train: fixed settings of the trials, fields of ``Trial`` or ``ratio``.
        grid: axes, likewise.
        where: SQL condition over the points of the grid.
        margins: metric -> equivalence margin.
        looks: numbers of seeds at which verdicts are taken; the error is spent over them.
        controls: trials to add; see :mod:`orchestrator.controls`.
        expect: what is expected of the trials; see :mod:`analysis.claims`.
        resources: what each pack takes; see :mod:`trainables.resources`.
        prices: what that costs; they change nothing but what is said of it.
        retries: how often a trial that failed is tried again.
    """

    model_config = STRICT
    name: Annotated[str, Field(pattern=f"^{SWEEP_NAME.pattern}$")]
    dataset: str | None = None
    train: dict[str, Any] = {}
    grid: dict[str, list[Any]]
    where: str | None = None
    measure: Measure = Measure()
    margins: dict[str, Annotated[float, Field(gt=0)]] = {}
    looks: Annotated[list[Annotated[int, Field(ge=4)]], AfterValidator(_growing)] = []
    controls: Controls = Controls()
    expect: list[Annotated[dict[str, Any], AfterValidator(_checked_claims)]] = []
    pack: Packing = Packing()
    resources: Resources = Resources()
    prices: Prices = Prices()
    retries: Annotated[int, Field(ge=0, le=100)] = 2
    _source: Source = PrivateAttr()

    @field_validator("resources", mode="before")
    @classmethod
    def _gpus_written_out(cls, given: Any, info: ValidationInfo) -> Any:
        return with_gpus(given, info.data.get("pack", Packing()).memory)

    @property
    def text(self) -> str:
        """The file as it was read."""
        return self._source.text

    @property
    def suffix(self) -> str:
        """``.toml``, or ``.yaml`` for any other name of the file."""
        return ".toml" if self._source.path.suffix == ".toml" else ".yaml"

    @property
    def axes(self) -> Axes:
        """The values of every field of the trials, defaults included; of lr, batch_size and ratio the two given."""
        return _axes({"dataset": self.dataset} | self.train, self.grid)


def load(path: str | Path, text: str | None = None) -> SweepFile:
    """Reads and checks a sweep file, YAML 1.2 or TOML.

    Args:
        path: where it is, and how messages call it.
        text: what it holds, where that is known.

    Raises:
        SweepFileError: with everything that is wrong, each at its line and column.
    """
    source = read(Path(path), text)
    data = {key: value for key, value in source.data.items() if value is not None}
    settings = _Settings(source, data)
    problems = [*source.problems, *settings.problems, *_metrics(source, data), *_judged(source, data)]
    sweep = None
    try:
        sweep = SweepFile.model_validate(data | settings.checked)
    except ValidationError as error:
        problems += explain(error, source, _SECTIONS, _UNIONS)
    if not settings.problems and "grid" in settings.checked:
        problems += settings.findings(data)
    if problems or sweep is None:
        raise SweepFileError(source.path, problems)
    sweep._source = source
    return sweep


def init(file: str | Path = "sweep.yaml") -> Path:
    """Writes a commented starter sweep file.

    Raises:
        FileExistsError: the file is there already; it stays as it is.
    """
    path = Path(file)
    try:
        with path.open("x", encoding="utf-8") as written:
            written.write(STARTER.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise FileExistsError(f"{path} is there already: name another file") from error
    return path


_MOMENTS: list[Place] = [("measure", "at"), *(("measure", group, "at") for group in GROUPS)]
_SECTIONS: dict[Place, list[str]] = {
    (): list(SweepFile.model_fields),
    ("measure",): list(Measure.model_fields),
    **{place: list(At.model_fields) for place in _MOMENTS},
    ("measure", "hessian"): list(Hessian.model_fields),
    ("measure", "hessian", "density"): list(Density.model_fields),
    ("measure", "gradient_noise"): list(GradientNoise.model_fields),
    ("measure", "critical_samples"): list(CriticalSamples.model_fields),
    ("resources",): list(Resources.model_fields),
    ("prices",): list(Prices.model_fields),
    ("pack",): list(Packing.model_fields),
    ("controls",): list(Controls.model_fields),
    ("controls", "noise_free"): list(NoiseFree.model_fields),
}
_UNIONS: dict[Place, str] = {
    ("controls", "noise_free"): "a mapping of batch_size, or true or false",
    **dict.fromkeys(_MOMENTS, "a list of epochs, or a mapping of every, log, early_steps"),
    **{
        place: f"a mapping of {', '.join(keys)}, or true or false"
        for place, keys in _SECTIONS.items()
        if place[:1] == ("measure",) and place[-1] in {*GROUPS, "density"}
    },
}
_ALIASES = {"steps": "max_steps"}  # a column of `trials` already says how many steps were taken
_TRAIN = [name for name in COLUMNS if name != "dataset"]
_LENGTHS = ("epochs", "max_steps")
_JUDGED = [*ERROR_COLUMN, *OF_ENDPOINT, "loss_gap", "accuracy_gap", "stability"]


class _Settings:
    """``dataset``, ``train`` and ``grid``: what is right in them, and what is wrong.

    Attributes:
        checked: the sections, with every value checked and every axis written out.
        problems: found on the way.
    """

    def __init__(self, source: Source, data: dict[str, Any]) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.checked: dict[str, Any] = {}
        if "dataset" in data:
            self.checked["dataset"] = self._value(("dataset",), "dataset", data["dataset"])
        if isinstance(train := data.get("train"), dict):
            self.checked["train"] = self._train(train)
        if isinstance(grid := data.get("grid"), dict):
            self.checked["grid"] = self._grid(grid)
            self._together(data)

    def axes(self) -> Axes:
        """The values of every field."""
        fixed = {"dataset": self.checked.get("dataset")} | self.checked.get("train", {})
        return _axes(fixed, self.checked["grid"])

    def findings(self, data: dict[str, Any]) -> list[Problem]:
        """What is wrong with the grid as a whole."""
        axes, where = self.axes(), data.get("where")
        found = findings(axes, where if isinstance(where, str) else None)
        problems = [self.source.problem(self._place(f), f.text) for f in found]
        pack = data.get("pack")
        problems += self._whole_batches(axes, pack) if isinstance(pack, dict) else []
        if isinstance(pack, dict) and pack.get("engine") == "fused":
            unfit = [(a, loss) for a in axes["arch"] for loss in axes["loss"] if not can_fuse(a, loss)]
            if unfit:
                text = "pack.engine: 'fused' is for arch linear or mlp with loss cross_entropy or mse"
                text = f"{text}, not {unfit[0][0]} with {unfit[0][1]}; auto picks what fits"
                problems.append(self.source.problem(("pack", "engine"), text))
        return problems

    def _whole_batches(self, axes: Axes, pack: dict[str, Any]) -> list[Problem]:
        """A minibatch whose statistics a net uses cannot be cut."""
        physical = pack.get("physical_batch_size")
        coupled = [arch for arch in axes["arch"] if batch_statistics(arch) is None]
        if not isinstance(physical, int) or not coupled:
            return []
        text = (
            f"pack.physical_batch_size: {coupled[0]} normalizes over the whole minibatch, which cannot be cut without "
            f"changing it; set ghost_batch to {physical} for statistics of parts, or another norm"
        )
        return [self.source.problem(("pack", "physical_batch_size"), text)]

    def _place(self, finding: Finding) -> Place:
        grid, field = self.checked["grid"], finding.field
        if field == "batch_size" and field not in grid and field not in self.checked.get("train", {}):
            field = "lr"
        if field in grid:
            values = grid[field]
            return ("grid", field, values.index(finding.value) if finding.value in values else 0)
        return (field,) if field in {"grid", "where"} else ("train", field)

    def _train(self, section: dict[str, Any]) -> dict[str, Any]:
        checked = {}
        for key, value in section.items():
            place, field = ("train", key), _ALIASES.get(key, key)
            if field not in _TRAIN:
                self._report(place, f"train: {unknown_key(field, _TRAIN)}", on_key=True)
            elif isinstance(value, list) or (isinstance(value, dict) and "name" not in value and field != "schedule"):
                self._report(place, f"train.{field}: one value is needed; an axis stands under grid")
            else:
                checked[field] = self._value(place, field, value)
        return checked

    def _grid(self, section: dict[str, Any]) -> dict[str, list[Any]]:
        checked: dict[str, list[Any]] = {}
        for key, axis in section.items():
            place, field = ("grid", key), _ALIASES.get(key, key)
            if field not in COLUMNS:
                self._report(place, f"grid: {unknown_key(field, COLUMNS)}", on_key=True)
                continue
            try:
                values = expand_axis(axis)
            except ValueError as error:
                self._report(place, f"grid.{field}: {error}")
                continue
            checked[field] = []
            for i, value in enumerate(values):
                before = len(self.problems)
                checked[field].append(self._value((*place, i), field, value))
                if len(self.problems) > before and not isinstance(axis, list):
                    break  # the other values of a rule are no better, and stand nowhere in the file
        return checked

    def _together(self, data: dict[str, Any]) -> None:
        """Rules about which settings are given, and where."""
        train, grid = data.get("train"), data["grid"]
        fixed = [*(train if isinstance(train, dict) else []), *(["dataset"] if "dataset" in data else [])]
        for field in fixed:
            if field in grid:
                section = "as a setting of all trials" if field == "dataset" else "under train"
                self._report(("grid", field), f"grid.{field}: also given {section}; keep one of the two", on_key=True)
        if "dataset" not in data and "dataset" not in grid:
            self._report((), "dataset is required: a built-in name or package.module:callable")
        for alias, field in _ALIASES.items():
            if {alias, field} <= {*fixed, *grid}:
                place = ("grid" if alias in grid else "train", alias)
                self._report(place, f"{'.'.join(place)}: {field} is the same and given, too; keep {alias}", on_key=True)
        if {*_LENGTHS} <= {_ALIASES.get(key, key) for key in (*fixed, *grid)}:
            self._report((), "epochs and steps are both given: one of them says how long a trial is")
        rates = [name for name in RATES if name in fixed or name in grid]
        if len(rates) != 2:
            text = f"two of {', '.join(RATES)} are needed (ratio = lr / batch_size), here or under train"
            self._report(("grid",), f"grid: {text}; given: {', '.join(rates) or 'none'}")

    def _value(self, place: Place, field: str, value: Any) -> Any:
        try:
            if value is None and field in _LENGTHS:
                raise ValueError("a number is needed")
            return check_value(field, value)
        except ValueError as error:
            self._report(place, f"{'.'.join(str(p) for p in place if isinstance(p, str))}: {error}")
            return None

    def _report(self, place: Place, text: str, *, on_key: bool = False) -> None:
        self.problems.append(self.source.problem(place, text, on_key=on_key))


def _axes(fixed: dict[str, Any], grid: dict[str, list[Any]]) -> Axes:
    defaults = {name: field.default for name, field in Trial.model_fields.items() if not field.is_required()}
    if "max_steps" in fixed or "max_steps" in grid:
        defaults["epochs"] = None
    return {field: [value] for field, value in (defaults | fixed).items()} | grid


def _metrics(source: Source, data: dict[str, Any]) -> Iterator[Problem]:
    """Plug-in metrics that cannot be found."""
    measure = data.get("measure")
    given = measure.get("metrics") if isinstance(measure, dict) else None
    for i, metric in enumerate(given if isinstance(given, list) else [given]):
        if isinstance(metric, str):
            try:
                resolve("metric", metric)
            except ValueError as error:
                yield source.problem(("measure", "metrics", i), f"measure.metrics: {error}")


def _judged(source: Source, data: dict[str, Any]) -> Iterator[Problem]:
    """Margins and claims of metrics that nothing measures; with a plug-in any name may be one."""
    plugged = (("measure", "metrics"), ("train", "call"), ("grid", "call"))
    if any(isinstance(data.get(section), dict) and key in data[section] for section, key in plugged):
        return
    margins, expect = data.get("margins"), data.get("expect")
    for metric in margins if isinstance(margins, dict) else ():
        if metric not in _JUDGED:
            yield source.problem(("margins", metric), f"margins: {unknown_key(metric, _JUDGED)}", on_key=True)
    for i, entry in enumerate(expect if isinstance(expect, list) else ()):
        metric = entry.get("metric") if isinstance(entry, dict) else None
        if isinstance(metric, str) and metric not in _JUDGED:
            text = f"expect.{i}.metric: {metric!r} is not measured: known are {', '.join(_JUDGED)}"
            yield source.problem(("expect", i, "metric"), text + did_you_mean(metric, _JUDGED))
