"""Problems of a config. Each tells how to fix it: the place, the key, what was expected and what was found."""

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jaxckpt.config.bounds import MAX_PROBLEMS
from jaxckpt.errors import ConfigError

# The keys from the top of the config down to a value: names in mappings, numbers in lists.
KeyPath = tuple[object, ...]

_SHORT_CHARS = 120
# Longest text of one problem. It may quote the message of another library, which may repeat a long argument.
_TEXT_CHARS = 2000


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to convert an int of thousands of digits to text.
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"<a number of {x.bit_length():,} bits>"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = _SHORT_CHARS


def shown(value: object) -> str:
    """Returns the `repr` of a value, shortened."""
    return _SHORT.repr(value)


class ArgumentError(ConfigError, TypeError):
    """An argument of load_config has a wrong type. Callers can catch it as ConfigError or as TypeError."""


class Unusable:
    """Replaces a value that could not be read. The problem has been reported already, so it is not reported again."""

    def __repr__(self) -> str:
        return "<unusable>"


UNUSABLE = Unusable()


@dataclass(frozen=True)
class Problem:
    """One mistake in a config.

    Attributes:
      path: key path of the value; empty for the source as a whole.
      text: what was expected, what was found, and a suggestion if there is one.
      where: file and line, or the override; empty for a mapping.
      cause: the exception that the user's code raised, if it did.
    """

    path: KeyPath
    text: str
    where: str = ""
    cause: BaseException | None = None

    def __str__(self) -> str:
        text = self.text if len(self.text) <= _TEXT_CHARS else f"{self.text[:_TEXT_CHARS]}..."
        return ": ".join(part for part in (self.where, dotted(self.path), text) if part)


def config_error(problems: Sequence[Problem], name: str) -> ConfigError:
    """Returns one error that lists all problems, in order, each once.

    Args:
      problems: the problems.
      name: name of the source.
    """
    lines = list(dict.fromkeys(str(problem) for problem in problems))
    if len(lines) == 1:
        error = ConfigError(lines[0])
    else:
        listed = [f"  {line}" for line in lines[:MAX_PROBLEMS]]
        more = len(lines) > MAX_PROBLEMS
        heading = (
            f"more than {MAX_PROBLEMS} problems in {name}, the first ones"
            if more
            else f"{len(lines)} problems in {name}"
        )
        error = ConfigError("\n".join([f"{heading}:", *listed]))
    causes = [problem.cause for problem in problems if problem.cause is not None]
    if causes:
        error.__cause__ = causes[0] if len(causes) == 1 else BaseExceptionGroup("the config's imports failed", causes)
    return error


def dotted(path: KeyPath) -> str:
    """Returns a key path as text, such as ``options.experimental_write_callbacks[0].call``."""
    text = ""
    for part in path:
        if isinstance(part, int) and not isinstance(part, bool):
            text += f"[{shown(part)}]"
        else:
            plain = isinstance(part, str) and part.isprintable() and 0 < len(part) <= _SHORT_CHARS
            word = str(part) if plain else shown(part)
            text += f".{word}" if text else word
    return text


def got(value: object, written: str | None = None) -> str:
    """Describes a value in the words of config files.

    Args:
      value: the value in the source.
      written: its spelling in the YAML text, if known. It is shown if YAML reads it as a surprising value.
    """
    if value is None:
        return "nothing" if written == "" else "null"
    if isinstance(value, bool):
        text = "true" if value else "false"
        surprising = written is not None and written.lower() != text
        return f"{text} (YAML reads {written} as {text}; quote it to mean text)" if surprising else text
    if isinstance(value, str):
        return f"{_SHORT.repr(value)} (text{_hint_for_text(value)})"
    if isinstance(value, (int, float)):
        return _SHORT.repr(value)
    if isinstance(value, Mapping):
        return f"a mapping {_SHORT.repr(dict(value))}"
    if isinstance(value, (list, tuple)):
        return f"a list {_SHORT.repr(list(value))}"
    return f"{_SHORT.repr(value)} ({type(value).__name__})"


def _hint_for_text(text: str) -> str:
    """Returns advice for a text that looks like a number, a boolean or null; empty for other texts."""
    word = text.strip().lower()
    if word in ("true", "false", "null", "none"):
        return f"; write {'null' if word == 'none' else word} without quotes"
    if re.fullmatch(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?", word):
        return "; write the number without quotes"
    if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?e[-+]?[0-9]{1,2}", word):
        # YAML 1.1, which PyYAML reads, requires a point in the mantissa and a sign in the exponent of a float.
        number = float(word)
        short = f"{number:e}" if "e" in repr(number) else f"{number:g}" if abs(number) < 1e6 else f"{number:.0f}"
        return f"; write the number as {short}"
    return ""


def ambiguous_number(value: object, written: str) -> str | None:
    """Returns a problem's text for a number that YAML reads differently than people do (1:30 is 90, 010 is 8); None for other values.

    Args:
      value: the value that YAML reads.
      written: its spelling.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    octal = isinstance(value, int) and re.fullmatch(r"0[0-7_]+", written.lstrip("+-"))
    if ":" not in written and not octal:
        return None
    remedy = f"write {value}, or quote it to mean text"
    return f"expected an unambiguous value, got {written}, which YAML reads as {value}: {remedy}"


def did_you_mean(word: object, section: KeyPath, known: Iterable[KeyPath]) -> str:
    """Returns ``"; did you mean X?"`` for an unknown key, or an empty string.

    Args:
      word: the unknown key.
      section: key path of its mapping. Keys of the same mapping are preferred.
      known: key paths of all existing keys.
    """
    if not isinstance(word, str):
        return ""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word).replace("-", "_").replace(" ", "_").lower()
    # The sort is stable, and puts the keys of the same mapping first.
    paths = sorted(known, key=lambda path: path[:-1] != section)
    names = [str(path[-1]) for path in paths]
    bare = plain.removeprefix("experimental_")
    elsewhere = [path for path in paths if str(path[-1]).removeprefix("experimental_") == bare]
    if elsewhere:
        best = elsewhere[0]
    else:
        beside = [str(path[-1]) for path in paths if path[:-1] == section]
        close = difflib.get_close_matches(plain, beside, n=1) or difflib.get_close_matches(
            plain, names, n=1, cutoff=0.75
        )
        if not close:
            return ""
        best = paths[names.index(close[0])]
    return f"; did you mean {best[-1] if best[:-1] == section else dotted(best)}?"


def close_name(word: str, names: Iterable[str]) -> str:
    """Returns ``"; did you mean X?"`` for the name in `names` that is closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""
