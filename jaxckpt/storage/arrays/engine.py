"""Who reads and writes arrays on local disks: the own OCDBT code of jaxckpt, or TensorStore."""

import os

VARIABLE = "JAXCKPT_ENGINE"


def is_own() -> bool:
    """Whether the own code may be used. TensorStore does what the own code cannot do, whatever the answer is.

    The environment variable ``JAXCKPT_ENGINE`` is asked anew by each save and by each checkpoint that is opened.

    Raises:
      ValueError: the variable is set to something else than "tensorstore".
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "tensorstore"):
        raise ValueError(
            f"The environment variable {VARIABLE} is {value!r}. Set it to 'tensorstore', so that TensorStore reads and writes all arrays, "
            "or leave it unset, so that jaxckpt reads and writes them itself where it can."
        )
    return value == ""
