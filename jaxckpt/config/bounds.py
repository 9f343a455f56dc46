"""Bounds of what a config may hold: far above what a config needs, and low enough that reading any source ends in seconds."""

# Of a file, and of the text of an override.
MAX_BYTES = 256 << 10
# Keys and values of a source. The values that a YAML alias stands for count every time it is used.
MAX_VALUES = 20_000
# Mappings and lists inside each other; parts of a dotted key.
MAX_DEPTH = 64
# Of a number, as it is written.
MAX_DIGITS = 1000
MAX_OVERRIDES = 1000
# That are listed. The rest is only mentioned.
MAX_PROBLEMS = 100


class TooMuchError(Exception):
    """A bound was exceeded; the message says what was expected and found, in the words of a problem.

    Attributes:
      line: where it was exceeded, counted from 0; None if that is not known.
    """

    line: int | None = None


TOO_MANY = f"expected at most {MAX_VALUES:,} keys and values (an alias counts as all that it stands for), got more"
TOO_DEEP = f"expected at most {MAX_DEPTH} levels of mappings and lists, got more"
ITSELF = "expected plain values, got a mapping or list that contains itself"


class Counter:
    """Counts the keys and values of one source."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def add(self, number: int = 1) -> None:
        """Counts. Raises TooMuchError if there are too many."""
        self._left -= number
        if self._left < 0:
            raise TooMuchError(TOO_MANY)
