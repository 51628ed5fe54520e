"""A sweep file from anywhere: it builds no objects, fills no memory, keeps no one waiting, and is one clear message."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.source import MAX_BYTES, MAX_DEPTH, MAX_VALUES, SweepFileError, read

SECONDS = 20.0
"""Of processor time, within which any file is dealt with; it takes less than 3 here."""


@pytest.fixture
def problems(tmp_path: Path) -> Callable[..., list[str]]:
    """What is said of a file with that content."""

    def say(content: str | bytes, suffix: str = ".yaml") -> list[str]:
        path = tmp_path / f"s{suffix}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        began = time.process_time()
        try:
            found = [(p.line, p.column, p.text) for p in read(path).problems]
        except SweepFileError as error:
            found = [(p.line, p.column, p.text) for p in error.problems]
        assert time.process_time() - began < SECONDS
        return [f"{line}:{column}: {text}" for line, column, text in found]

    return say


# --- nothing is built -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["{}", "a: {}", "a: [{}]", "a: {{b: {}}}"])
@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir [built]",
        "!!python/object/new:os.mkdir [built]",
        "!!python/object:os.mkdir {}",
        "!!python/name:os.mkdir x",
        "!!python/module:os x",
        "!own x",
        "!<tag:yaml.org,2002:python/name:os.mkdir> x",
        "!!binary aGk=",
        "!!set {x}",
        "!!omap [x: 1]",
        "!!bool x",  # these three take the parser's own constructors where they crash
        "!!int ''",
        "!!timestamp x",
        "!!str 12",
    ],
)
def test_no_tag_is_allowed(
    problems: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, tag: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = place.format(tag)
    (problem,) = problems(text)
    assert re.match(rf"1:{text.index('!') + 1}: the tag !\S+ is not allowed: give a plain value, text in q", problem)
    assert not (tmp_path / "built").exists()


def test_a_tag_on_a_key_is_not_allowed_either(problems: Callable[..., list[str]]) -> None:
    (problem,) = problems("a: 1\n!!python/name:os.mkdir b: 2\n")
    assert problem.startswith("2:1: the tag !!python/name:os.mkdir is not allowed")


def test_values_are_plain(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("{a: [1, 0x10, 1e-3, .inf], b: no, c: ~, d: true, 'e': '1', f: {g: x}}")
    assert read(path).data == {
        "a": [1, 16, 1e-3, float("inf")],
        "b": "no",
        "c": None,
        "d": True,
        "e": "1",
        "f": {"g": "x"},
    }


# --- nothing grows --------------------------------------------------------------------------------------------------


def _doubled(start: str, join: str) -> str:
    """Forty lines, each of which stands for nine times the one before it."""
    lines = (f"a{i}: &a{i} {join.format(', '.join([f'*a{i - 1}'] * 9))}\n" for i in range(1, 40))
    return f"a0: &a0 {start}\n" + "".join(lines)


@pytest.mark.parametrize("text", [_doubled("[x]", "[{}]"), _doubled("{k: 1}", "{{<<: [{}]}}")], ids=["lists", "merges"])
def test_aliases_do_not_explode(problems: Callable[..., list[str]], text: str) -> None:
    (problem,) = problems(text)
    limit = f"holds more than {MAX_VALUES:,} values, counting what its aliases (*) stand for: give each value once"
    assert problem.endswith(limit)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("a: &a [*a]", "1:4"),
        ("a: &a {b: *a}", "1:4"),
        ("&a {<<: *a}", "1:1"),
        ("a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"1:{4 + MAX_DEPTH}"),
        ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 99)), "1:10"),
        ("[" * 100_000, "1:1"),
        ("{a: " * (MAX_BYTES // 4), "1:1"),
        ("- " * (MAX_BYTES // 2), "1:1"),
    ],
    ids=["list in itself", "mapping in itself", "merged with itself", "limit", "chain", "lists", "mappings", "block"],
)
def test_depth_is_bounded(problems: Callable[..., list[str]], text: str, at: str) -> None:
    assert problems(text) == [f"{at}: is nested too deeply (at most {MAX_DEPTH} levels), or contains itself"]


def test_what_is_just_deep_enough_is_read(problems: Callable[..., list[str]]) -> None:
    assert problems("a: " + "[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1)) == []
    assert problems("a = " + "[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1), ".toml") == []


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "[" * MAX_DEPTH + "]" * MAX_DEPTH,
        "a." * 200_000 + "a = 1",
        "[" + "a." * 200_000 + "a]",
        '"a" . ' * 80_000 + "a = 1",
    ],
    ids=["lists", "limit", "key", "table", "quoted"],
)
def test_depth_is_bounded_in_toml(problems: Callable[..., list[str]], text: str) -> None:
    assert problems(text, ".toml") == [f"1:1: is nested too deeply (at most {MAX_DEPTH} levels), or contains itself"]


@pytest.mark.parametrize("suffix", [".yaml", ".toml"])
def test_a_huge_file_is_not_read(problems: Callable[..., list[str]], suffix: str) -> None:
    said = f"1:1: is larger than {MAX_BYTES:,} bytes: write long axes as range, linspace or logspace"
    assert problems("é" * MAX_BYTES, suffix) == [said]


def test_a_file_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "s.yaml").open("wb") as file:
        file.truncate(2**40)  # of holes
    with pytest.raises(SweepFileError, match="is larger than"):
        read(tmp_path / "s.yaml")


# --- aliases and merges that are well meant -------------------------------------------------------------------------


def test_aliases_and_merges_are_written_out(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "one: &one {a: 1, b: 2}\n"
        "two: &two {b: 3, c: 4}\n"
        "own: {<<: *one, b: 5}\n"
        "both: {<<: [*one, *two]}\n"
        "last: {c: 6, <<: *two}\n"
        "list: [*one, *one]\n"
    )
    found = read(path)
    assert found.problems == []
    assert found.data["own"] == {"a": 1, "b": 5}
    assert found.data["both"] == {"a": 1, "b": 2, "c": 4}
    assert found.data["last"] == {"b": 3, "c": 6}
    assert found.data["list"] == [{"a": 1, "b": 2}] * 2
    assert found.values["own", "b"] == (3, 20)
    assert (found.keys["own", "a"], found.keys["own", "b"]) == ((1, 12), (3, 17))
    assert found.values["last",] == (5, 7)


# --- one meaning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "3:1: duplicate key 'a', first given in line 1: keep one"),
        ("a: 1\n'a': 3", "2:1: duplicate key 'a', first given in line 1: keep one"),
        ("1: 1\n'1': 3", "2:1: duplicate key '1', first given in line 1: keep one"),
        ("a: {b: 1, c: 2, b: 1}", "1:17: duplicate key 'b', first given in line 1: keep one"),
        ("[a]: 1", "1:1: a key must be plain text"),
        ("? {a: 1}\n: 2", "1:3: a key must be plain text"),
        ("a: 2020-13-45", "1:4: not valid YAML: month must be in 1..12"),
        (f"a: [1, {'9' * 5000}]", "1:8: not valid YAML: Exceeds the limit (4300 digits)"),
        ("a: =", "1:4: not valid YAML: could not determine a constructor for the tag"),
        ("a: 1\n---\nb: 2", "2:1: not valid YAML: but found another document"),
    ],
)
def test_what_has_no_one_meaning_is_a_problem(problems: Callable[..., list[str]], text: str, says: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(says)


def test_keys_are_text_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("{1.0: a, 1.00: b, true: c, ~: d, 0x1: e}")
    assert read(tmp_path / "s.yaml").data == {"1.0": "a", "1.00": "b", "true": "c", "~": "d", "0x1": "e"}


@pytest.mark.parametrize("text", ["a = 1\na = 2", "a = {b = 1, b = 2}", "[a]\n[a]"])
def test_duplicate_keys_in_toml(problems: Callable[..., list[str]], text: str) -> None:
    (problem,) = problems(text, ".toml")
    assert re.match(r"\d:\d+: not valid TOML: (Cannot overwrite|Duplicate|Cannot declare)", problem)


# --- what is no text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name: \xe9\n", "1:1: is not UTF-8 text: invalid continuation byte"),
        ("name: é".encode("utf-16"), "1:1: is not UTF-8 text: invalid start byte"),
        (b"PAR1\x15\x04\x15\xff\x00", "1:1: is not UTF-8 text: invalid start byte"),
        (b"a: 1\nb: x\0y", "2:5: not valid YAML: the character U+0000 is not allowed"),
        (b"a: \x1b[31mred", "1:4: not valid YAML: the character U+001B is not allowed"),
    ],
)
def test_what_is_no_text(problems: Callable[..., list[str]], content: bytes, says: str) -> None:
    assert problems(content) == [says]


def test_no_text_in_toml(problems: Callable[..., list[str]]) -> None:
    assert problems(b"a = 'x\0y'", ".toml") == [r"1:7: not valid TOML: Found invalid character '\x00'"]
    (problem,) = problems(f"a = {'9' * 5000}", ".toml")
    assert problem.startswith("1:1: not valid TOML: Exceeds the limit")


def test_a_byte_order_mark_and_other_line_ends_are_text(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\rc: |\r\n  x\r\n  y\r\n")
    found = read(tmp_path / "s.yaml")
    assert found.data == {"a": 1, "b": 2, "c": "x\ny\n"}
    assert (found.keys["a",], found.keys["c",]) == ((1, 1), (3, 1))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(SweepFileError, match=f"{path}:1:1: is a pipe or a device: a file is expected"):
            read(path)
    with pytest.raises(SweepFileError, match="cannot be read: Is a directory"):
        read(tmp_path)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        with pytest.raises(SweepFileError, match="cannot be read: No such device or address"):
            read(tmp_path / "socket")


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none"):
        with pytest.raises(SweepFileError):
            read(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_each_problem_is_one_line_whatever_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "s\nt\x1b[2J.yaml"
    path.write_text('{a: 1, "b\\n1:1: forged\\e[31m": 2, "b\\n1:1: forged\\e[31m": 3}')
    found = read(path).problems
    (line,) = str(SweepFileError(path, found)).splitlines()
    assert re.search(r"s\\nt\\x1b\[2J\.yaml:1:\d+: duplicate key", line)
    assert line.isprintable()


def test_limits_leave_room_for_a_long_axis(tmp_path: Path) -> None:
    """Ten thousand seeds, written out."""
    (tmp_path / "s.yaml").write_text(f"seed: {list(range(10_000))}")
    assert len(read(tmp_path / "s.yaml").data["seed"]) == 10_000
