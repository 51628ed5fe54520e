"""The files that start clusters; ``ISORATIO_GOLDEN=1 pytest tests/cluster/test_rendering.py`` renders golden ones."""

from __future__ import annotations

import json
import os
import shlex
import string
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from rendered import CASES, VERSIONS, golden, text_of

from cluster.checking import check
from cluster.instances import GPUS, cores
from cluster.options import ClusterOptions, Kind
from cluster.rendering import installed, render, steps

SCHEMAS = Path(__file__).with_name("schemas")
UP = [case for case, (kind, _) in CASES.items() if kind in (Kind.AWS, Kind.GCP, Kind.ONPREM)]
PODS = [case for case, (kind, _) in CASES.items() if kind is Kind.KUBERAY]
JOBS = [case for case, (kind, _) in CASES.items() if kind is Kind.SLURM]


@pytest.mark.parametrize("case", CASES)
def test_a_file_is_what_it_was(case: str) -> None:
    if os.environ.get("ISORATIO_GOLDEN"):
        golden(case).write_text(text_of(case), encoding="utf-8")
    assert text_of(case) == golden(case).read_text(encoding="utf-8")


@pytest.mark.parametrize("case", UP)
def test_ray_takes_it(case: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load(text_of(case)))
    validate_config(prepared)
    types = prepared["available_node_types"]
    options = CASES[case][1]
    if CASES[case][0] is Kind.ONPREM:
        assert types["local.cluster.node"]["min_workers"] == len(options.hosts) - 1
    else:
        assert prepared["head_node_type"] == "head"
        assert (types["worker"]["min_workers"], types["worker"]["max_workers"]) == (options.workers or (0, 4))


def _validate(schema: dict[str, Any], document: Any) -> None:
    problems = [f"{list(e.absolute_path)}: {e.message}" for e in Draft7Validator(schema).iter_errors(document)]
    assert not problems


@pytest.mark.parametrize("case", PODS)
def test_a_ray_cluster_has_the_fields_of_kuberay(case: str) -> None:
    _validate(json.loads((SCHEMAS / "raycluster.json").read_text()), yaml.safe_load(text_of(case)))


