"""Bytes and seconds in lines of the log."""

from jaxckpt._lib.output import human_bytes, human_millis


def seconds(value: float) -> str:
    """Returns a duration with about three digits, such as "12.3 s" or "4.56 ms".

    Args:
      value: seconds.
    """
    if value < 1:
        return human_millis(value)
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} s"


def size(nbytes: int | None) -> str:
    """Returns a size such as "17.3 MiB".

    Args:
      nbytes: the size; None if it is unknown.
    """
    return "an unknown size" if nbytes is None else human_bytes(nbytes)
