"""Problems of a config, told so that the reader can mend them: where, which key, what was expected and found."""

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
# Of one problem: the messages of others, which it quotes, may hold all that they were given.
_TEXT_CHARS = 2000


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to spell an int of thousands of digits.
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"<a number of {x.bit_length():,} bits>"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = _SHORT_CHARS


def shown(value: object) -> str:
    """Returns the `repr` of a value, shortened."""
    return _SHORT.repr(value)


class ArgumentError(ConfigError, TypeError):
    """load_config was called with something that is no config at all; callers may catch it as either."""


class Unusable:
    """Stands for a value that could not be read and has been reported, so that it is not reported again."""

    def __repr__(self) -> str:
        return "<unusable>"


UNUSABLE = Unusable()


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
      path: the key it is about; empty for the source as a whole.
      text: what was expected, what was found, and a suggestion where there is one.
      where: file and line, or the override; empty for a mapping.
      cause: the exception behind it, where code of the user raised one.
    """

    path: KeyPath
    text: str
    where: str = ""
    cause: BaseException | None = None

    def __str__(self) -> str:
        text = self.text if len(self.text) <= _TEXT_CHARS else f"{self.text[:_TEXT_CHARS]}..."
        return ": ".join(part for part in (self.where, dotted(self.path), text) if part)


def config_error(problems: Sequence[Problem], name: str) -> ConfigError:
    """Returns the one error that lists all `problems` of the source called `name`, in order, each once."""
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
    """Returns how a key path is written: ``options.experimental_write_callbacks[0].call``."""
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
    """Describes a value that was found, in the words of config files.

    Args:
      value: what the source holds.
      written: how it is spelled in the YAML text, for the spellings that YAML reads as something that surprises.
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
    """Says how to write what looks like a number, a boolean or null, but has been read as text."""
    word = text.strip().lower()
    if word in ("true", "false", "null", "none"):
        return f"; write {'null' if word == 'none' else word} without quotes"
    if re.fullmatch(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?", word):
        return "; write the number without quotes"
    if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?e[-+]?[0-9]{1,2}", word):
        # YAML 1.1, which PyYAML reads, wants a point in the mantissa and a sign in the exponent of a float.
        number = float(word)
        short = f"{number:e}" if "e" in repr(number) else f"{number:g}" if abs(number) < 1e6 else f"{number:.0f}"
        return f"; write the number as {short}"
    return ""


def ambiguous_number(value: object, written: str) -> str | None:
    """Explains a number that YAML reads as another one than a reader would (1:30 is 90, 010 is 8); None for others."""
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
      section: the path of the mapping that holds it; keys of the same mapping are preferred.
      known: the paths of all keys that exist.
    """
    if not isinstance(word, str):
        return ""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word).replace("-", "_").replace(" ", "_").lower()
    # Stable: the keys of the same mapping come first.
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
    """Returns ``"; did you mean X?"`` for the closest of `names`, or an empty string."""
    close = difflib.get_close_matches(word, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""
