"""Whatever names, files, rows and errors hold: it is shown, and drives no terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import cli, terminal
from orchestrator.terminal import Exit, Format, fail, print_rows, say, show, shown

EVIL = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202etxt.\u2066\u200b[red]:smile:"
HARMLESS = r"\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202etxt.\u2066\u200b[red]:smile:"


def test_messages_keep_lines_and_write_out_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"one\n\ttwo {EVIL}")
    show(f"three\n\tfour {EVIL}")
    out, err = capsys.readouterr()
    assert err == f"one\n\ttwo {HARMLESS}\n"
    assert out == f"three\n\tfour {HARMLESS}\n"
    assert shown("µ ∝ × 学習率 é") == "µ ∝ × 学習率 é"


@pytest.mark.parametrize(("named", "head"), [(True, "isoratio: "), (False, "")])
def test_failing_says_why(capsys: pytest.CaptureFixture[str], named: bool, head: str) -> None:
    with pytest.raises(SystemExit) as ended:
        fail(f"no {EVIL}", Exit.STORE, name=named)
    assert ended.value.code == 3
    assert capsys.readouterr() == ("", f"{head}no {HARMLESS}\n")


@pytest.mark.parametrize("on_terminal", [False, True])
@pytest.mark.parametrize("format_", list(Format))
def test_rows_are_safe_to_look_at_and_data_stay_data(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, format_: Format, on_terminal: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: on_terminal, raising=False)
    monkeypatch.setattr(terminal, "width", lambda: 200)
    print_rows([{EVIL: EVIL, "n": 1}], format_)
    out = capsys.readouterr().out
    if format_ is Format.CSV and not on_terminal:
        assert out == f'"{EVIL}",n\n"{EVIL}",1\n'
    else:
        assert all(c.isprintable() for c in out.replace("\n", ""))
        assert "[red]:smile:" in out
    if format_ is not Format.JSON:
        assert (HARMLESS in out) == (format_ is Format.TABLE or on_terminal)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["plan", f"{EVIL}.yaml"], 2),
        (["plan", "evil.yaml"], 2),
        (["status", EVIL], 2),
        (["status", "--store", f"x://host/{EVIL}"], 2),
        (["export", EVIL, "x.csv"], 2),
        (["import", f"{EVIL}.csv", "--sweep", "s"], 2),
        (["init", EVIL], 0),
        (["sql", f"SELECT '{EVIL}' AS \"{EVIL}\""], 0),
        (["sql", f'SELECT "{EVIL}"'], 2),
        (["invariance", EVIL], 2),
    ],
)
def test_commands_show_what_they_were_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.yaml").write_text(
        '{name: s, "k\\e]0;owned\\a\\e[2J[red]:smile:": 1, dataset: "\\u202etxt.[red]:smile:"}'
    )
    monkeypatch.setattr(sys, "argv", ["isoratio", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    text = "".join(capsys.readouterr())
    assert (ended.value.code or 0) == code
    assert "[red]:smile:" in text
    assert all(c.isprintable() for c in text.replace("\n", "")), text


def test_messages_need_nothing_heavy() -> None:
    """A machine out of memory or of file descriptors must still say so."""
    heavy = "{'pyarrow', 'pydantic', 'duckdb', 'numpy', 'torch', 'ray'}"
    code = f"import sys; from orchestrator.terminal import say; say('x'); print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "x\n")
