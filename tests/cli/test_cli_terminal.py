"""Tables and lines on a terminal of 80 columns: nothing is cut, no word wraps, and colours can be turned off."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading

import numpy as np
import pytest

import jaxckpt
from jaxckpt._lib import output
from jaxckpt.cli import main


@pytest.fixture
def terminal(monkeypatch):
    """Calls a function with stdout on a terminal of some width. Returns the lines that it shows, without colours, and all bytes."""

    def run(function, columns=80, term="xterm-256color"):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        monkeypatch.setenv("TERM", term)
        read = bytearray()

        def drain():
            # The kernel keeps a few KiB only. At the end, Linux reports an error.
            try:
                while part := os.read(ours, 1 << 16):
                    read.extend(part)
            except OSError:
                return

        reader = threading.Thread(target=drain)
        reader.start()
        # Rich asks the standard streams for the width.
        monkeypatch.setenv("COLUMNS", str(columns))
        with open(theirs, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            function()
            stream.flush()
        reader.join()
        os.close(ours)
        text = read.decode()
        return re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r\n", "\n").split("\n")[:-1], text

    return run


@pytest.fixture
def wide(tmp_path):
    state = {
        f"block_{number}": {"a_rather_long_name": np.ones((100, 200 + number % 2), np.float32), "[bold]b[/bold]": 1.0}
        for number in range(4)
    }
    return jaxckpt.Checkpoint(model={"encoder": {"layers": state}}, step=1).write(tmp_path / "wide")


@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--stats"], ["inspect", "--depth", "2"]], ids=" ".join)
def test_nothing_is_cut(arguments, wide, terminal, capsys):
    lines, shown = terminal(lambda: main([*arguments, wide]))
    path = wide
    assert lines[0] == path
    assert all(len(line) <= 80 for line in lines[1:])
    assert "\x1b[" in shown
    main([*arguments, wide])
    plain = capsys.readouterr().out
    assert "\x1b[" not in plain
    words = set(" ".join(lines).split())
    first = [line.split()[0] for line in plain.splitlines()]
    assert set(first) <= words
    if "--depth" not in arguments:
        assert "[bold]b[~1bold]" in words


def test_lines_wrap_between_words(terminal):
    text = "one line of words " * 8 + "/a/path/" + "x" * 90 + " and more"
    lines, _ = terminal(lambda: output.print_line(text))
    assert len(lines) > 2
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= 80 or line == "/a/path/" + "x" * 90 for line in lines)


@pytest.mark.parametrize("head", ["  ", "    ", "  -> ", "    - ", "- "])
def test_wrapped_lines_keep_their_indentation(head, terminal):
    text = head + "words of a line " * 12
    lines, _ = terminal(lambda: output.print_line(text))
    assert len(lines) > 2
    assert lines[0].startswith(f"{head}words")
    assert all(re.match(f" {{{len(head)}}}[a-z]", line) for line in lines[1:])
    assert all(len(line) <= 80 for line in lines)


def test_usage_errors_wrap_between_words(terminal, monkeypatch):
    def call():
        monkeypatch.setattr(sys, "stderr", sys.stdout)
        with pytest.raises(SystemExit):
            main(["inspekt"])

    lines, _ = terminal(call)
    assert "inspekt" in " ".join(lines)
    assert all(len(line) <= 80 for line in lines), lines


def test_rows_that_do_not_fit_take_several_lines(terminal):
    rows = [("n" * 50, "a" * 30, "word " * 30), ("short", "b", "c")]
    lines, _ = terminal(lambda: output.print_table(("name", "first", "second"), rows))
    assert lines[0] == "n" * 50
    assert " ".join(lines).split().count("word") == 30
    assert "first" in lines[1]
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize(
    ("name", "value", "term"), [("NO_COLOR", "1", "xterm"), ("X", "", "dumb")], ids=["NO_COLOR", "dumb"]
)
def test_without_colours(name, value, term, wide, terminal, monkeypatch):
    monkeypatch.setenv(name, value)
    _, shown = terminal(lambda: main(["diff", wide, wide]), term=term)
    # Bold and dim are no colours.
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", shown)
    assert "identical" in shown


def test_markup_in_names_is_text(terminal):
    lines, _ = terminal(lambda: output.print_table(("[red]a", "b"), [("[bold]x[/bold]", ":smile:")]))
    assert [line.rstrip() for line in lines] == ["[red]a          b", "[bold]x[/bold]  :smile:"]
    lines, _ = terminal(lambda: output.print_line("[link=http://x]y[/link]", "bold"))
    assert lines == ["[link=http://x]y[/link]"]
