"""Reading sweep files: what is right, and every way to be wrong, with its place and its words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.source import read
from orchestrator.sweepfile import SweepFile, SweepFileError, init, load
from trainables.schedules import timeline
from trainables.settings import GROUPS, At, CriticalSamples, Density, GradientNoise, Hessian, Measure

ROOT = Path(__file__).parents[2]

RIGHT = """\
name: s
dataset: digits
grid:
  lr: [0.1]
  batch_size: [8]
"""  # a test appends from line 6 on

FULL = """\
name: full
dataset: {name: teacher, train_size: 256}
train:
  epochs: 2
  loss: mse
  momentum: 0.5
grid:
  arch: [mlp, {name: mlp, depth: 4, width: 16}]
  ratio: {logspace: [1.0e-3, 4.0e-3, 3]}
  batch_size: [8, 16]
  label_noise: {linspace: [0.0, 0.5, 2]}
  seed: {range: [1, 3]}
where: "lr < 0.05 or batch_size = 8"
measure:
  at: {every: 0.5}
  hessian: {top: 3, trace_probes: 16, examples: 128}
margins: {test_loss: 0.1}
resources: {cpu: 0.5, gpu: 0}
pack: {max_trials: 32, engine: loop}
retries: 1
"""

FULL_TOML = """\
name = "full"           # the same, in TOML
where = "lr < 0.05 or batch_size = 8"
retries = 1
margins.test_loss = 0.1

[dataset]
name = "teacher"
train_size = 256

[train]
epochs = 2
loss = "mse"
momentum = 0.5

[grid]
ratio = { logspace = [1.0e-3, 4.0e-3, 3] }
batch_size = [
  8,
  16,
]
label_noise.linspace = [0.0, 0.5, 2]
seed = { range = [1, 3] }

[[grid.arch]]
name = "mlp"

[[grid.arch]]
name = "mlp"
depth = 4
width = 16

[measure]
at = { every = 0.5 }
hessian = { top = 3, trace_probes = 16, examples = 128 }

[resources]
cpu = 0.5
gpu = 0

