"""A progress line on stderr: what is done, how much of how much, and how long it will take."""

import sys
import threading
from typing import Any, Self

from jaxckpt._lib.output import print_error, print_line, shown


class Progress:
    """A progress line on stderr, drawn by rich. It appears after a second, and only if stderr is a terminal that can move its cursor.

    Use it as a context manager. Inside the block, print with `say` and `complain` only.
    """

    _EVERY_SECS = 0.2

    def __init__(self, text: str, *, after_secs: float = 1.0) -> None:
        """Makes a progress line.

        Args:
          text: the text to begin with; `update` changes it.
          after_secs: seconds from the beginning of the block until the line appears.
        """
        self._text = text
        self._after = after_secs
        self._done_bytes = 0
        self._total_bytes: int | None = None
        self._lock = threading.Lock()
        # Not the lock above, which is held while the line is drawn.
        self._count_lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        # Rich's Progress once the line is shown, and its task.
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._thread = threading.Thread(target=self._draw_until_done, name="jaxckpt progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            with self._lock:
                self._hide()

    def update(self, text: str) -> None:
        """Changes the text of the line. The line is drawn a few times a second, however often this is called."""
        self._text = text

    def begin(self, nbytes: int) -> None:
        """Sets the number of all bytes: from now on the line shows a bar, bytes of bytes, the speed and the time that is left."""
        self._done_bytes, self._total_bytes = 0, nbytes

    def advance(self, nbytes: int) -> None:
        """Adds bytes that are done. Several threads may call it."""
        with self._count_lock:
            self._done_bytes += nbytes

    def reach(self, done: int, nbytes: int) -> None:
        """Sets how many bytes are done, and the number of all bytes."""
        with self._count_lock:
            self._done_bytes, self._total_bytes = done, nbytes

    def say(self, text: str, style: str = "") -> None:
        """Clears the progress line and prints a line on stdout; see `print_line`."""
        with self._lock:
            self._hide()
            print_line(text, style)

    def complain(self, text: str) -> None:
        """Clears the progress line and prints a line on stderr."""
        with self._lock:
            self._hide()
            print_error(text)

    def _draw_until_done(self) -> None:
        self._ended.wait(self._after)
        while not self._ended.is_set():
            with self._lock:
                try:
                    self._show()
                except (OSError, ValueError):
                    # The terminal is gone. The command goes on without its progress line.
                    self._bar = None
                    return
            self._ended.wait(self._EVERY_SECS)

    def _show(self) -> None:
        from rich.text import Text

        # Not an ellipsis, which some encodings lack.
        text = Text(shown(self._text, sys.stderr), no_wrap=True, overflow="crop")
        if self._bar is None:
            self._bar = _new_bar()
            if self._bar is None:
                self._ended.set()
                return
            self._task = self._bar.add_task("", total=None, text=text)
            self._bar.start()
        self._bar.update(self._task, text=text, completed=self._done_bytes, total=self._total_bytes)
        self._bar.refresh()

    def _hide(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            try:
                bar.stop()
            except (OSError, ValueError):
                # The terminal is gone.
                return


def _new_bar() -> Any:
    """Returns rich's Progress; None if the terminal cannot move its cursor."""
    from rich import progress
    from rich.table import Column
    from rich.text import Text

    from jaxckpt._lib import terminal

    console = terminal.console(sys.stderr)
    if console.is_dumb_terminal:
        return None

    class Words(progress.ProgressColumn):
        def render(self, task: progress.Task) -> Text:
            text: Text = task.fields["text"]
            return text

    class OfBytes(progress.ProgressColumn):
        """Shows a column only when the number of bytes is known."""

        def __init__(self, column: progress.ProgressColumn) -> None:
            super().__init__(Column(no_wrap=True))
            self._column = column

        def render(self, task: progress.Task) -> Any:
            return Text("") if task.total is None else self._column.render(task)

    return progress.Progress(
        Words(Column(ratio=1, no_wrap=True, overflow="crop")),
        OfBytes(progress.BarColumn(bar_width=16)),
        OfBytes(progress.DownloadColumn(binary_units=True)),
        OfBytes(progress.TransferSpeedColumn()),
        OfBytes(progress.TimeRemainingColumn(compact=True)),
        progress.TimeElapsedColumn(),
        console=console,
        transient=True,
        auto_refresh=False,
        expand=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
