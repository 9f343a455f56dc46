"""The part of protobuf's text format that flat messages need: fields, numbers, strings. Pure functions.

Strings are encoded as the file system encodes names, so that every possible file name survives.
"""

import os
import re
import sys
from collections.abc import Iterator


class TextFormatError(ValueError):
    """The text is not valid in protobuf's text format."""


_GAP = r"(?:\s|\#[^\n]*+)*+"
STRING = r"""(?:"(?:[^"\\\n]|\\.)*+"|'(?:[^'\\\n]|\\.)*+')"""
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fF]?(?![\w.])"
_VALUE = rf"(?:{STRING}(?:\s*{STRING})*|{_NUMBER})"
_LIST = rf"\[{_GAP}(?:{_VALUE}{_GAP}(?:,{_GAP}{_VALUE}{_GAP})*)?\]"
_FIELD = re.compile(rf"{_GAP}([A-Za-z_]\w*){_GAP}:{_GAP}({_VALUE}|{_LIST}){_GAP}[,;]?", re.ASCII)
_ITEM = re.compile(rf"[\[,]?{_GAP}({_VALUE}){_GAP}", re.ASCII)
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))|([^\\]+)")
_UNESCAPED = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "?": 63, "'": 39, '"': 34, "\\": 92}
_ESCAPED = {10: r"\n", 13: r"\r", 9: r"\t", 34: r"\"", 39: r"\'", 92: r"\\"}


def fields(text: str) -> Iterator[tuple[str, str]]:
    """Yields the name and the literal value of each field. A list yields its name once for each value.

    Args:
      text: the whole file.

    Raises:
      TextFormatError: the text is not a sequence of fields.
    """
    position = 0
    while found := _FIELD.match(text, position):
        position = found.end()
        if found[2][0] == "[":
            yield from ((found[1], item[1]) for item in _ITEM.finditer(found[2]))
        else:
            yield found[1], found[2]
    rest = re.compile(_GAP).match(text, position)
    if rest is not None and rest.end() != len(text):
        raise TextFormatError(f"unexpected text at character {rest.end()}: {text[rest.end() : rest.end() + 20]!r}")


def quoted(name: str) -> str:
    """Returns the string literal, in ASCII, for a name."""
    return (
        '"'
        + "".join(
            _ESCAPED.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in os.fsencode(name)
        )
        + '"'
    )


def unquoted(value: str) -> str:
    """Returns the string that one or more string literals stand for.

    Args:
      value: the literals, as `fields` yields them.

    Raises:
      TextFormatError: an escape sequence is not valid.
    """
    data = bytearray()
    # Adjacent literals are parts of one string.
    for literal in re.findall(STRING, value):
        for octal, byte, short, long, simple, plain in _ESCAPE.findall(literal[1:-1]):
            if octal or byte:
                data.append(int(octal, 8) & 255 if octal else int(byte, 16))
            elif short or long:
                if int(short or long, 16) > sys.maxunicode:
                    raise TextFormatError(f"\\U{long} is not a character")
                data += chr(int(short or long, 16)).encode("utf-8", "surrogatepass")
            elif simple:
                if simple not in _UNESCAPED:
                    raise TextFormatError(f"\\{simple} is not an escape")
                data.append(_UNESCAPED[simple])
            else:
                data += plain.encode("utf-8", "surrogateescape")
    return os.fsdecode(bytes(data))
