"""A sweep file as plain data, with the line and column of every key and value."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

Place = tuple[str | int, ...]
"""Keys and list positions that lead from the top of the file to a value."""

Position = tuple[int, int]
"""Line and column, both from 1."""


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with a file, and where."""

    line: int
    column: int
    text: str


class SweepFileError(ValueError):
    """Everything that is wrong with a sweep file, one line each: ``file:line:column: what, allowed, did you mean``.

    Attributes:
        problems: in the order of the file.
    """

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        self.path = path
        self.problems = sorted(set(problems))
        super().__init__("\n".join(f"{path}:{p.line}:{p.column}: {p.text}" for p in self.problems))


@dataclass
class Source:
    """What stands in a file and where.

    Attributes:
        data: the top-level mapping.
        keys: where each key starts.
        values: where each value starts.
        problems: found while reading: duplicate keys.
    """

    path: Path
    text: str
    data: dict[str, Any] = field(default_factory=dict)
    keys: dict[Place, Position] = field(default_factory=dict)
    values: dict[Place, Position] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, place: Place, text: str, *, on_key: bool = False) -> Problem:
        """A problem at a value, or at its key; where the file has no such place, at the nearest one around it."""
        if on_key and place in self.keys:
            return Problem(*self.keys[place], text)
        while place and place not in self.values:
            place = place[:-1]
        return Problem(*self.values.get(place, (1, 1)), text)


def read(path: Path) -> Source:
    """Reads YAML 1.2, or TOML where the name ends in ``.toml``.

    Raises:
        SweepFileError: the file cannot be read, its syntax is wrong, or it is no mapping.
    """
    try:
        source = Source(path, path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        hint = "; `isoratio init` writes a starter" if isinstance(error, FileNotFoundError) else ""
        raise SweepFileError(path, [Problem(1, 1, f"cannot be read: {error.strerror}{hint}")]) from error
    except UnicodeDecodeError as error:
        raise SweepFileError(path, [Problem(1, 1, f"is not UTF-8 text: {error.reason}")]) from error
    try:
        (_read_toml if path.suffix == ".toml" else _read_yaml)(source)
    except RecursionError as error:
        raise SweepFileError(path, [Problem(1, 1, "is nested too deeply, or contains itself")]) from error
    return source


def _read_yaml(source: Source) -> None:
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True  # found below, all of them at once
    try:
        data = yaml.load(source.text)
        top = YAML(typ="safe", pure=True).compose(source.text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = str(error.problem or error).partition("\n")[0].strip()
        raise SweepFileError(source.path, [Problem(line, column, f"not valid YAML: {what}")]) from error
    except (YAMLError, ValueError) as error:
        raise SweepFileError(source.path, [Problem(1, 1, f"not valid YAML: {error}")]) from error
    if not isinstance(data, dict):
        text = "a mapping with name, dataset and grid is needed" + ("; the file is empty" if data is None else "")
        raise SweepFileError(source.path, [Problem(1, 1, text)])
    source.data = _text_keys(data)
    _mark_yaml(source, top, ())


def _text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _text_keys(v) for k, v in value.items()}
    return [_text_keys(v) for v in value] if isinstance(value, list) else value


def _mark_yaml(source: Source, node: Node, place: Place) -> None:
    source.values[place] = _position(node)
    if isinstance(node, SequenceNode):
        for i, item in enumerate(node.value):
            _mark_yaml(source, item, (*place, i))
    elif isinstance(node, MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            inner = (*place, str(key.value))
            if key.value in seen:
                text = f"duplicate key {key.value!r}, first given in line {source.keys[inner][0]}: keep one"
                source.problems.append(Problem(*_position(key), text))
                continue
            seen.add(key.value)
            source.keys[inner] = _position(key)
            _mark_yaml(source, value, inner)


def _position(node: Node) -> Position:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _read_toml(source: Source) -> None:
    try:
        source.data = tomllib.loads(source.text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r" \(at line (\d+), column (\d+)\)", str(error))
        line, column = (int(at[1]), int(at[2])) if at else (source.text.count("\n") + 1, 1)
        what = str(error).partition(" (at ")[0]
        raise SweepFileError(source.path, [Problem(line, column, f"not valid TOML: {what}")]) from error
    source.values[()] = (1, 1)
    _TomlMarks(source).scan()


class _TomlMarks:
    """Finds keys and values in a text that is known to be valid TOML."""

    TOKEN = re.compile(
        r'"""(?:\\.|[^\\])*?"""(?!")|\'\'\'.*?\'\'\'(?!\')|"(?:\\.|[^"\\])*"|\'[^\']*\''
        r"|[\[\]{}=,\n]|(?P<skip>\#[^\n]*|[ \t\r]+)|[^\s\[\]{}=,\#\"']+",
        re.DOTALL,
    )

    def __init__(self, source: Source) -> None:
        self.source = source
        self.tokens = list(self._tokens(source.text))[::-1]  # the next one last
        self.tables: dict[Place, int] = {}  # arrays of tables: how many entries so far

    def scan(self) -> None:
        table: Place = ()
        while self.tokens:
            token, position = self.tokens[-1]
            if token == "\n":
                self.tokens.pop()
            elif token == "[":
                table = self._header()
                for n in range(1, len(table) + 1):
                    self.source.values.setdefault(table[:n], position)
                    self.source.keys.setdefault(table[:n], position)
            else:
                self._pair(table)

    def _header(self) -> Place:
        is_array = False
        self.tokens.pop()
        if self.tokens[-1][0] == "[":
            self.tokens.pop()
            is_array = True
        keys = self._key("]")
        if is_array:
            self.tokens.pop()
        table: Place = ()
        for i, key in enumerate(keys):
            table = (*table, key)
            if is_array and i == len(keys) - 1:
                self.tables[table] = self.tables.get(table, 0) + 1
            if table in self.tables:
                table = (*table, self.tables[table] - 1)
        return table

    def _key(self, end: str) -> list[str]:
        """The parts of a dotted key, up to and with the token that ends it."""
        text = ""
        while (token := self.tokens.pop()[0]) != end:
            text += token
        keys: list[str] = []
        inner: Any = tomllib.loads(f"{text} = 0")
        while isinstance(inner, dict):
            key, inner = next(iter(inner.items()))
            keys.append(key)
        return keys

    def _pair(self, around: Place) -> None:
        position = self.tokens[-1][1]
        keys = self._key("=")
        for n in range(1, len(keys) + 1):
            place = (*around, *keys[:n])
            self.source.keys.setdefault(place, position)
            self.source.values.setdefault(place, self.tokens[-1][1])
        self._value((*around, *keys))

    def _value(self, place: Place) -> None:
        token, position = self.tokens.pop()
        self.source.values[place] = position
        if token not in {"[", "{"}:
            while self.tokens and self.tokens[-1][0] not in {",", "]", "}", "\n"}:
                self.tokens.pop()  # a date and its time
            return
        index = 0
        while (following := self.tokens[-1][0]) not in {"]", "}"}:
            if following in {",", "\n"}:
                self.tokens.pop()
            elif token == "{":
                self._pair(place)
            else:
                self._value((*place, index))
                index += 1
        self.tokens.pop()

    @classmethod
    def _tokens(cls, text: str) -> Iterator[tuple[str, Position]]:
        line, start = 1, 0
        for match in cls.TOKEN.finditer(text):
            if not match["skip"]:
                yield match[0], (line, match.start() - start + 1)
            if newlines := match[0].count("\n"):
                line += newlines
                start = match.start() + match[0].rindex("\n") + 1
