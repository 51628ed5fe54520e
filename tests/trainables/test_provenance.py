"""Where rows come from: everything that decides numbers, nothing that is secret."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainables import provenance
from trainables.provenance import VARIABLES, collect, determinism, environment, package_sha256, redacted
from trainables.schema import PROVENANCE
from trainables.store import parquet_bytes, table

DOCUMENT = (Path(__file__).parents[2] / "docs/provenance.md").read_text()
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What is asked once per process is asked anew."""
    cached = (provenance.revision, provenance.remote, package_sha256, provenance._versions, provenance._machine)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that holds this module's file, committed."""
    monkeypatch.setattr(provenance, "HERE", tmp_path)
    (tmp_path / "provenance.py").write_text("one = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "provenance.py")
    git(tmp_path, "-c", "user.name=n", "-c", "user.email=e@e", "commit", "--quiet", "--message", "m")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout


def test_a_row_has_every_column_and_an_id_of_its_content() -> None:
    row = collect("cpu", 2, "d" * 64, ["json:loads"])
    assert list(row) == PROVENANCE.names
    assert table([row], PROVENANCE).to_pylist() == [row]
    assert re.fullmatch("[0-9a-f]{16}", row["provenance_id"])
    assert (row["device"], row["threads"], row["dataset_sha256"]) == ("cpu", 2, "d" * 64)
    assert row["torch"] == version("torch") == torch.__version__
    assert row["cores"] == len(os.sched_getaffinity(0))
    assert row["memory_bytes"] % 2**30 == 0
    assert row["memory_bytes"] / 2**30 == pytest.approx(
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, abs=0.5
    )
    assert row["gpu_memory_bytes"] is row["gpu_driver"] is None
    ((target, sha256),) = json.loads(row["plugins"]).items()
    assert target == "json:loads"
    assert len(sha256) == 64


def test_the_same_origin_is_the_same_row_and_another_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    first = collect("cpu", 1, None, [])
    assert collect("cpu", 1, None, []) == first
    others = [collect("cpu", 2, None, []), collect("cpu", 1, "d", []), collect("cpu", 1, None, ["json:loads"])]
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    others.append(collect("cpu", 1, None, []))
    assert len({row["provenance_id"] for row in [first, *others]}) == 5


def test_what_stays_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is wanted for every pack."""
    first = collect("cpu", 1, None, [])

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(provenance.subprocess, "run", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(provenance, "version", refuse)
    assert collect("cpu", 1, None, []) == first


def test_flags_are_those_of_training_which_is_over() -> None:
    before = determinism()
    row = collect("cpu", torch.get_num_threads(), "d", [])
    flags = json.loads(row["determinism"])
    assert row["deterministic"] is True
    assert (flags["deterministic_algorithms"], flags["warn_only"], flags["flush_denormal"]) == (True, True, True)
    assert flags["cudnn_allow_tf32"] is False
    assert flags["CUBLAS_WORKSPACE_CONFIG"] == os.environ["CUBLAS_WORKSPACE_CONFIG"]
    after = determinism()
    assert [after[name] for name in ("deterministic_algorithms", "flush_denormal")] == [False, False]
    assert before["float32_matmul_precision"] == after["float32_matmul_precision"]


def test_flags_of_the_users_own_trials_are_what_they_find(monkeypatch: pytest.MonkeyPatch) -> None:
    row = collect("cpu", 1, None, [])
    assert row["deterministic"] is False
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    assert json.loads(collect("cpu", 1, None, [])["determinism"])["cudnn_benchmark"] is True


def test_a_setting_that_torch_does_not_tell_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    assert determinism()["float32_matmul_precision"] is None


def test_flushing_is_measured() -> None:
    torch.set_flush_denormal(True)
    try:
        assert determinism()["flush_denormal"] is True
    finally:
        torch.set_flush_denormal(False)
    assert determinism()["flush_denormal"] is False


def test_a_gpu_has_its_memory_and_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    (tmp_path / "version").write_text(said)
    monkeypatch.setattr(provenance, "DRIVER_FILES", (tmp_path / "none", tmp_path / "version"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=85 * 10**9))
    row = collect("NVIDIA H100", 1, None, [])
    assert (row["device"], row["gpu_memory_bytes"], row["gpu_driver"]) == ("NVIDIA H100", 85 * 10**9, "550.54.15")


# --- code -----------------------------------------------------------------------------------------------------------


def test_the_revision_of_a_checkout(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD").strip()
    assert provenance.revision() == head
    (checkout / "provenance.py").write_text("one = 2\n")
    provenance.revision.cache_clear()
    assert provenance.revision() == f"{head}+dirty"


def test_a_checkout_around_an_installation_is_not_ours(checkout: Path) -> None:
    git(checkout, "remote", "add", "origin", "https://example.org/other.git")
    git(checkout, "rm", "--quiet", "--cached", "provenance.py")
    assert provenance.revision() == version("isoratio")
    assert provenance.remote() is None


def test_without_git_the_installed_version_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert (provenance.revision(), provenance.remote()) == (version("isoratio"), None)


@pytest.mark.parametrize(
    ("url", "recorded"),
    [
        ("https://example.org/o/r.git", "https://example.org/o/r.git"),
        (f"https://me:{SECRET}@example.org/o/r.git", "https://***@example.org/o/r.git"),
        (f"https://{SECRET}@example.org/o/r.git?private={SECRET}", "https://***@example.org/o/r.git?***"),
        (f"ssh://{SECRET}@example.org:22/o/r.git", "ssh://***@example.org:22/o/r.git"),
        ("git@example.org:o/r.git", "example.org:o/r.git"),
        (f"me:{SECRET}@example.org:o/r.git", None),  # no form that git knows
        (f"/Users/me/{SECRET}/r.git", None),
        (f"file:///Users/me/{SECRET}/r.git", None),
        (f"ext::sh -c {SECRET}", None),
    ],
)
def test_the_remote_of_a_checkout_without_credentials(checkout: Path, url: str, recorded: str | None) -> None:
    assert provenance.remote() is None
    provenance.remote.cache_clear()
    git(checkout, "remote", "add", "origin", url)
    assert provenance.remote() == recorded


def test_a_package_that_is_not_installed_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    assert provenance._versions()["no-such-package"] is None


def test_our_sources_are_told_apart(checkout: Path) -> None:
    one = package_sha256()
    (checkout / "provenance.py").write_text("one = 2\n")
    assert package_sha256() == one  # of what this process began with
    package_sha256.cache_clear()
    assert package_sha256() != one


# --- secrets --------------------------------------------------------------------------------------------------------


def test_nothing_secret_gets_in(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted wherever secrets usually are; the rows hold none, not even in part."""
    git(checkout, "remote", "add", "origin", f"https://oauth2:{SECRET}@example.org/o/r.git?token={SECRET}")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "WANDB_API_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    for name in ("HTTPS_PROXY", "ISORATIO_STORE", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, f"https://me:{SECRET}@example.org")
    for name in ("HOME", "ISORATIO_DATA", "LD_PRELOAD_PATH", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, f"/Users/me/{SECRET}")
    for name in ("HOSTNAME", "USER", "LOGNAME"):
        monkeypatch.setenv(name, SECRET)
    for name in (*VARIABLES, "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, f"s3://me:{SECRET}@bucket/x?token={SECRET}")
    rows = [collect("cpu", 1, sha256, ["json:loads"]) for sha256 in (None, "d")]
    assert SECRET not in repr(rows)
    assert json.loads(rows[0]["environment"]) == dict.fromkeys(sorted(VARIABLES), "s3://***@bucket/x?***")
    stored = pq.read_table(io.BytesIO(parquet_bytes(table(rows, PROVENANCE))))
    assert SECRET not in repr((stored.to_pylist(), stored.schema.metadata))


def test_the_host_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.uname().nodename not in {str(v) for v in collect("cpu", 1, None, []).values()}
    assert not [name for name in VARIABLES if "HOST" in name or "NODE" in name]


def test_of_the_environment_only_what_is_set_and_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert environment() == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("EDITOR", "ed")
    assert environment() == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("s3://key:se/cr+et@bucket/a", "s3://***@bucket/a"),
        ("s3://key:p@ss@bucket/a", "s3://***@bucket/a"),
        ("s3://key:p@ss?w#rd@bucket/a", "s3://***"),
        ("https://host/a?mail=me@host.", "https://***."),
        ("s3://b/x,s3://k:s@c", "s3://b/x,s3://***@c"),
        ('{"a":"s3://k:s@b/x?t=1"}', '{"a":"s3://***@b/x?***"}'),
        ("https://token@host:8080/a", "https://***@host:8080/a"),
        ("https://host/a?X-Signature=5f&b=1", "https://host/a?***"),
        ("https://host/a#access_token=5f", "https://host/a#***"),
        ("store 's3://k:s@b/a?t=1': is not there", "store 's3://***@b/a?***': is not there"),
        ("from s3://k:s@b to s3://l:u@c.", "from s3://***@b to s3://***@c."),
        ("git+https://k:s@host/r", "git+https://***@host/r"),
        ("https://host/u@v1", "https://host/u@v1"),
        ("mail a@b.c; why? 3 # 4", "mail a@b.c; why? 3 # 4"),
        ("", ""),
    ],
)
def test_urls_lose_credentials_and_queries(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


_secret = st.text("ABCXYZ019/@:?#%+=&!$'()*,;[]~\"", min_size=1).map(lambda text: f"Q{text}Q")


@given(user=st.text("abc"), password=_secret, query=st.none() | _secret)
@example(user="", password="Q@Q", query=None)
@example(user="", password="QQ", query="Q@Q")
@example(user="", password="Q@Q?Q", query=None)
@settings(derandomize=True, deadline=None)
def test_whatever_a_password_or_query_is_made_of_it_goes(user: str, password: str, query: str | None) -> None:
    url = f"s3://{user}:{password}@bucket/path" + (f"?t={query}" if query is not None else "")
    assert "Q" not in redacted(url)
    assert "Q" not in redacted(f"store {url!r}: cannot be written, see {url}.")


# --- the document ---------------------------------------------------------------------------------------------------


def test_the_document_tells_every_column_and_variable() -> None:
    columns = re.findall(r"`(\w+)`", " ".join(re.findall(r"(?m)^\| (`.*?) \|", DOCUMENT)))
    assert columns == PROVENANCE.names
    assert set(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b|\bPYTHONHASHSEED\b", DOCUMENT)) >= {*VARIABLES}
