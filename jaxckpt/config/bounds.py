"""Upper bounds for configs: far above the needs of a config, and low enough that reading any source ends in seconds."""

# Size of a file, and of the text of an override.
MAX_BYTES = 256 << 10
# Number of keys and values of a source. The values behind a YAML alias count at every use of the alias.
MAX_VALUES = 20_000
# Levels of nested mappings and lists; number of parts of a dotted key.
MAX_DEPTH = 64
# Characters of a number.
MAX_DIGITS = 1000
MAX_OVERRIDES = 1000
# Problems that an error lists. It only mentions that there are more.
MAX_PROBLEMS = 100


class TooMuchError(Exception):
    """A bound was exceeded. The message tells what was expected and found, in the form of a problem.

    Attributes:
      line: line of the text that exceeds the bound, counted from 0; None if unknown.
    """

    line: int | None = None


TOO_MANY = f"expected at most {MAX_VALUES:,} keys and values (an alias counts as all of its values), got more"
TOO_DEEP = f"expected at most {MAX_DEPTH} levels of mappings and lists, got more"
ITSELF = "expected plain values, got a mapping or list that contains itself"


class Counter:
    """Counts the keys and values of one source."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def add(self, number: int = 1) -> None:
        """Counts keys or values.

        Args:
          number: how many to add.

        Raises:
          TooMuchError: the source has too many.
        """
        self._left -= number
        if self._left < 0:
            raise TooMuchError(TOO_MANY)
