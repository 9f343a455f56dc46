"""Names come from strangers: whatever they hold, the command line prints lines of text, and JSON keeps them exactly."""

import json
import os
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from commands import OF_CHECKPOINTS, with_path

import jaxckpt
from jaxckpt._lib import output, progress
from jaxckpt.cli import COMMANDS, main

# What acts on a terminal, or is not seen: C0, escape sequences (title, colour, clipboard, cursor), DEL, C1, order of text,
# zero width, line and paragraph separators, tags, a filler.
EVIL = (
    "\x1b]0;owned\x07\x1b[2J\x1b[31m\x1b]52;c;AAAA\x1b\\\x00\x08\x0d\n\t\x7f\x80\x9b31m\x9d"
    "\u202e\u2066\u200b\u200d\ufeff\u2028\u2029\u061c\U000e0041\u3164\u034f\x85"
)
KEPT = "größe 重み вес ελ 🙂 a\u0301"


def is_clean(text: str) -> bool:
    return not any(
        unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in "\u3164\u034f"
        for line in text.split("\n")
        for character in line
    )


def checked(captured: object, lines: int | None = None) -> str:
    """Returns what was printed on both streams, which holds nothing but lines of text."""
    text = captured.out + captured.err
    assert is_clean(text), ascii(text)
    if lines is not None:
        assert text.count("\n") == lines, ascii(text)
    return text


@pytest.fixture
def paths(tmp_path):
    """Two checkpoints that differ, with such names, in a directory that has such a name."""
    # A file system does not take the null character.
    evil = EVIL.replace("\x00", "")
    directory = tmp_path / f"dir{evil}{KEPT}"
    state = {f"leaf{EVIL}{KEPT}": np.arange(4096.0), f"text{EVIL}": f"value{EVIL}", "plain": 1}
    first = jaxckpt.Checkpoint(model=state).save(directory / f"ckpt{evil}")
    state = {**state, f"leaf{EVIL}{KEPT}": np.arange(1.0, 4097.0), f"text{EVIL}": "other", f"more{EVIL}": 2}
    second = jaxckpt.Checkpoint(model=state).save(directory / f"ckpt{evil}")
    return directory, first, second


def test_what_is_escaped_and_what_stays():
    assert output.printable(KEPT) == KEPT
    assert output.printable("a b\u3000c\u00a0d\\x1b") == "a b\u3000c\u00a0d\\x1b"
    assert output.printable("\x1b[31m\n\x7f\x9b\u202e\ud800\U000e0041") == (
        "\\x1b[31m\\n\\x7f\\x9b\\u202e\\ud800\\U000e0041"
    )
    for code in (*range(0x10000), *range(0xE0000, 0xE0200)):
        shown = output.printable(chr(code))
        assert is_clean(shown)
        assert shown == chr(code) or shown.isascii()
    assert output.table([("a\x1b", "b"), ("ccccc", "d")]) == ["a\\x1b  b", "ccccc  d"]


@pytest.mark.parametrize("command", OF_CHECKPOINTS)
def test_names_are_escaped(command, paths, capsys):
    directory, first, second = paths
    arguments = {
        "list": [directory],
        "report": [directory],
        "clean": [directory],
        "diff": [first, second],
        "verify": [first, second],
    }
    arguments["convert"] = [second, f"{second}-new", "--overwrite"]
    given = [str(each) for each in arguments.get(command, [second])]
    assert main([command, *given]) == (1 if command == "diff" else 0)
    text = checked(capsys.readouterr())
    assert "\\x1b]0;owned\\x07" in text
    assert "\\u202e\\u2066\\u200b" in text
    assert KEPT in text
    assert main([command, "--json", *given]) == (1 if command == "diff" else 0)
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", printed)
    document = json.loads(printed)
    if command == "inspect":
        assert [leaf["name"] for leaf in document["leaves"]] == jaxckpt.load_checkpoint(second).keys()
        assert f"model/leaf{EVIL}{KEPT}" in [leaf["name"] for leaf in document["leaves"]]
    if command == "diff":
        assert f"model/more{EVIL}" in [each["name"] for each in document["differences"]]
    if command in ("list", "clean"):
        assert document["directory"] == str(directory)