[pack]
max_trials = 32
engine = "loop"
"""


def _load(folder: Path, text: str, name: str = "s.yaml") -> SweepFile:
    path = folder / name
    path.write_text(text)
    return load(path)


def _problems(folder: Path, text: str, name: str = "s.yaml") -> list[str]:
    """``line:column: text`` of each problem."""
    with pytest.raises(SweepFileError) as caught:
        _load(folder, text, name)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.problems)
    assert all(line.startswith(f"{folder / name}:") for line in lines)
    return [line.removeprefix(f"{folder / name}:") for line in lines]


def test_everything_is_read(tmp_path: Path) -> None:
    sweep = _load(tmp_path, FULL)
    assert sweep.dataset == '{"name":"teacher","train_size":256}'
    assert sweep.train == {"epochs": 2.0, "loss": "mse", "momentum": 0.5}
    assert sweep.grid == {
        "arch": ["mlp", '{"depth":4,"name":"mlp","width":16}'],
        "ratio": [0.001, 0.002, 0.004],
        "batch_size": [8, 16],
        "label_noise": [0.0, 0.5],
        "seed": [1, 2],
    }
    assert sweep.where == "lr < 0.05 or batch_size = 8"
    assert [m.epoch for m in sweep.measure.moments(timeline("constant", 8, 256, 2.0, None)).values()] == [
        0.0,
        0.5,
        1.0,
        1.5,
        2.0,
    ]
    assert (sweep.resources.cpu, sweep.resources.gpu) == (0.5, 0.0)
    assert (sweep.pack.max_trials, sweep.pack.engine, sweep.retries) == (32, "loop", 1)
    assert sweep.margins == {"test_loss": 0.1}
    assert (sweep.text, sweep.suffix) == (FULL, ".yaml")


def test_defaults(tmp_path: Path) -> None:
    sweep = _load(tmp_path, RIGHT)
    assert (sweep.pack.max_trials, sweep.pack.engine, sweep.retries) == (64, "auto", 2)
    assert (sweep.resources.cpu, sweep.resources.gpu) == (1.0, 0.0)
    assert sweep.axes["epochs"] == [20.0]
    assert sweep.axes["arch"] == ["mlp"]


def test_toml_is_the_same_sweep(tmp_path: Path) -> None:
    yaml, toml = _load(tmp_path, FULL), _load(tmp_path, FULL_TOML, "s.toml")
    assert toml.model_dump() == yaml.model_dump()
    assert toml.axes == yaml.axes
    assert toml.suffix == ".toml"


def test_yaml_1_2_and_not_1_1(tmp_path: Path) -> None:
    """``1e-3`` is a number, ``no`` and ``on`` are words, ``012`` is twelve; dates are refused where words are meant."""
    sweep = _load(tmp_path, RIGHT.replace("[0.1]", "[1e-3, 1E-2, .5, 1.]").replace("[8]", "[012, 0x10]"))
    assert sweep.grid["lr"] == [0.001, 0.01, 0.5, 1.0]
    assert sweep.grid["batch_size"] == [12, 16]
    assert _load(tmp_path, RIGHT.replace("name: s", "name: no")).name == "no"
    assert _load(tmp_path, RIGHT.replace("name: s", "name: on")).name == "on"
    assert "1:7: name: datetime.date(2024, 1, 2) should be a valid string" in _problems(
        tmp_path, RIGHT.replace("name: s", "name: 2024-01-02")
    )


def test_empty_sections_are_left_out(tmp_path: Path) -> None:
    assert _load(tmp_path, RIGHT + "train:\nmargins:  # none yet\nwhere: ~\n").train == {}


def test_anchors_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeff" + RIGHT + "train: &t {epochs: 3}\nmeasure: {at: &at [1, 2], hessian: false}\n"
    assert _load(tmp_path, text).measure.at == [1, 2]


def test_dataset_may_be_an_axis(tmp_path: Path) -> None:
    text = RIGHT.replace("dataset: digits\n", "") + "  dataset: [digits, {name: teacher, train_size: 64}]\n"
    assert _load(tmp_path, text).axes["dataset"] == ["digits", '{"name":"teacher","train_size":64}']


def test_any_setting_may_be_fixed(tmp_path: Path) -> None:
    fixed = "{lr: 0.1, batch_size: 8, seed: 3, arch: linear, label_noise: 0.5}"
    axes = _load(tmp_path, f"name: s\ndataset: digits\ntrain: {fixed}\ngrid: {{}}\n").axes
    expected = {"lr": [0.1], "batch_size": [8], "seed": [3], "arch": ["linear"], "label_noise": [0.5]}
    assert {field: axes[field] for field in expected} == expected


WRONG_LINES = {
    # what stands in line 6, and what is said of it
    "naem: x": "6:1: unknown key 'naem': allowed are name, dataset, train, grid, .*; did you mean 'name'?",
    "1: x": "6:1: unknown key '1': allowed are name",
    "name: t": "6:1: duplicate key 'name', first given in line 1: keep one",
    "train: {epochs: 2, epochs: 3}": "6:20: duplicate key 'epochs', first given in line 6: keep one",
    "train: [2]": r"6:8: train: \[2\] should be a valid mapping",
    "train: {epohcs: 2}": "6:9: train: unknown key 'epohcs': allowed are arch, .*, ratio; did you mean 'epochs'?",
    "train: {dataset: digits}": "6:9: train: unknown key 'dataset': allowed are",
    "train: {epochs: 0}": "6:17: train.epochs: 0 should be greater than 0",
    "train: {epochs: '2'}": "6:17: train.epochs: '2' should be a valid number",
    "train: {momentum: 1.0}": "6:19: train.momentum: 1 should be less than 1",
    "train: {sampler: steram}": "6:18: train.sampler: 'steram' should be 'stream', .*; did you mean 'stream'?",
    "train: {label_noise: -0.1}": "6:22: train.label_noise: -0.1 should be greater than or equal to 0",
    "train: {seed: [1, 2]}": "6:15: train.seed: one value is needed; an axis stands under grid",
    "train: {seed: {range: 3}}": "6:15: train.seed: one value is needed; an axis stands under grid",
    "train: {batch_size: 8}": "5:3: grid.batch_size: also given under train; keep one of the two",
    "train: {ratio: 0.1}": (
        r"4:3: grid: two of lr, batch_size, ratio are needed \(ratio = lr / batch_size\), here or under train; "
        "given: lr, batch_size, ratio"
    ),
    "train: {epochs: 1.0e-4}": "6:17: 0.0001 epochs of 1437 examples are not one step at batch size 8: more than 0",
    "train: {loss: {name: mse, p: 1}}": "6:15: train.loss: loss 'mse': parameter 'p': .*; it takes none",
    "  arch: [mlp, mlpp]": "6:15: grid.arch: unknown arch 'mlpp': .*; did you mean 'mlp'?",
    "  arch: [{name: mlp, dept: 4}]": "6:10: grid.arch: arch 'mlp': parameter 'dept': .*; did you mean 'depth'?",
    "  arch: ['no_such_module:net']": "6:10: grid.arch: cannot import 'no_such_module' for 'no_such_module:net'",
    "  arch: ['json:dmps']": "6:10: grid.arch: module 'json' has no 'dmps'; did you mean 'dumps'?",
    "  seeed: [1]": "6:3: grid: unknown key 'seeed': allowed are arch, dataset, .*; did you mean 'seed'?",
    "  seed: 8": "6:9: grid.seed: 8 is no axis: an axis is a list, .*; a single value stands in a list, or under train",
    "  seed: {rage: 8}": "6:9: grid.seed: unknown rule 'rage': an axis is a list, .*; did you mean 'range'?",
    "  seed: {range: [0, 3.5]}": "6:9: grid.seed: range takes n, .* all integers, not",
    "  seed: [1, two]": "6:13: grid.seed: 'two' should be a valid integer",
    "  seed: [1, yes]": "6:13: grid.seed: 'yes' should be a valid integer",
    "  label_noise: {linspace: [0, 2, 5]}": "6:16: grid.label_noise: 1.5 should be less than or equal to 1",
    "  dataset: [digits]": "6:3: grid.dataset: also given as a setting of all trials; keep one of the two",
    "  seed: {range: 4000}\n  order_seed: {range: 4000}": (
        "4:3: the grid has 16,000,000 points: at most 10,000,000 are allowed"
    ),
    "where: [1]": r"6:8: where: \[1\] should be a valid string",
    "where: lrr < 1": "6:8: unknown column 'lrr': columns are arch, dataset, lr, .*, ratio; did you mean 'lr'?",
    "where: lambda_max < 1": "6:8: unknown column 'lambda_max': columns are arch",
    "where: lr <": "6:8: not a condition in SQL: Parser Error: syntax error",
    "where: lr < 1; DROP TABLE points": "6:8: not a condition in SQL",
    "where: lr < 1, lr < 2": "6:8: not a condition in SQL",
    "where: max(lr) < 1": "6:8: not a condition in SQL: Binder Error",
    "where: row_number() over () < 3": "6:8: not a condition in SQL: Binder Error",
    "where: lr": "6:8: should be one condition, true or false; this is DOUBLE",
    "where: random() < 0.5": r"6:8: random\(\) gives something else each time: the points of a grid must not change",
    "where: lr IN (SELECT lr FROM '/etc/passwd')": "6:8: not a condition in SQL: Catalog Error",
    "where: lr IN (SELECT lr FROM '/tmp/x.parquet')": "6:8: not a condition in SQL: Permission Error",
    "where: lr IN (SELECT column0 FROM read_csv('/etc/passwd'))": "6:8: not a condition in SQL: Permission Error",
    "where: arch::INTEGER < 3": "6:8: the condition cannot be evaluated: Conversion Error",
    "where: lr > 1": "6:8: no point is left: the condition holds for none of 1",
    "measure: {att: [1]}": "6:11: measure: unknown key 'att': allowed are at, hessian, .*, metrics; did you mean 'at'?",
    "measure: {at: 5}": "6:15: measure.at: should be a list of epochs, or a mapping of every, log, early_steps$",
    "measure: {at: {evry: 5}}": "6:16: measure.at: unknown key 'evry': allowed are every, .*; did you mean 'every'?",
    "measure: {at: {}}": "6:15: measure.at: at least one of every, log and early_steps is needed",
    "measure: {at: {every: 0}}": "6:23: measure.at.every: 0 should be greater than or equal to 0.001",
    "measure: {at: [1, -2]}": "6:19: measure.at.1: -2 should be greater than or equal to 0",
    "measure: {hessian: 3}": "6:20: measure.hessian: should be a mapping of at, top, .*, density, or true or false$",
    "measure: {hessian: {tpo: 3}}": "6:21: measure.hessian: unknown key 'tpo': .*; did you mean 'top'?",
    "measure: {hessian: {top: 0}}": "6:26: measure.hessian.top: 0 should be greater than or equal to 1",
    "measure: {metrics: ['no_such_module:m']}": "6:21: measure.metrics: cannot import 'no_such_module'",
    "margins: 3": "6:10: margins: 3 should be a valid mapping",
    "margins: {test_loss: 0}": "6:22: margins.test_loss: 0 should be greater than 0",
    "margins: {tset_loss: 1}": "6:11: margins: unknown key 'tset_loss': .*; did you mean 'test_loss'?",
    "expect: [{metric: lambda_mx, ratio: decreasing}]": "6:19: expect.0.metric: .*; did you mean 'lambda_max'?",
    "expect: [{metric: lambda_max, ratio: falling}]": "6:10: expect.0: ratio: 'falling' should be increasing or",
    "expect: [{metric: lambda_max}]": "6:10: expect.0: nothing is expected of lambda_max: give one of invariant",
    "expect: {metric: lambda_max}": "6:9: expect: .* should be a valid list",
    "controls: [noise]": "6:.*: controls: unknown key 'noise': allowed are noise_free, a_a; did you mean 'noise_free'?",
    "controls: {noise_free: 3}": "6:24: controls.noise_free: should be a mapping of batch_size, or true or false",
    "controls: {noise_free: {batch: 3}}": "6:25: controls.noise_free: unknown key 'batch': allowed are batch_size",
    "resources: {gpu: auto}": "6:12: resources: gpu: auto needs accelerator as one of P100, V100, T4",
    "resources: {cpus: 1}": "6:13: resources: unknown key 'cpus': allowed are cpu, gpu, accelerator; did you mean 'cp",
    "resources: {gpu: -1}": "6:18: resources.gpu: -1 should be greater than or equal to 0",
    "resources: {gpu: 1.5}": "6:12: resources: gpu: 1.5 should be a whole number, or below 1 to share a GPU",
    "resources: {cpu: 0}": "6:12: resources: one of cpu and gpu should be above 0",
    "prices: {gpus: 1}": "6:10: prices: unknown key 'gpus': allowed are gpu, cpu, currency; did you mean 'gpu'?",
    "prices: {gpu: -1}": "6:.*: prices.gpu.any: -1 should be greater than or equal to 0",
    "prices: {gpu: {H100: -1}}": "6:22: prices.gpu.H100: -1 should be greater than or equal to 0",
    "prices: {gpu: [1]}": "6:15: prices.gpu: .1. should be a valid mapping",
    "resources: 3": "6:12: resources: 3 should be a valid mapping",
    "pack: {max_trials: 0}": "6:20: pack.max_trials: 0 should be greater than or equal to 1",
    "pack: {max_trials: 5000}": "6:20: pack.max_trials: 5000 should be less than or equal to 4096",
    "pack: {engine: fusd}": "6:16: pack.engine: 'fusd' should be 'auto', .* or 'fused'; did you mean 'fused'?",
    "retries: many": "6:10: retries: 'many' should be a valid integer",
    "retries: -1": "6:10: retries: -1 should be greater than or equal to 0",
    "train: {epochs: 2": "7:1: not valid YAML: expected ',' or '}'",
    "\ttrain: 2": "6:1: not valid YAML: found character",
    "where: a: b": "6:9: not valid YAML: mapping values are not allowed here",
    "margins: *m": "6:10: not valid YAML: found undefined alias 'm'",
    "train: &t [*t]": r"6:8: is nested too deeply \(at most 64 levels\), or contains itself",
    "train: !!python/name:os.system 3": "6:8: the tag !!python/name:os.system is not allowed",
}


@pytest.mark.parametrize("line", WRONG_LINES)
def test_one_wrong_line_is_one_problem(tmp_path: Path, line: str) -> None:
    (problem,) = _problems(tmp_path, f"{RIGHT}{line}\n")
    assert re.match(WRONG_LINES[line].replace("?", r"\?"), problem), problem


WRONG_FILES = {
    "": "1:1: a mapping with name, dataset and grid is needed; the file is empty",
    "- 1\n": "1:1: a mapping with name, dataset and grid is needed",
    RIGHT.replace("name: s", "name: S"): "1:7: name: 'S' should match pattern '^[a-z0-9][a-z0-9._-]{0,63}$'",
    RIGHT.replace("name: s", "name: ../s"): "1:7: name: '../s' should match pattern",
    RIGHT.replace("name: s\n", ""): "1:1: name is required",
    RIGHT.replace("dataset: digits\n", ""): "1:1: dataset is required: a built-in name or package.module:callable",
    RIGHT.replace("digits", "digts"): "2:10: dataset: unknown dataset 'digts': allowed are cifar10, cifar100, digits, ",
    RIGHT.replace("digits", "[digits]"): "2:10: dataset: dataset must be a name or a mapping with a name",
    "name: s\ndataset: digits\n": "1:1: grid is required",
    "name: s\ndataset: digits\ngrid: 3\n": "3:7: grid: 3 should be a valid mapping",
    "name: s\ndataset: digits\ngrid: {}\n": "3:7: grid: two of lr, batch_size, ratio are needed",
    RIGHT.replace("  lr: [0.1]\n", ""): "4:3: grid: two of lr, batch_size, ratio are needed",
    RIGHT.replace(
        "[8]", "[8, 2000]"
    ): "5:19: batch size 2000 exceeds the training set of digits: at most 1437 is allowed",
    RIGHT.replace("batch_size: [8]", "ratio: [1.0e-2, 3.0e-2]"): (
        "4:8: lr 0.1 / ratio 0.03 gives batch size 3.33333: it must be a whole number >= 1; "
        "give batch_size and one of the two instead"
    ),
    RIGHT.replace("batch_size: [8]", "ratio: [1.0e+9]"): "4:8: lr 0.1 / ratio 1000000000.0 gives batch size 1e-10",
    RIGHT.replace("batch_size: [8]", "ratio: [1.0e-5]"): "4:8: batch size 10000 exceeds the training set of digits",
    RIGHT.replace("grid:", "train: {steps: 5, max_steps: 5}\ngrid:"): (
        "3:9: train.steps: max_steps is the same and given, too; keep steps"
    ),
    f"{RIGHT}  steps: [5]\ntrain: {{max_steps: 5}}\n": "6:3: grid.steps: max_steps is the same and given, too; keep",
    f"{RIGHT}  max_steps: [5]\ntrain: {{steps: 5}}\n": "7:9: train.steps: max_steps is the same and given, too; keep",
    RIGHT.replace("grid:", "pack: {engine: fused}\ntrain: {loss: 'operator:sub'}\ngrid:"): (
        "3:16: pack.engine: 'fused' is for arch linear or mlp with loss cross_entropy or mse, not mlp with operator:sub"
    ),
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_one_mistake_is_one_problem(tmp_path: Path, text: str) -> None:
    (problem,) = _problems(tmp_path, text)
    assert problem.startswith(WRONG_FILES[text]), problem


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
name: Digits
dataset: digts
train: {momentum: 2, epoch: 3}
grid:
  lr: [0.1, -1]
  batch_size: [8, x]
measure: {hessian: {top: 0}}
margins: {lambda: 1}
pack: {max_trials: 0}
retires: 1
"""
    problems = _problems(tmp_path, text)
    assert [p.split(":")[0] for p in problems] == ["1", "2", "3", "3", "5", "6", "7", "8", "9", "10"]


