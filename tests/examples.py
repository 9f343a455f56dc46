"""How many examples Hypothesis tries."""

import hypothesis


def examples(count: int) -> int:
    """Returns how many examples of a test to try: `count`, and a part of it with the profile of `make test-fast`.

    Args:
      count: number for the profile of all tests, in which Hypothesis itself would try 100.
    """
    return max(1, count * hypothesis.settings.default.max_examples // 100)
