"""Chooses the code that reads and writes arrays on local disks: jaxckpt's own OCDBT code, or TensorStore."""

import os

VARIABLE = "JAXCKPT_ENGINE"


def is_own() -> bool:
    """Whether jaxckpt's own code may be used. In any case, TensorStore does what the own code cannot do.

    Each save, and each checkpoint that is opened, reads the environment variable ``JAXCKPT_ENGINE`` anew.

    Raises:
      ValueError: the variable has another value than "tensorstore".
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "tensorstore"):
        raise ValueError(
            f"The environment variable {VARIABLE} is {value!r}. Set it to 'tensorstore' to let TensorStore read and write all arrays, "
            "or leave it unset to let jaxckpt do so itself where it can."
        )
    return value == ""
