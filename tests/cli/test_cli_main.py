"""What all commands share: usage, exit codes, errors of one line, broken pipes."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import with_path

import jaxckpt
from jaxckpt._lib import output, progress
from jaxckpt.cli import COMMANDS, main


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert command in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json_and_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["inspect"], ["verify"], ["diff", "one"], ["demo", "--steps", "0"]],
    ids=" ".join,
)
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: jaxckpt" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_a_command_does_not_have(command, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([*with_path(command, tmp_path), "--no-such-flag"])
    assert end.value.code == 2
    assert f"usage: jaxckpt {command}" in capsys.readouterr().err


def test_an_option_of_other_commands(tmp_path, capsys):
    for arguments, hint in (
        (
            ["list", "--html", "page.html", str(tmp_path)],
            "`jaxckpt inspect`, `jaxckpt diff` and `jaxckpt report` have --html.",
        ),
        (["inspect", "--cast=bfloat16", str(tmp_path)], "`jaxckpt convert` has --cast."),
        (["list", "--jsn", str(tmp_path)], "Did you mean --json?"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert capsys.readouterr().err.rstrip().endswith(hint)


def test_version(cli):
    done = cli("--version")
    assert (done.returncode, done.stdout) == (0, f"jaxckpt {jaxckpt.__version__}\n")


@pytest.mark.slow
def test_an_error_is_one_line_on_stderr(cli, tmp_path):
    (tmp_path / "file").write_text("not a checkpoint")
    done = cli("inspect", tmp_path / "file")
    # One line: nothing about a state file, which a file cannot have.
    assert (done.returncode, done.stdout) == (1, "")
    expected = f"{tmp_path}/file is not an Orbax checkpoint: it is a file; a checkpoint is a directory."
    assert done.stderr == f"jaxckpt inspect: error: {expected}\n"


def test_a_prefix_instead_of_a_path_is_explained(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "ckpt")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"jaxckpt inspect: error: {tmp_path}/ckpt: ")
    # The most frequent reason is a prefix instead of the path that save() returned.
    assert "-1" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_does_not_exist(command, tmp_path, capsys):
    assert main(with_path(command, tmp_path / "nothing.yaml")) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"jaxckpt {command}: error: ")
    assert "nothing.yaml" in line


@pytest.mark.parametrize("command", ["list", "clean"])
def test_a_file_where_a_directory_is_expected(command, tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text("")
    assert main([command, str(path)]) == 1
    assert capsys.readouterr().err == f"jaxckpt {command}: error: {path}: Not a directory\n"


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert main(["list", "--debug", str(tmp_path / "nothing")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert "FileNotFoundError" in error


def test_a_mistake_in_jaxckpt_is_not_hidden(monkeypatch, tmp_path, capsys):
    def broken(directory):
        raise AttributeError("a mistake")

    monkeypatch.setattr("jaxckpt.storage.leftovers", broken)
    assert main(["list", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.endswith("AttributeError: a mistake\n")


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(cli_command, tmp_path):
    # More than a pipe holds, with few leaves.
    leaves = {f"leaf{number:05}{'x' * 4096}": np.float32(number) for number in range(100)}
    path = jaxckpt.Checkpoint(leaves=leaves).write(tmp_path / "many")
    command, environment = cli_command
    with subprocess.Popen(
        [*command, "inspect", path], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == f"{path}\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_describe_errors():
    error = OSError(28, "No space left on device", "/full/ckpt-1")
    error.add_note("(raised in the background)")
    assert output.describe(error) == "/full/ckpt-1: No space left on device (raised in the background)"
    assert output.describe(KeyError("no leaf 'x'")) == "no leaf 'x'"
    assert output.describe(ValueError("2 problems in a.yaml:\n  one\n  two")) == "2 problems in a.yaml: one; two"
    assert output.describe(ExceptionGroup("several", [ValueError("a"), OSError("b")])) == "a; b"
    assert output.describe(MemoryError()) == "MemoryError"


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (18 * 1024**2 + 1, "18.0 MiB"), (5 * 1024**5, "5120.0 TiB")],
)
def test_sizes_in_words(number, words):
    assert output.human_bytes(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(-5, "now"), (0.2, "now"), (59, "59 s"), (300, "5 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_ages_in_words(seconds, words):
    assert output.human_age(seconds) == words


class _Terminal:
    """A stderr that keeps what is written, and is a terminal or not."""

    def __init__(self, is_terminal):
        self._is_terminal = is_terminal
        self.text = ""

    def isatty(self):
        return self._is_terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_for_terminals_and_leaves_nothing_behind(is_terminal, monkeypatch, capsys):
    terminal = _Terminal(is_terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.Progress("reading", after_secs=0) as line:
        line.update("step 1 of 2")
        line.begin(4 << 30)
        line.advance(1 << 30)
        while is_terminal and not ("step 1 of 2" in terminal.text and "1.0/4.0 GiB" in terminal.text):
            pass
        line.say("a line")
        assert terminal.text == "" or terminal.text.endswith("\r\x1b[1A\x1b[2K")
    assert capsys.readouterr().out == "a line\n"
    if is_terminal:
        assert "step 1 of 2" in terminal.text
        assert terminal.text.endswith("\r\x1b[1A\x1b[2K")
    else:
        assert terminal.text == ""


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_shows_no_progress(term, monkeypatch):
    terminal = _Terminal(True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", term)
    with progress.Progress("reading", after_secs=0) as line:
        line._ended.wait(60)
    assert terminal.text == ""


def test_short_work_shows_no_progress(monkeypatch):
    terminal = _Terminal(True)
    monkeypatch.setattr("sys.stderr", terminal)
    with progress.Progress("reading", after_secs=60):
        pass
    assert terminal.text == ""


@pytest.mark.slow
def test_names_that_are_not_text_are_printed_escaped(tmp_path, cli, capsys):
    # A name in Latin-1, as Python shows it.
    directory = Path(f"{tmp_path}/caf\udce9")
    directory.mkdir()
    done = cli("list", directory)
    assert "/caf\\udce9: 0 checkpoints" in done.stdout
    assert "/caf\\udce9 holds no checkpoint" in done.stderr
    assert main(["list", "--json", str(directory)]) == 1
    assert json.loads(capsys.readouterr().out)["directory"] == str(directory)


def test_a_mistyped_option_shows_the_usage_of_its_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "somewhere", "--jsn"])
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert "usage: jaxckpt verify" in shown
    assert "unrecognized arguments: --jsn. Did you mean --json?" in shown


def test_a_mistyped_command_is_guessed(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["inspct", "somewhere"])
    assert stopped.value.code == 2
    assert "invalid choice: 'inspct'. Did you mean inspect? (choose from demo, inspect," in capsys.readouterr().err


@pytest.mark.slow
def test_a_shell_completes_commands_and_options(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--print-completion", "bash"])
    assert stopped.value.code == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "some-file").touch()

    def completed(*words):
        """Returns what bash offers for the last word."""
        listed = " ".join(f"'{word}'" for word in words)
        ask = f"cd {tmp_path}; source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _shtab_jaxckpt; "
        done = subprocess.run(
            ["bash", "-c", ask + 'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert set(COMMANDS) <= set(completed("jaxckpt", ""))
    assert "--stats" in completed("jaxckpt", "inspect", "--st")
    assert "some-file" in completed("jaxckpt", "inspect", "some")


def test_home_directories(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = jaxckpt.Checkpoint(value=1).save("~/run/ckpt")
    assert path == f"{tmp_path}/run/ckpt-1"
    for command in (["inspect", "~/run"], ["verify", "~/run/ckpt-1"], ["list", "~/run"], ["clean", "~/run"]):
        assert main(command) == 0
        assert f"{tmp_path}/run" in capsys.readouterr().out
    assert main(["convert", "~/run", "~/other"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["other", "run"]
    for wrong in ("~no-such-user-here/x", "~no-such-user-here"):
        with pytest.raises(ValueError, match="no user's home directory"):
            jaxckpt.latest_checkpoint(wrong)
    with pytest.raises(ValueError, match="is a home directory"):
        jaxckpt.Checkpoint(value=1).save("~")
    assert jaxckpt.Checkpoint(value=1).write("./~name") == "./~name"
    assert sorted(os.listdir(tmp_path)) == ["other", "run", "~name"]


def test_a_directory_of_checkpoints_without_a_state_file(tmp_path, capsys):
    for number in (1, 2):
        jaxckpt.Checkpoint(value=number).write(tmp_path / f"c{number}")
    assert main(["verify", str(tmp_path)]) == 1
    assert "directory of checkpoints (c1, c2)" in capsys.readouterr().err
