"""The rule for the names of numbered checkpoints, as a table."""

import pytest

from jaxckpt._lib import numbering


@pytest.mark.parametrize(
    ("name", "prefix", "number"),
    [
        ("ckpt-7", "ckpt", 7),
        ("ckpt-0", "ckpt", 0),
        ("ckpt-1234567890123456789012", "ckpt", 1234567890123456789012),
        ("run-1-7", "run-1", 7),
        ("--1", "-", 1),
        ("ckpt--1", "ckpt-", 1),
        ("3-4", "3", 4),
        ("two\nlines-5", "two\nlines", 5),
        ("a b.c-6", "a b.c", 6),
        (".*-1", ".*", 1),
        ("runs/ckpt-7", "runs/ckpt", 7),
    ],
    ids=str,
)
def test_numbered_names(name: str, prefix: str, number: int) -> None:
    assert numbering.prefix_of(name) == prefix
    assert numbering.number_of(name) == number
    assert numbering.name_of(prefix, number) == name
    assert numbering.belongs(name, prefix)
    assert numbering.belongs(name, name)
    assert not numbering.belongs(name, prefix[:-1])
    assert numbering.numbers(prefix, [name, "other", f"{name}-x"]) == [number]


@pytest.mark.parametrize(
    "name",
    [
        *("ckpt", "ckpt-", "-7", "7", "", "-", "ckpt7", "ckpt_7"),
        *(
            "ckpt-07",
            "ckpt-00",
            "ckpt-007",
            "ckpt-+7",
            "ckpt- 7",
            "ckpt-7 ",
            "ckpt-1_000",
            "ckpt-7.0",
            "ckpt-1e3",
            "ckpt-0x7",
        ),
        *(
            "ckpt-7\n",
            "ckpt-\n7",
            "ckpt-７",
            "ckpt-٣",
            "ckpt-²",
            "ckpt-7.orbax-checkpoint-tmp-1x",
            "ckpt-7.jaxckpt-tmp-x",
        ),
    ],
    ids=ascii,
)
def test_other_names(name: str) -> None:
    assert numbering.prefix_of(name) is None
    with pytest.raises(ValueError, match="does not end in"):
        numbering.number_of(name)
    assert numbering.numbers("ckpt", [name]) == []
    assert numbering.belongs(name, name)
    assert not numbering.belongs(name, "ckpt") or name == "ckpt"


def test_numbers_are_sorted_as_numbers() -> None:
    names = ["ckpt-10", "ckpt-9", "ckpt-best-1", "ckpt", "other-3", "ckpt-0", "ckpt-011"]
    assert numbering.numbers("ckpt", names) == [0, 9, 10]
    assert numbering.numbers("ckpt-best", names) == [1]
    assert numbering.numbers("none", names) == []


@pytest.mark.parametrize(
    ("names", "others", "expected"),
    [
        ([], [0], 1),
        ([], [4, 2], 5),
        (["ckpt-9", "ckpt-10", "other-50"], [3], 11),
        (["ckpt-9"], [12, 3], 13),
        # Padded numbers belong to another program, and so do numbers that are too large to be reached by counting.
        (["ckpt-1", "ckpt-0099"], [1], 2),
        (["ckpt-3", f"ckpt-{2**62}", f"ckpt-{10**400}"], [1], 4),
        ([f"ckpt-{2**62 - 1}"], [1], 2**62),
    ],
)
def test_the_number_after_the_highest(names: list[str], others: list[int], expected: int) -> None:
    assert numbering.after_the_highest("ckpt", names, *others) == expected