@pytest.mark.slow
def test_the_bytes_that_a_process_prints(paths, cli_command):
    command, environment = cli_command
    _, first, second = paths
    for encoding in ("utf-8", "ascii", "latin-1"):
        done = subprocess.run(
            [*command, "diff", "--ignore", f"nothing{EVIL}".replace("\x00", ""), first, second],
            env={**os.environ, **environment, "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 1
        assert is_clean(done.stdout.decode(encoding))
        assert is_clean(done.stderr.decode(encoding))
        (line,) = done.stderr.splitlines()
        assert line.startswith(b"jaxckpt diff: warning: --ignore 'nothing\\x1b]0;owned")


def test_damage_is_escaped(paths, capsys):
    _, _, second = paths
    data = max((file for file in Path(second).rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert main(["verify", second]) == 1
    assert "DAMAGED" in checked(capsys.readouterr())
    assert main(["verify", "--json", second]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert {problem["where"] for problem in report["problems"]} <= {f"model/leaf{EVIL}{KEPT}", str(data)}
    (Path(second) / "_METADATA").unlink()
    assert main(["inspect", second]) == 1
    assert checked(capsys.readouterr(), lines=1).startswith("jaxckpt inspect: error: ")


def test_errors_warnings_and_usage_are_escaped(paths, tmp_path, capsys):
    directory, _, second = paths
    evil = EVIL.replace("\x00", "")
    for command in COMMANDS:
        assert main(with_path(command, f"{tmp_path}/missing{evil}.yaml")) == 1
        assert checked(capsys.readouterr(), lines=1).startswith(f"jaxckpt {command}: error: {tmp_path}/missing\\x1b]0;")
    assert main(["inspect", "--debug", f"{tmp_path}/missing{evil}"]) == 1
    assert checked(capsys.readouterr()).startswith("Traceback")
    # The latest is gone: a warning that names it.
    shutil.rmtree(second)
    assert main(["list", str(directory)]) == 0
    captured = capsys.readouterr()
    checked(captured)
    (line,) = captured.err.splitlines()
    assert line.startswith("jaxckpt list: warning: ")
    (directory / "checkpoint").write_text(f"model_checkpoint_path: {EVIL}")
    assert main(["list", str(directory)]) == 0
    assert "warning: Ignoring the state file" in checked(capsys.readouterr())
    with pytest.raises(SystemExit) as stopped:
        main(["verify", second, f"--x{evil}"])
    assert stopped.value.code == 2
    checked(capsys.readouterr())


def test_leftovers_are_escaped(paths, capsys):
    directory, _, _ = paths
    leftover = directory / f"ckpt{EVIL}-9.jaxckpt-tmp-x".replace("\x00", "")
    leftover.mkdir()
    for command in ("list", "clean"):
        assert main([command, str(directory)]) == 0
        checked(capsys.readouterr())


def test_configs_are_escaped(tmp_path, capsys):
    text = json.dumps(EVIL.replace("\x00", ""))
    config = tmp_path / "run.yaml"
    config.write_text(
        f"directory: {text}\nmax_to_keep: 3\ncheckpoint_name: {text.replace('/', '')}\n", encoding="utf-8"
    )
    assert main(["explain", str(config)]) == 0
    assert "\\x1b]0;owned" in checked(capsys.readouterr())
    assert main(["explain", "--json", str(config)]) == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed)["manager"]["directory"] == EVIL.replace("\x00", "")
    config.write_text(f"directory: d\nmax_to_keep: {text}\n{text}: 1\ninit_fn: {text}\n", encoding="utf-8")
    assert main(["explain", str(config)]) == 1
    assert checked(capsys.readouterr(), lines=4).startswith("jaxckpt explain: error: 3 problems in ")


def test_a_progress_line_is_escaped(monkeypatch):
    class Terminal:
        encoding = "ascii"
        text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress.Progress(f"reading {EVIL}{KEPT}", after_secs=0):
        while "reading" not in terminal.text:
            pass
    drawn = terminal.text
    # What rich moves the cursor with.
    for own in ("\x1b[?25l", "\x1b[?25h", "\x1b[2K", "\x1b[1A", "\r"):
        drawn = drawn.replace(own, "")
    assert "reading \\x1b]0;owned" in drawn
    assert is_clean(drawn)
    assert drawn.isascii()
