"""The prompt: what is typed, what is shown, and that it survives mistakes, Ctrl-C and odd data."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from analysis.sql import stream
from orchestrator import shell, terminal
from orchestrator.shell import Shell, history_file
from orchestrator.terminal import AnswerFormat, print_answer

pty = pytest.importorskip("pty")
pytest.importorskip("readline")
ROOT = Path(__file__).parents[2]
Talk = Callable[..., tuple[str, str]]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Talk:
    """Types lines and gives back output and messages; an exception among the lines is raised by the prompt."""
    monkeypatch.setattr(shell, "_with_history", lambda complete: lambda: None)

    def typed(*lines: str | type[BaseException]) -> tuple[str, str]:
        given = iter(lines)

        def answer(prompt: str) -> str:
            line = next(given, EOFError)
            if not isinstance(line, str):
                raise line
            return line

        monkeypatch.setattr("builtins.input", answer)
        Shell(str(tmp_path / "results")).run()
        out, err = capsys.readouterr()
        return out, err.partition("leaves\n")[2]

    return typed


def test_queries_may_take_several_lines(talk: Talk) -> None:
    out, err = talk("SELECT 41", "  + 1 AS answer", "", ";", "VALUES ('a;", "b');", "quit")
    assert "answer" in out
    assert "42" in out
    assert r"a;\nb" in out
    assert err == ""


def test_mistakes_are_said_and_the_prompt_stays(talk: Talk) -> None:
    out, err = talk("SELECT lamda_max FROM trials;", "DROP VIEW trials;", ";", "SELECT 42 AS answer;")
    assert "no column lamda_max: did you mean lambda_max" in err
    assert "DROP is not allowed" in err
    assert "one statement is expected, 0 were given" in err
    assert "Traceback" not in err
    assert "42" in out


def test_ctrl_c_drops_the_line(talk: Talk) -> None:
    out, err = talk("SELECT nonsense", KeyboardInterrupt, "SELECT 42 AS answer;")
    assert "42" in out
    assert err == ""


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (".tables", "trials\ncurves\neigenvalues\ndensity\nprofiles\nplan\nprovenance\ncell_means\nline_contrasts\n"),
        (".schema curves", "statistic"),
        (".schema", "provenance_id"),
        (".macros", "standard_error(x)"),
        (".named", "collapse"),
        (".show collapse", "-- Does only the ratio matter?"),
        (".help", ".format table|json|csv|markdown"),
        (".named packs", "no rows"),
    ],
)
def test_dot_commands(talk: Talk, line: str, says: str) -> None:
    out, err = talk(line)
    assert says in out
    assert err == ""


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (".nope", "no command .nope: there are .tables, .schema"),
        (".", "no command .: there are"),
        (".schema trails", "no table trails: there are trials, curves"),
        (".schema a b", ".schema: too many or too few words; see .help"),
        (".show", ".show: too many or too few words"),
        (".named colapse", "unknown named query 'colapse': did you mean 'collapse'?"),
        (".format parquet", "no format parquet here: there are table, json, csv, markdown"),
    ],
)
def test_dot_commands_that_are_wrong(talk: Talk, line: str, says: str) -> None:
    out, err = talk(line)
    assert says in err
    assert out == "\n"


def test_the_format_stays_until_it_is_changed(talk: Talk) -> None:
    out, _ = talk(".format csv", "SELECT 1 AS a;", "SELECT 2 AS b;", ".format json", "SELECT 3 AS c;")
    assert out == 'a\n1\nb\n2\n[\n{"c": 3}\n]\n\n'


def test_completion_follows_what_is_typed(tmp_path: Path) -> None:
    complete = Shell(str(tmp_path))._complete
    assert complete(".", "sch") == ["schema"]
    assert complete(".schema ", "cu") == ["curves"]
    assert complete(".named ", "coll") == ["collapse"]
    assert complete(".format ", "") == ["table", "json", "csv", "markdown"]
    assert complete(".nothing ", "") == []
    assert complete("SELECT ", "lambda_ma") == ["lambda_max", "lambda_max_residual"]


def test_history_lies_in_the_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_file() == tmp_path / "isoratio" / "sql_history"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history_file() == tmp_path / ".local" / "state" / "isoratio" / "sql_history"


class Terminal:
    """A prompt on a pseudo-terminal."""

    def __init__(self, home: Path) -> None:
        code = f"from orchestrator.shell import Shell; Shell({str(home / 'results')!r}).run()"
        self.master, slave = pty.openpty()
        env = os.environ | {"XDG_STATE_HOME": str(home), "TERM": "dumb", "INPUTRC": os.devnull, "COLUMNS": "100"}
        ends = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=env, start_new_session=True, preexec_fn=_own_terminal, **ends
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]


def _own_terminal() -> None:
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.default_int_handler)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path)
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.master)


def test_on_a_terminal(screen: Terminal, tmp_path: Path) -> None:
    screen.wait_for("isoratio> ")
    screen.type("SELECT test_accu\t, lr FROM tri\t;\n")
    screen.wait_for("no rows: test_accuracy, lr")
    screen.wait_for("isoratio> ")
    screen.type("SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE hash(a.range + b.range) = 3;\n")
    screen.wait_for("= 3;")
    time.sleep(1)
    screen.type("\x03")
    screen.wait_for("interrupted")
    screen.wait_for("isoratio> ")
    screen.type("SELECT chr(27) || '[2J' AS evil, 6 * 7 AS answer;\n")
    screen.wait_for(r"\x1b[2J")
    screen.wait_for("42")
    screen.wait_for("isoratio> ")
    screen.type("\x1b[A")  # up: the last query again
    screen.wait_for("AS answer;")
    time.sleep(1)  # a signal while a key is still worked on waits, as everywhere in Python, for the next key
    screen.type("\x03")
    screen.wait_for("isoratio> ")
    screen.type("\x04")
    assert screen.process.wait(30) == 0
    assert "6 * 7 AS answer;" in (tmp_path / "isoratio" / "sql_history").read_text()


@pytest.mark.parametrize(("on_terminal", "most"), [(True, 200), (False, 10_000)])
def test_a_long_table_is_cut_and_says_so(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    on_terminal: bool,
    most: int,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: on_terminal, raising=False)
    monkeypatch.setattr(terminal, "width", lambda: 80)
    for n in (most, 1_000_000):
        with stream(tmp_path, f"FROM range({n})") as rows:
            print_answer(rows, AnswerFormat.TABLE)
        out, err = capsys.readouterr()
        assert len(out.splitlines()) == most + 2
        assert err == (
            ""
            if n == most
            else f"1,000,000 rows, the first {most:,} are shown; all with format csv, json, markdown or parquet\n"
        )


def test_parquet_goes_into_a_file_and_not_to_a_terminal(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with stream(tmp_path, "SELECT range AS n FROM range(200000)") as rows:
        print_answer(rows, AnswerFormat.PARQUET)
        sys.stdout.flush()
    (tmp_path / "rows.parquet").write_bytes(capfdbinary.readouterr().out)
    assert pq.read_table(tmp_path / "rows.parquet")["n"].to_pylist() == list(range(200_000))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(ValueError, match=r"> rows\.parquet"), stream(tmp_path, "SELECT 1") as rows:
        print_answer(rows, AnswerFormat.PARQUET)


def test_asking_imports_neither_torch_nor_pandas(tmp_path: Path) -> None:
    code = (
        "import sys; from orchestrator.terminal import without_pandas\n"
        "with without_pandas():\n    from orchestrator.shell import Shell; from orchestrator import sql\n"
        f"table = sql({str(tmp_path)!r}, 'SELECT 1 AS a')\n"
        "print({'torch', 'ray', 'scipy', 'pandas'} & {*sys.modules}, table.to_pandas().a.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout, done.stderr) == ("set() [1]\n", "")