def test_margins_of_plug_in_metrics_may_have_any_name(tmp_path: Path) -> None:
    assert (
        _load(tmp_path, RIGHT + "measure: {metrics: 'json:dumps'}\nmargins: {sharpness: 1}\n").margins["sharpness"] == 1
    )


WRONG_TOML = {
    "x = ": "9:5: not valid TOML: Invalid value",
    "x = 1\nx = 2": "10:6: not valid TOML: Cannot overwrite a value",
    "seed = [\n  1,\n  # a comment ]\n  'two',\n]": "12:3: grid.seed: 'two' should be a valid integer",
    "arch = [{name = 'mlp'}, {name = 'mlp', dept = 4}]": "9:25: grid.arch: arch 'mlp': parameter 'dept'",
    "epochs.range = [0, 1.5]": "9:16: grid.epochs: range takes n",
    "'seeed' = [1]": "9:1: grid: unknown key 'seeed': allowed are",
    'sampler = ["""\nstream""", "x=[1]"]': "10:12: grid.sampler: 'x=[1]' should be 'stream', 'replacement' or 'full'",
    "[[train]]": "9:1: train: [{}] should be a valid mapping",
    '[measure.hessian]\n"top" = 0': "10:9: measure.hessian.top: 0 should be greater than or equal to 1",
    "[measure]\nhessian.tpo = 3": "10:1: measure.hessian: unknown key 'tpo': allowed are at, top",
    "[pack]\nmax_trials = 2020-01-01 07:32:00": "10:14: pack.max_trials: datetime.datetime(2020, 1, 1, 7, 32)",
}


