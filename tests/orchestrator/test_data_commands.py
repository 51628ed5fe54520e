"""``isoratio data list``, ``fetch`` and ``verify``."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import orchestrator
from orchestrator import cli, data
from trainables.published import PUBLISHED, Published, idx_set

Run = Callable[..., subprocess.CompletedProcess[str]]
Main = Callable[..., int]

RAW = "MNIST/raw"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """In MNIST's place: one black image to train and one to test, published in ``tmp_path/origin``."""
    origin = tmp_path / "origin"
    origin.mkdir()
    image, label = b"\0\0\x08\3" + 3 * b"\0\0\0\1" + b"\0", b"\0\0\x08\1" + b"\0\0\0\1" + b"\7"
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    sums = []
    for name, content in zip(names, (image, label, image, label), strict=True):
        packed = gzip.compress(content, mtime=0)
        (origin / f"{name}-ubyte.gz").write_bytes(packed)
        sums.append((hashlib.md5(packed).hexdigest(), hashlib.md5(content).hexdigest()))
    published = idx_set("mnist", RAW, origin.as_uri(), sums, sizes=(1, 1), side=1)
    monkeypatch.setitem(PUBLISHED, "mnist", published)
    monkeypatch.setenv("ISORATIO_DATA", str(tmp_path / "root"))
    return published


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Main:
    """The command line in this process; gives its exit code."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["isoratio", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0)

    return run


def _states() -> dict[str, str]:
    return {row.name: row.state for row in data.list()}


def test_the_list_says_what_there_is(isoratio: Run, tmp_path: Path) -> None:
    listed = isoratio("data", "list", "--format", "json")
    assert listed.returncode == 0, listed.stderr
    rows = {row.pop("name"): row for row in json.loads(listed.stdout)}
    assert rows["digits"] == {
        "train_size": 1437,
        "test_size": 360,
        "shape": [64],
        "classes": 10,
        "where": None,
        "state": "built in",
    }
    assert rows["cifar100"] == {
        "train_size": 50_000,
        "test_size": 10_000,
        "shape": [3, 32, 32],
        "classes": 100,
        "where": str(tmp_path / "home/.cache/isoratio"),
        "state": "missing",
    }
    assert list(rows) == ["digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "teacher"]
    shown = isoratio("data", "list", env={"COLUMNS": "200", "ISORATIO_DATA": "/elsewhere"}).stdout
    assert "/elsewhere/FashionMNIST/raw" in shown
    assert isoratio("data", "list", "--format", "csv").stdout.startswith(
        "name,train_size,test_size,shape,classes,where"
    )


def test_a_set_is_missing_then_ready_then_damaged(tiny: Published, tmp_path: Path) -> None:
    assert _states()["mnist"] == "missing"
    assert not (tmp_path / "root").exists()
    fetched = data.fetch(["mnist"])
    assert [path.name for path in fetched["mnist"]] == [f"{d.files[0].path.split('/')[-1]}.gz" for d in tiny.downloads]
    assert _states() == {"digits": "built in", "teacher": "built in", "mnist": "ready"} | dict.fromkeys(
        ("fashion-mnist", "cifar10", "cifar100"), "missing"
    )
    assert data.fetch(["mnist"]) == {"mnist": ()}
    assert data.verify() == ()
    fetched["mnist"][1].write_bytes(b"damaged")
    fetched["mnist"][2].unlink()
    assert _states()["mnist"] == "damaged"
    assert [(bad.dataset, Path(bad.file), bad.problem.split()[0]) for bad in data.verify()] == [
        ("mnist", fetched["mnist"][1], "has"),
        ("mnist", fetched["mnist"][2], "missing"),
    ]
    assert data.fetch(["mnist"]) == {"mnist": fetched["mnist"][1:3]}
    assert _states()["mnist"] == "ready"


def test_files_put_there_by_hand_count(tiny: Published, tmp_path: Path) -> None:
    folder = tmp_path / "by hand" / RAW
    folder.mkdir(parents=True)
    for packed in (tmp_path / "origin").iterdir():
        (folder / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    (mnist,) = (row for row in data.list(tmp_path / "by hand") if row.name == "mnist")
    assert (mnist.state, mnist.where) == ("ready", str(folder))


def test_commands_say_what_they_did(
    tiny: Published, main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("data", "verify", "mnist") == 3
    shown = capsys.readouterr()
    assert "missing (MD5" in shown.out
    assert shown.err == "isoratio: files damaged or missing: 4\n"
    assert main("data", "fetch", "mnist") == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"mnist: downloaded {tmp_path / 'root' / RAW}/train-images-idx3-ubyte.gz, ")
    assert "\r" not in shown.err  # no progress off a terminal
    assert main("data", "fetch", "mnist") == 0
    assert capsys.readouterr().err == "mnist: was there already\n"
    assert main("data", "verify") == 0
    assert capsys.readouterr() == ("", "every file that is here is what was published\n")

    path = tmp_path / "root" / RAW / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1])
    assert main("data", "verify", "--format", "json") == 3
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["dataset"], row["file"]) == ("mnist", str(path))
    assert "published is" in row["problem"]
    assert "`isoratio data fetch mnist`" in row["problem"]


def test_progress_is_one_line_on_a_terminal(
    tiny: Published, main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main("data", "fetch", "mnist") == 0
    assert capsys.readouterr().err.startswith("\rtrain-images-idx3-ubyte.gz: 0.0 of 0.0 MB\n\rtrain-labels")


def test_what_cannot_be_fetched_is_a_usage_error(
    tiny: Published, main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "origin" / "t10k-images-idx3-ubyte.gz").write_bytes(b"another")
    assert main("data", "fetch", "mnist") == 2
    assert "gave 7 bytes with MD5" in capsys.readouterr().err
    assert main("data", "fetch", "minst", "mnist") == 2
    assert "unknown data set 'minst': allowed are mnist, " in capsys.readouterr().err
    assert main("data", "verify", "digits") == 2
    assert "data set 'digits' is built in: it has no files" in capsys.readouterr().err
    assert main("data", "fetch") == 2


def test_a_name_is_checked_before_anything_is_downloaded(tiny: Published, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        data.fetch(["mnist", "cifar11"])
    assert not (tmp_path / "root").exists()


def test_the_functions_are_found_from_the_package() -> None:
    assert orchestrator.data is data


@pytest.mark.parametrize("command", ["list", "fetch", "verify"])
def test_every_command_has_help_with_an_example(isoratio: Run, command: str) -> None:
    shown = isoratio("data", command, "--help")
    assert shown.returncode == 0
    assert f"Example: isoratio data {command}" in shown.stdout


@pytest.mark.parametrize(
    ("command", "forbidden"),
    [
        (["data", "--help"], {"torch", "ray", "duckdb", "pyarrow", "numpy"}),
        (["data", "list"], {"torch", "ray", "sklearn"}),
        (["data", "verify"], {"torch", "ray", "sklearn"}),
    ],
)
def test_the_commands_import_nothing_heavy(tmp_path: Path, command: list[str], forbidden: set[str]) -> None:
    code = (
        "import sys, orchestrator.cli\n"
        f"sys.argv = ['isoratio', *{command!r}]\n"
        "try: orchestrator.cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"assert not {forbidden!r} & set(sys.modules), {forbidden!r} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path, capture_output=True)
