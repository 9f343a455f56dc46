"""The text of a state file ↔ records. Pure.

The text is protobuf's text format of TensorFlow's `CheckpointState` message. jaxckpt puts its additions into comments,
which other readers skip. Names are encoded as the file system encodes them, so that every possible name survives.
"""

import math
import re
import zlib

from jaxckpt._lib.protobuf_text import STRING, TextFormatError, fields, quoted, unquoted
from jaxckpt.directory.state_file.records import Records, UnreadableStateError

_KEPT = "# kept for ever: "
_BORDER = "# adopted only if committed after "
_SEAL = "# written by jaxckpt, checksum of the lines above: "
# String literals never span lines, so a line that starts with one of these marks is always a comment.
_KEPT_LINE = re.compile(rf"^{re.escape(_KEPT)}({STRING})", re.MULTILINE)
_BORDER_LINE = re.compile(rf"^{re.escape(_BORDER)}(\d+(?:\.\d+)?(?:e[-+]\d+)?): ({STRING})", re.MULTILINE | re.ASCII)


def to_text(records: Records) -> str:
    """Returns the content of the state file (ASCII).

    Raises:
      ValueError: the records have no entries, which the format cannot express.
    """
    if records.latest is None:
        raise ValueError("A state file names at least one checkpoint.")
    lines = [f"model_checkpoint_path: {quoted(records.latest)}"]
    lines += [f"all_model_checkpoint_paths: {quoted(name)}" for name in records.entries]
    lines += [f"all_model_checkpoint_timestamps: {timestamp!r}" for timestamp in records.entries.values()]
    if records.last_preserved:
        lines.append(f"last_preserved_timestamp: {records.last_preserved!r}")
    lines += [_KEPT + quoted(name) for name in sorted(records.kept)]
    lines += [f"{_BORDER}{time!r}: {quoted(prefix)}" for prefix, time in sorted(records.borders.items())]
    return "\n".join(lines) + "\n"


def sealed(text: str) -> str:
    """Returns the text of a state file with a checksum as its last line (the *seal*), which shows later changes by others."""
    return f"{text}{_SEAL}{zlib.crc32(text.encode('ascii')):08x}\n"


def is_sealed(text: str) -> bool:
    """Whether a text ends with a correct seal."""
    body, found, _ = text.rpartition(_SEAL)
    return bool(found) and body.isascii() and text == sealed(body)


def is_edited(text: str) -> bool:
    """Whether a text has a wrong seal, which means that the text was changed."""
    return _SEAL in text and not is_sealed(text)


def from_text(text: str) -> Records:
    """Reads the content of a state file, as jaxckpt or TensorFlow wrote it.

    Args:
      text: the content, decoded as UTF-8 with "surrogateescape".

    Raises:
      UnreadableStateError: the text is not the complete content of a state file.
    """
    try:
        return _from_fields(text)
    except TextFormatError as error:
        raise UnreadableStateError(str(error)) from None


def _from_fields(text: str) -> Records:
    names: dict[str, list[str]] = {"model_checkpoint_path": [], "all_model_checkpoint_paths": []}
    numbers: dict[str, list[float]] = {"all_model_checkpoint_timestamps": [], "last_preserved_timestamp": []}
    for key, value in fields(text):
        if key not in names and key not in numbers:
            raise UnreadableStateError(f"the field {key!r} is unknown")
        if (key in names) != (value[0] in "\"'"):
            raise UnreadableStateError(f"the value {value[:40]} of {key} has the wrong type")
        if key in names:
            names[key].append(unquoted(value))
        else:
            numbers[key].append(float(value.rstrip("fF")))
    kept = {unquoted(literal) for literal in _KEPT_LINE.findall(text)}
    records = _records(names, numbers, kept)
    for time, prefix in _BORDER_LINE.findall(text):
        records.raise_border(unquoted(prefix), float(time))
    records.unsealed = not is_sealed(text)
    listed = names["all_model_checkpoint_paths"]
    dated = names["model_checkpoint_path"][-1] in listed and len(listed) <= len(
        numbers["all_model_checkpoint_timestamps"]
    )
    records.edited = is_edited(text) or (records.unsealed and not dated)
    return records


def _records(names: dict[str, list[str]], numbers: dict[str, list[float]], kept: set[str]) -> Records:
    paths, latest = names["all_model_checkpoint_paths"], names["model_checkpoint_path"][-1:]
    if not latest:
        raise UnreadableStateError("it names no latest checkpoint")
    if any(not name or "\0" in name for name in [*paths, *latest, *kept]):
        raise UnreadableStateError("a checkpoint has an impossible name")
    last_preserved = (numbers["last_preserved_timestamp"] or [0.0])[-1]
    timestamps = numbers["all_model_checkpoint_timestamps"]
    if not all(math.isfinite(number) for number in [*timestamps, last_preserved]):
        raise UnreadableStateError("a timestamp is not finite")
    # TensorFlow leaves out timestamps that it does not have, and reads missing ones in this way.
    timestamps = timestamps + [last_preserved] * (len(paths) - len(timestamps))
    records = Records(last_preserved=last_preserved)
    for name, timestamp in zip(paths, timestamps, strict=False):
        records.add(name, timestamp)
    records.add(latest[0], records.entries.get(latest[0], last_preserved))
    records.kept = kept
    return records
