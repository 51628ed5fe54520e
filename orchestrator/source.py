"""A sweep file as plain data, with the line and column of every key and value."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from analysis.formats import escaped

MAX_BYTES = 500_000
"""Of a sweep file: for so many the parser takes some seconds."""

MAX_VALUES = 200_000
"""In a sweep file; an alias counts as all that it stands for."""

MAX_DEPTH = 64
"""Of lists and mappings within each other."""

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
        super().__init__("\n".join(escaped(f"{path}:{p.line}:{p.column}: {p.text}") for p in self.problems))


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


def read(path: Path, text: str | None = None) -> Source:
    """Reads YAML 1.2, or TOML where the name ends in ``.toml``: plain values only, nothing is built or run.

    Raises:
        SweepFileError: the file cannot be read or is too large, its syntax is wrong, or it is no mapping.
    """
    source = Source(path, _text(path) if text is None else text)
    try:
        (_read_toml if path.suffix == ".toml" else _read_yaml)(source)
    except RecursionError as error:
        raise _too_deep(source, (1, 1)) from error
    return source


def _text(path: Path) -> str:
    def refusal(text: str) -> SweepFileError:
        return SweepFileError(path, [Problem(1, 1, text)])

    try:
        with open(path, "rb", opener=_opened) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it might never end
                raise refusal("is a pipe or a device: a file is expected")
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise refusal(f"is larger than {MAX_BYTES:,} bytes: write long axes as range, linspace or logspace")
        return re.sub("\r\n?", "\n", content.decode("utf-8-sig"))
    except OSError as error:
        hint = "; `isoratio init` writes a starter" if isinstance(error, FileNotFoundError) else ""
        raise refusal(f"cannot be read: {error.strerror}{hint}") from error
    except UnicodeDecodeError as error:
        raise refusal(f"is not UTF-8 text: {error.reason}") from error


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for someone to write


def _too_deep(source: Source, position: Position) -> SweepFileError:
    text = f"is nested too deeply (at most {MAX_DEPTH} levels), or contains itself"
    return SweepFileError(source.path, [Problem(*position, text)])


def _read_yaml(source: Source) -> None:
    yaml = YAML(typ="safe", pure=True)
    try:
        top = yaml.compose(source.text)
    except ReaderError as error:
        before = source.text[: error.position].split("\n")
        what = f"the character U+{error.character:04X} is not allowed"
        problem = Problem(len(before), len(before[-1]) + 1, f"not valid YAML: {what}")
        raise SweepFileError(source.path, [problem]) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = str(error.problem or error).partition("\n")[0].strip()
        raise SweepFileError(source.path, [Problem(line, column, f"not valid YAML: {what}")]) from error
    except (YAMLError, ValueError) as error:
        raise SweepFileError(source.path, [Problem(1, 1, f"not valid YAML: {error}")]) from error
    data = None if top is None else _YamlValues(source, yaml).value(top, ())
    if not isinstance(data, dict):
        text = "a mapping with name, dataset and grid is needed" + ("; the file is empty" if top is None else "")
        raise SweepFileError(source.path, source.problems or [Problem(1, 1, text)])
    source.data = data


class _YamlValues:
    """Takes values out of a composed document, with their marks, aliases written out; keys are text as it stands."""

    def __init__(self, source: Source, yaml: YAML) -> None:
        self.source, self.yaml = source, yaml
        self.count = 0

    def value(self, node: Node, place: Place) -> Any:
        """A number, text, list, mapping, ...; None with a problem for what is none of these."""
        self.source.values[place] = position = _position(node)
        self.count += 1
        if len(place) > MAX_DEPTH:
            raise _too_deep(self.source, position)
        if self.count > MAX_VALUES:
            text = (
                f"holds more than {MAX_VALUES:,} values, counting what its aliases (*) stand for: give each value once"
            )
            raise SweepFileError(self.source.path, [Problem(*position, text)])
        if self._has_tag(node):
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, place)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*place, i)) for i, item in enumerate(node.value)]
        try:
            return self.yaml.constructor.construct_object(node)
        except (ValueError, YAMLError) as error:  # such as the 45th of a month
            self._report(node, f"not valid YAML: {getattr(error, 'problem', error)}")
            return None

    def _has_tag(self, node: Node) -> bool:
        """Whether it is marked as something else than it looks like, which is reported."""
        plain = isinstance(node, ScalarNode) and node.style is None
        if str(node.tag) == str(self.yaml.resolver.resolve(type(node), node.value, (plain, True))):
            return False
        tag = str(node.tag).replace("tag:yaml.org,2002:", "!!")
        self._report(node, f"the tag {tag} is not allowed: give a plain value, text in quotes")
        return True

    def _mapping(self, node: MappingNode, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for merged in reversed(list(_merged(node))):  # earlier ones win, and the mapping's own keys over all
            value = self.value(merged, place)
            found |= value if isinstance(value, dict) else {}
        self.source.values[place] = _position(node)
        own: set[str] = set()
        for key, value in node.value:
            inner = (*place, key.value) if isinstance(key, ScalarNode) else place
            if inner == place:
                self._report(key, "a key must be plain text")
            elif key.value in own:
                line, _ = self.source.keys[inner]
                self._report(key, f"duplicate key {key.value!r}, first given in line {line}: keep one")
            elif not (self._has_tag(key) or _is_merge(key)):
                own.add(key.value)
                self.source.keys[inner] = _position(key)
                found[key.value] = self.value(value, inner)
        return found

    def _report(self, node: Node, text: str) -> None:
        self.source.problems.append(Problem(*_position(node), text))


def _merged(node: MappingNode) -> Iterator[Node]:
    """What ``<<: *one`` and ``<<: [*one, *two]`` take in."""
    for key, value in node.value:
        if _is_merge(key):
            yield from value.value if isinstance(value, SequenceNode) else [value]


def _is_merge(key: Node) -> bool:
    return str(key.tag) == "tag:yaml.org,2002:merge"


def _position(node: Node) -> Position:
    return node.start_mark.line + 1, node.start_mark.column + 1


_DEEP_KEY = re.compile(rf"(?<![^\s.=,\[\]{{}}])(?:[^\s.=,\[\]{{}}]++[ \t]*+\.[ \t]*+){{{MAX_DEPTH}}}")
"""A dotted key with so many parts that it would take tomllib minutes."""


def _read_toml(source: Source) -> None:
    if deep := _DEEP_KEY.search(source.text):
        raise _too_deep(source, (source.text.count("\n", 0, deep.start()) + 1, 1))
    try:
        source.data = tomllib.loads(source.text)
    except ValueError as error:
        at = re.search(r" \(at line (\d+), column (\d+)\)", str(error))
        line, column = (int(at[1]), int(at[2])) if at else (source.text.count("\n") + 1, 1)
        what = str(error).partition(" (at ")[0]
        raise SweepFileError(source.path, [Problem(line, column, f"not valid TOML: {what}")]) from error
    if _depth(source.data) > MAX_DEPTH:
        raise _too_deep(source, (1, 1))
    source.values[()] = (1, 1)
    _TomlMarks(source).scan()


def _depth(data: Any) -> int:
    """How many lists and mappings are within each other, looked at level by level."""
    depth, level = 0, [data]
    while level := [v for v in level if isinstance(v, dict | list)]:
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
        depth += 1
    return depth


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
