"""What must be refused because its curvature would be a wrong number, and what must not."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packs import run, study, trial

from trainables.differentiable import CurvatureError, check
from trainables.packs import Pack, PackItem, plan_metadata, run_pack
from trainables.schema import PLAN
from trainables.settings import Measure
from trainables.store import Store, table

RANDOM = "its outputs or losses are random in evaluation mode"
TOGETHER = "its output for an example depends on the other examples of the batch, in evaluation mode too"
ONCE = "it cannot be differentiated twice: "
WRONG = "a Hessian product is not the change of the gradient"


def refusal(arch: str, loss: str = "cross_entropy", engine: str = "loop", **changes: object) -> str:
    seen = study([trial(arch=arch, loss=loss, **changes)], engine)
    with pytest.raises(CurvatureError) as refused:
        check(seen)
    return str(refused.value)


@pytest.mark.parametrize(
    ("arch", "engines", "why"),
    [
        ("refused:functional_dropout", ["loop"], RANDOM),
        ("refused:augmented", ["loop"], RANDOM),
        ("refused:always_training", ["loop"], TOGETHER),
        ("refused:batch_statistics", ["loop", "vmap"], TOGETHER),
        ('{"name":"refused:batch_statistics","zero_head":true}', ["loop", "vmap"], TOGETHER),
        ("refused:detached_gradient", ["loop"], WRONG),
        ("refused:detached_input", ["loop"], WRONG),
        ("refused:once", ["loop"], WRONG),
        ("refused:distances", ["loop", "vmap"], ONCE + "the derivative for '_cdist_backward' is not implemented"),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_nets_that_are_refused(arch: str, engines: list[str], why: str, precision: str) -> None:
    for engine in engines:
        text = refusal(arch, engine=engine, precision=precision)
        assert why in text
        assert f"of arch {trial(arch=arch).arch} with loss cross_entropy cannot be measured" in text
        assert text.endswith("or set measure: {hessian: false, gradient_noise: false}")


@pytest.mark.parametrize("engine", ["loop", "vmap", "fused"])
@pytest.mark.parametrize(
    ("loss", "why"),
    [("refused:partly_detached", WRONG), ("refused:random_loss", RANDOM), ("refused:centred_loss", TOGETHER)],
)
def test_losses_that_are_refused(loss: str, why: str, engine: str) -> None:
    assert why in refusal("mlp", loss, engine)
    assert "with loss " + loss in refusal("linear", loss, engine)


PASSING = [
    '{"depth":2,"name":"mlp","width":8}',
    '{"activation":"tanh","depth":3,"name":"mlp","width":8}',
    '{"activation":"gelu","depth":2,"name":"mlp","width":8}',
    "linear",
    "plugins:convnet",
    "plugins:attention",
    "plugins:with_batchnorm",
    "plugins:residual",
    "plugins:with_dropout",
    "plugins:partly_frozen",
    "plugins:twice",
    "plugins:single_precision_norm",
    "plugins:gated",
    "plugins:cubes",
]


LOSSES = ["mse", "plugins:quartic", "plugins:linear_loss"]


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    ("arch", "loss"), [*((arch, "cross_entropy") for arch in PASSING), *product(["linear", *PASSING[:2]], LOSSES)]
)
def test_nets_and_losses_that_pass(arch: str, loss: str, precision: str) -> None:
    for engine in ["loop"] if arch in {"plugins:gated", "plugins:cubes"} else ["loop", "vmap"]:
        check(study([trial(arch=arch, loss=loss, precision=precision)], engine))


@pytest.mark.parametrize("seed", range(6))
def test_kinks_are_no_reason_to_refuse(seed: int) -> None:
    """Of half a million rectified units some change sign over a step of 1e-6."""
    images = '{"dimension":256,"name":"teacher","test_size":1,"train_size":64}'
    check(study([trial(arch="plugins:rectified", dataset=images, seed=seed)]))


def test_a_net_that_insists_on_single_precision_passes() -> None:
    check(study([trial(arch="plugins:only_single", precision="float32")]))


@pytest.mark.parametrize(("examples", "chunk"), [(1, 1000), (3, 1000), (1000, 1), (1000, 7)])
def test_few_examples_or_few_at_a_time(examples: int, chunk: int) -> None:
    check(study([trial()], examples=examples, chunk=chunk))
    if examples > 3:
        with pytest.raises(CurvatureError, match="depends on the other examples"):
            check(study([trial(arch="refused:batch_statistics", seed=1)], examples=examples, chunk=max(chunk, 4)))


def test_a_net_that_is_not_finite_is_left_to_be_recorded_as_diverged() -> None:
    seen = study([trial()])
    for value in seen.group.parameters.values():
        value.fill_(np.inf)
    check(seen)


@pytest.mark.parametrize(
    "due", [{"hessian": False}, {"gradient_noise": False}, {"hessian": False, "gradient_noise": False}]
)
def test_asked_for_only_where_curvature_is(due: dict[str, bool]) -> None:
    settings = Measure.model_validate({"at": [], **due})
    allowed = nullcontext() if len(due) == 2 else pytest.raises(CurvatureError)
    with allowed:
        run([trial(arch="refused:functional_dropout")], "loop", settings)


def test_a_pack_fails_with_this_message_and_works_without_curvature(tmp_path: Path) -> None:
    refused = stored(tmp_path / "a", Measure(at=[]), "failures")
    assert [f["trial_id"] for f in refused] == ["t0", "t1"]
    assert all(f["cause"] == "exception" for f in refused)
    assert all("CurvatureError: curvature of arch refused:functional_dropout" in str(f["error"]) for f in refused)
    finished = stored(tmp_path / "b", Measure(at=[], hessian=False, gradient_noise=False), "trials")
    assert [(f["trial_id"], f["status"]) for f in finished] == [("t0", "finished"), ("t1", "finished")]
    assert all(f["train_loss"] > 0 for f in finished)
    assert all(f["lambda_max"] is None and f["gradient_covariance_trace"] is None for f in finished)


def stored(store: Path, measure: Measure, name: str) -> list[dict[str, object]]:
    """Rows of a pack of two trials whose net has active dropout."""
    sweep = Store(store).sweep("s")
    key = {"sweep": "s", "measure_id": "m", "pack_id": "p", "round": 0, "engine": "loop"}
    trials = [trial(arch="refused:functional_dropout", seed=i) for i in range(2)]
    rows = [key | {"trial_id": f"t{i}", "slot": i} | t.model_dump() for i, t in enumerate(trials)]
    plan = sweep.write_plan(table(rows, PLAN).replace_schema_metadata(plan_metadata(measure, ".yaml", "")), 1, 1)
    assert Pack.of(sweep.read_pack(plan, "p")).engine == "loop"
    list(run_pack(PackItem(sweep.store_url, "s", "p", plan, 1)))
    files = sorted((sweep.storage.root / name).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(f) for f in files]).to_pylist() if files else []