@pytest.mark.parametrize("lines", WRONG_TOML)
def test_toml_problems_have_their_place(tmp_path: Path, lines: str) -> None:
    text = f"""\
name = "s"
dataset = "digits"  # not [this]
where = '''
seed >= 0
'''
[grid]
lr = [0.1]
batch_size = [8]
{lines}
"""
    (problem,) = _problems(tmp_path, text, "s.toml")
    assert problem.startswith(WRONG_TOML[lines]), problem


words = st.text("abcdefg_-", min_size=1, max_size=6)
values = st.recursive(
    st.integers(-99, 99) | st.booleans() | st.text("ab#[]{}=,'\"\\\n é", max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",\n ".join(map(_toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str | bool) else str(value)


@given(st.dictionaries(words, values, max_size=4))
def test_toml_values_have_their_place(tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]) -> None:
    """At each place found the text begins with the value that belongs there, and every value has a place."""
    path = tmp_path_factory.mktemp("toml") / "s.toml"
    path.write_text("\n".join(f'"{key}" = {_toml(value)}  # [comment' for key, value in data.items()) + "\n")
    source = read(path)
    lines = source.text.split("\n")

    def check(place: tuple[str | int, ...], value: object) -> None:
        line, column = source.values[place]
        assert "\n".join([lines[line - 1][column - 1 :], *lines[line:]]).startswith(_toml(value))
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in inside:
            check((*place, key), inner)

    assert source.data == data
    for key, value in data.items():
        check((key,), value)


WRONG_AT = [
    (5, ": should be a list of epochs, or a mapping of every, log, early_steps"),
    (True, ": should be a list of epochs, or a mapping of every, log, early_steps"),
    ({"evry": 5}, ": unknown key 'evry': allowed are every, log, early_steps; did you mean 'every'?"),
    ({"every": 5, "lgo": 2}, ": unknown key 'lgo': allowed are every, log, early_steps; did you mean 'log'?"),
    ({"every": 2, "log": 41}, ".log: 41 should be less than or equal to 40"),
    ({"early_steps": 0}, ".early_steps: 0 should be greater than or equal to 1"),
    ({}, ": at least one of every, log and early_steps is needed"),
    ([1, "x"], ".1: 'x' should be a valid number, unable to parse string as a number"),
    ([{"every": 2}], ".0: {'every': 2} should be a valid number"),
]

WRONG_GROUPS = [
    ("hessian.density", 4, ": should be a mapping of probes, steps, z, or true or false"),
    ("hessian.density", [4], ": should be a mapping of probes, steps, z, or true or false"),
    ("hessian.density", {"probs": 4}, ": unknown key 'probs': allowed are probes, steps, z; did you mean 'probes'?"),
    ("hessian.density", {"probes": 0}, ".probes: 0 should be greater than or equal to 1"),
    ("hessian.density", {"steps": 1}, ".steps: 1 should be greater than or equal to 2"),
    ("hessian.density", {"z": 0}, ".z: 0 should be greater than 0"),
    ("hessian.sgd_steps", -1, ": -1 should be greater than or equal to 0"),
    ("hessian.bottom", 101, ": 101 should be less than or equal to 100"),
    (
        "gradient_noise",
        3,
        ": should be a mapping of at, lambda_max, tolerance, max_iterations, probes, or true or false",
    ),
    ("gradient_noise.lambda_max", 3, ": 3 should be a valid boolean, unable to interpret input"),
    (
        "gradient_noise.porbes",
        3,
        "unknown key 'porbes': allowed are at, lambda_max, tolerance, max_iterations, probes; did you mean 'probes'?",
    ),
    ("critical_samples", "yes", ": should be a mapping of at, examples, radius, step, noise, iterations, or true or"),
    ("critical_samples.radius", 0, ": 0 should be greater than 0"),
    ("critical_samples.raduis", 1, "unknown key 'raduis': allowed are at, examples, radius, .*; did you mean 'radius'"),
    ("endpoints", "all", ": 'all' should be a valid boolean, unable to interpret input"),
]


def _measure_problems(folder: Path, setting: str, value: object) -> list[str]:
    """What is said of a setting, without line and column: the same in YAML and in TOML."""
    for key in reversed(setting.split(".")):
        value = {key: value}
    yaml = _problems(folder, f"{RIGHT}measure: {json.dumps(value)}\n")
    toml = 'name = "s"\ndataset = "digits"\ngrid = {lr = [0.1], batch_size = [8]}\n'
    toml = _problems(folder, f"{toml}measure = {_toml(value)}\n", "s.toml")
    assert all(problem.startswith("6:") for problem in yaml)
    words = [[p.split(": ", 1)[1] for p in problems] for problems in (yaml, toml)]
    assert words[0] == words[1]
    return words[0]


@pytest.mark.parametrize(("at", "says"), WRONG_AT)
@pytest.mark.parametrize("setting", ["at", *(f"{group}.at" for group in GROUPS)])
def test_a_wrong_moment_is_one_problem_wherever_it_stands(tmp_path: Path, setting: str, at: object, says: str) -> None:
    assert _measure_problems(tmp_path, setting, at) == [f"measure.{setting}{says}"]


@pytest.mark.parametrize(("setting", "value", "says"), WRONG_GROUPS)
def test_a_wrong_setting_of_a_group_is_one_problem(tmp_path: Path, setting: str, value: object, says: str) -> None:
    (problem,) = _measure_problems(tmp_path, setting, value)
    place = setting if says.startswith((":", ".")) else f"{setting.rpartition('.')[0]}: "
    assert re.match(re.escape(f"measure.{place}") + says.replace("?", r"\?"), problem), problem


def test_several_wrong_settings_of_a_group_are_several_problems(tmp_path: Path) -> None:
    group = {"at": {"every": 0, "log": 0}, "top": 0, "density": {"steps": 1, "z": 2, "probs": 1}}
    problems = _measure_problems(tmp_path, "hessian", group)
    assert [p.split(":")[0] for p in problems] == [
        "measure.hessian.at.every",
        "measure.hessian.at.log",
        "measure.hessian.top",
        "measure.hessian.density.steps",
        "measure.hessian.density",
    ]


def test_a_group_may_be_on_or_off_or_have_settings(tmp_path: Path) -> None:
    def measure(text: str) -> Measure:
        return _load(tmp_path, f"{RIGHT}measure: {text}\n").measure

    assert measure("{hessian: true, gradient_noise: true, critical_samples: false}") == measure("{}") == Measure()
    assert measure("{critical_samples: true}").critical_samples == CriticalSamples()
    assert measure("{hessian: {density: true}}").hessian == Hessian(density=Density())
    assert measure("{hessian: {density: {steps: 7}}}").hessian == Hessian(density=Density(steps=7))
    off = measure("{hessian: false, gradient_noise: false}")
    assert (off.hessian, off.gradient_noise, off.critical_samples) == (False, False, False)
    assert measure("{at: {every: 5, log: 3}}").at == At(every=5, log=3)
    own = measure("{at: [1], hessian: {at: {early_steps: 64}}, gradient_noise: {at: [2, 4]}}")
    assert own.hessian == Hessian(at=At(early_steps=64))
    assert own.gradient_noise == GradientNoise(at=[2, 4])


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(SweepFileError, match=r"none.yaml:1:1: cannot be read: No such file.*; `isoratio init` writes"):
        load(tmp_path / "none.yaml")
    with pytest.raises(SweepFileError, match="1:1: cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(SweepFileError, match=r"latin.yaml:1:1: is not UTF-8 text"):
        load(tmp_path / "latin.yaml")


def test_a_plug_in_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweepfile_plugin.py").write_text("def net(input_shape, num_classes, width=8): ...\n")
    (tmp_path / "sweepfile_broken.py").write_text("1 / 0\n")
    text = RIGHT + "  arch: [{name: 'sweepfile_plugin:net', width: 4}, 'sweepfile_broken:net']\n"
    (problem,) = _problems(tmp_path, text)
    assert problem.startswith("6:52: grid.arch: cannot import 'sweepfile_broken'")
    assert "ZeroDivisionError" in problem
    sweep = _load(tmp_path, RIGHT + "  arch: [{name: 'sweepfile_plugin:net', width: 8}, 'sweepfile_plugin:net']\n")
    assert sweep.grid["arch"] == ["sweepfile_plugin:net", "sweepfile_plugin:net"]


def test_init_writes_a_sweep_that_loads_and_replaces_nothing(tmp_path: Path) -> None:
    path = init(tmp_path / "mine.yaml")
    assert load(path).name == "starter"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="is there already: name another file"):
        init(path)
    assert path.read_text() == "mine"


def test_what_the_starter_has_as_comments_is_right_too(tmp_path: Path) -> None:
    text = re.sub(r"(?m)^( *)# (\w+: )", r"\1\2", init(tmp_path / "starter.yaml").read_text())
    sweep = _load(tmp_path, text)
    assert sweep.where is not None
    assert sweep.measure.critical_samples
    assert sweep.measure.endpoints


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.name)
def test_sweeps_that_come_along_are_right(path: Path) -> None:
    assert load(path).name == path.stem


def test_the_demo_is_what_the_readme_promises() -> None:
    axes = load(ROOT / "sweeps" / "digits.yaml").axes
    assert len(axes["batch_size"]) == len(axes["ratio"]) == 5
    assert len(axes["label_noise"]) == 2
    assert len(axes["seed"]) >= 4