def _strict(node: Any) -> Any:
    """A schema of Kubernetes as JSON Schema that refuses fields it does not know, as the server does."""
    if isinstance(node, list):
        return [_strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {key: _strict(value) for key, value in node.items()}
    if made.get("x-kubernetes-int-or-string") is True:
        made.pop("type", None)
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("case", PODS)
@pytest.mark.skipif(
    "ISORATIO_KUBERAY_CRD" not in os.environ, reason="ISORATIO_KUBERAY_CRD names no definition of KubeRay"
)
def test_kuberay_takes_it(case: str) -> None:
    definition = yaml.safe_load(Path(os.environ["ISORATIO_KUBERAY_CRD"]).read_text())
    versions = {v["name"]: v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"]}
    schema = _strict(versions["v1"])
    schema["properties"]["metadata"] = {"type": "object"}
    _validate(schema, yaml.safe_load(text_of(case)))


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_on_and_the_dashboard_is_on_the_loopback(case: str) -> None:
    text = text_of(case)
    assert "RAY_AUTH_MODE=token" in text
    assert "RAY_USAGE_STATS_ENABLED" in text
    assert "0.0.0.0" not in text
    if "ray start --head" in text or "symmetric-run" in text or CASES[case][0] is Kind.KUBERAY:
        assert "127.0.0.1" in text.replace("http://127.0.0.1", "")


@pytest.mark.parametrize("case", ["aws-spot", "gcp-attached-gpus"])
def test_the_head_is_never_a_spot_machine(case: str) -> None:
    types = yaml.safe_load(text_of(case))["available_node_types"]
    spot = "InstanceMarketOptions" if case.startswith("aws") else "scheduling"
    assert spot in types["worker"]["node_config"]
    assert spot not in types["head"]["node_config"]


def test_pods_of_the_head_stay_off_spot_nodes() -> None:
    spec = yaml.safe_load(text_of("kuberay-spot"))["spec"]
    (term,) = spec["headGroupSpec"]["template"]["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    worker = spec["workerGroupSpecs"][0]["template"]["spec"]
    assert term["matchExpressions"] == [{"key": "cloud.google.com/gke-spot", "operator": "NotIn", "values": ["true"]}]
    assert worker["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_packages_are_pinned_to_those_installed() -> None:
    packages = installed().packages
    assert f"ray[default,tune]=={installed().ray}" in packages
    assert all("==" in p and "+" not in p for p in packages)
    assert any(p.startswith("torch==") for p in packages)


@pytest.mark.parametrize(
    ("type_", "n"), [("n1-standard-8", 8), ("a2-highgpu-4g", 48), ("a3-highgpu-8g", 208), ("x", None)]
)
def test_cores_of_googles_machines(type_: str, n: int | None) -> None:
    assert cores(type_) == n


def test_every_machine_of_googles_that_is_known_has_known_cores() -> None:
    assert all(cores(machine) for gpu in GPUS.values() for machine in gpu.gcp.values())


WRONG = [
    (
        Kind.AWS,
        {"gpu_type": "B9"},
        r"--gpu-type B9: known are T4, L4, .*; .* name the machine itself with --worker-type",
    ),
    (Kind.AWS, {"gpu_type": "A100", "gpus": 1}, r"--gpus 1: aws has machines with 8 of A100; name another machine"),
    (Kind.GCP, {"gpu_type": "L40S"}, r"--gpu-type L40S: gcp has none; known there are T4, L4, A100"),
    (Kind.AWS, {"gpus": 2}, r"--gpus 2: say which with --gpu-type"),
    (Kind.AWS, {"gpu_type": "L4", "gpus": 0}, r"--gpus 0 with --gpu-type L4: say how many, or leave the type away"),
    (Kind.AWS, {"machine_image": None}, r"--machine-image is needed, .* this shows some: aws ssm get-parameter"),
    (Kind.GCP, {"project": None, "zone": None}, r"--project is needed\n--zone is needed"),
    (Kind.GCP, {"worker_type": "custom"}, r"--worker-type custom: say with --cpus how many cores it has"),
    (
        Kind.GCP,
        {"worker_type": "n1-standard-4", "gpus": 1},
        r"n1-standard-4: say with --gpu-type which GPU of Google's",
    ),
    (Kind.AWS, {"store": "results"}, r"--store results: a URL, or the absolute path of a directory that every node"),
    (Kind.AWS, {"store": "s3://key:hunter2@b/r"}, r"--store: it holds a secret, which would stand in the file"),
    (Kind.AWS, {"setup": ("export API_TOKEN=abcdefgh1234",)}, r"--setup: it holds a secret"),
    (Kind.AWS, {"setup": ("a\nb",)}, r"--setup 'a\\nb': allowed is text, in one line"),
    (Kind.AWS, {"name": "Lab_1"}, r"--name 'Lab_1': allowed is a-z, 0-9 and -, at most 40"),
    (Kind.AWS, {"workers": (3, 1)}, r"--workers 3:1: MIN:MAX with 0 <= MIN <= MAX"),
    (Kind.AWS, {"idle_minutes": 0}, r"--idle-minutes 0: at least 1"),
    (Kind.AWS, {"hosts": ("a",)}, r"--host: aws has none; it is for onprem"),
    (Kind.SLURM, {"workers": (1, 4)}, r"--workers 1:4: a Slurm job has a fixed number of nodes, such as --workers 4"),
    (Kind.SLURM, {"time_limit": "3"}, "--time-limit 3: at least 4 minutes, since a run is told to save two to three"),
    (Kind.SLURM, {"time_limit": "3:59"}, "--time-limit 3:59: at least 4 minutes"),
    (Kind.SLURM, {"time_limit": "00:03:59"}, "--time-limit 00:03:59: at least 4 minutes"),
    (Kind.SLURM, {"time_limit": "0-00:03"}, "--time-limit 0-00:03: at least 4 minutes"),
    (Kind.SLURM, {"time_limit": "soon"}, r"--time-limit 'soon': allowed is MINUTES, HH:MM:SS or DAYS-HH:MM:SS"),
    (Kind.KUBERAY, {"store": "/r"}, r"--store /r: a directory of pods needs --volume-claim"),
    (Kind.KUBERAY, {"claim": "c"}, r"--volume-claim: --store should be the directory"),
    (Kind.KUBERAY, {"gpu_type": "A10G"}, r"--gpu-type A10G: not one of Google's; say with --node-label"),
    (Kind.KUBERAY, {"identity": "a@b"}, r"--identity a@b: the name of a service account of Kubernetes"),
    (Kind.ONPREM, {}, r"--host is needed, once for each machine, the head first\n--user is needed"),
    (Kind.ONPREM, {"hosts": ("a", "a"), "user": "me"}, r"--host: a machine is named twice"),
]


@pytest.mark.parametrize(("kind", "given_", "message"), WRONG)
def test_wrong_options_are_named(kind: Kind, given_: dict[str, Any], message: str) -> None:
    base = {"region": "r", "machine_image": "i"} if kind in (Kind.AWS, Kind.GCP) else {}
    base |= {"project": "p", "zone": "z"} if kind is Kind.GCP else {}
    with pytest.raises(ValueError, match=message):
        render(kind, ClusterOptions(**{**base, **given_}))


@pytest.mark.parametrize("case", CASES)
def test_the_steps_stand_in_the_file(case: str) -> None:
    kind, options = CASES[case]
    text = render(kind, options, VERSIONS, file="my file.yaml")
    said = steps(kind, options, "my file.yaml")
    assert "'my file.yaml'" in said
    assert all(f"# {line}".rstrip() in text for line in said.splitlines())


# Values that shells and YAML read in their own way.
AWKWARD = st.text(
    st.sampled_from(string.ascii_letters + "0123 '\"$`\\;&|#{}()<>*!~=:,[]%@-é漢"), min_size=1, max_size=20
)
WORKERS = st.none() | st.tuples(st.integers(0, 3), st.integers(3, 9))
COMMANDS = st.none() | st.lists(AWKWARD, max_size=3).map(tuple)
STORES = AWKWARD.map("/{}".format) | AWKWARD.map("s3://bucket/{}".format)
COMMON = {"setup": COMMANDS, "sweep": AWKWARD, "name": st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True)}
REMOTE = {**COMMON, "token_file": AWKWARD.map("~/{}".format), "store": st.none() | STORES}
ELASTIC = {**REMOTE, "workers": WORKERS, "spot": st.booleans(), "image": st.none() | st.just("me/x:1")}
GPU = {"gpu_type": st.none() | st.sampled_from([*GPUS, "t4"]), "gpus": st.none() | st.integers(0, 8)}
KINDS: dict[Kind, dict[str, st.SearchStrategy[Any]]] = {
    Kind.SLURM: {
        **COMMON,
        "store": AWKWARD | AWKWARD.map("~/{}".format),
        "workers": st.none() | st.integers(1, 9).map(lambda n: (n, n)),
        "gpus": st.none() | st.integers(0, 8),
        "partition": st.none() | st.just("a,b"),
        "venv": st.none() | AWKWARD.map("~/{}".format),
        "memory": st.none() | st.integers(1, 99),
    },
    Kind.KUBERAY: {
        **ELASTIC,
        **GPU,
        "store": st.just("s3://b/r"),
        "labels": st.just(()) | st.just(("a.b/c=d", "e=")),
        "cpus": st.none() | st.integers(1, 9),
    },
    Kind.AWS: {**ELASTIC, **GPU, "region": st.just("r"), "machine_image": st.just("ami-1")},
    Kind.GCP: {**ELASTIC, **GPU, **{k: st.just("x") for k in ("project", "region", "zone", "machine_image")}},
    Kind.ONPREM: {
        **REMOTE,
        "hosts": st.lists(st.sampled_from(["a", "b1", "10.0.0.1", "::1x"]), min_size=1, unique=True).map(tuple),
        "user": st.just("me"),
        "ssh_key": st.none() | AWKWARD,
        "venv": st.none() | AWKWARD.map("/{}".format),
    },
}
SETTINGS = settings(max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_accepted_renders_a_file_in_which_nothing_is_wrong(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray/auth_token"
    token.parent.mkdir()
    token.write_text("0b9f6e2ac3d14f58")

    accepted = 0

    @SETTINGS
    @given(st.fixed_dictionaries({}, optional=KINDS[kind]))
    def holds(chosen: dict[str, Any]) -> None:
        nonlocal accepted
        needed = {name: "x" for name in ("project", "region", "zone", "machine_image") if name in KINDS[kind]}
        needed |= {"hosts": ("h",), "user": "me"} if kind is Kind.ONPREM else {}
        options = ClusterOptions(**{**needed, **chosen})
        try:
            text = render(kind, options)
        except ValueError:
            assume(False)
        accepted += 1
        file = tmp_path / "file"
        file.write_text(text, encoding="utf-8")
        assert [f for f in check(file, ask=False) if f.serious] == []
        assert "0b9f6e2ac3d14f58" not in text
        if kind in (Kind.AWS, Kind.GCP, Kind.ONPREM):
            document = yaml.safe_load(text)
            assert document["file_mounts"] == {"~/.ray/auth_token": options.token_file}
            if options.setup is not None:
                assert document["setup_commands"] == list(options.setup)

    holds()
    assert accepted >= 40


@settings(SETTINGS, max_examples=30)
@given(sweep=AWKWARD, store=AWKWARD, word=AWKWARD)
def test_a_job_says_what_was_given_whatever_is_in_it(sweep: str, store: str, word: str) -> None:
    options = ClusterOptions(sweep=sweep, store=f"~/{store}", setup=(f"printf '%s|' {shlex.quote(word)}", "x='"))
    try:
        text = render(Kind.SLURM, options, VERSIONS)
    except ValueError:
        assume(False)
    start, end = text.index("sweep="), text.index("set -u")
    said = subprocess.run(
        ["bash", "-c", text[start:end] + 'printf "%s|" "$sweep" "$store"'],
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": "/home of mine", "PATH": os.environ["PATH"]},
    ).stdout
    assert said == f"{word}|{sweep}|/home of mine/{store}|"


@pytest.mark.parametrize("case", JOBS)
def test_bash_reads_the_whole_job(case: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text_of(case), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_heredocs_of_a_job_are_shell_too(tmp_path: Path) -> None:
    for part in text_of("slurm-four-nodes").split("<<'END'\n")[1:]:
        body = part.partition("\nEND\n")[0]
        assert subprocess.run(["bash", "-n"], input=body, text=True, check=False).returncode == 0


@pytest.mark.parametrize("limit", ["4", "4:00", "0:04:00", "0-1", "0-00:04", "1-00:00:00"])
def test_time_enough_for_slurm(limit: str) -> None:
    assert f"--time={limit}\n" in render(Kind.SLURM, ClusterOptions(time_limit=limit))
