"""The quick way to read the metadata of thousands of leaves: the same as JSON's parser, or nothing."""

import json
import random
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxckpt
from jaxckpt._lib.documents import DamagedError
from jaxckpt.storage.item import plain_text, tree_metadata


def parsed(content: bytes) -> tuple[list[Any], dict[str, Any]]:
    leaves, document = tree_metadata._parsed(content)
    return list(leaves), {key: value for key, value in document.items() if key != "tree_metadata"}


def read(content: bytes) -> tuple[list[Any], dict[str, Any]] | None:
    found = plain_text.leaves_of(content)
    return None if found is None else (list(found[0]), found[1])


def content_of(tree: Any, tmp_path: Any) -> bytes:
    path = jaxckpt.Checkpoint(model=tree).write(tmp_path / "ckpt")
    with open(f"{path}/_METADATA", "rb") as file:
        return file.read()


def test_same_as_of_json(tmp_path: Any) -> None:
    content = content_of(
        {"a": np.ones(2), "b.c": [1, 2.5, {}, None, (), "text"], "d/~": {"e e": jnp.ones((2, 3))}}, tmp_path
    )
    found = read(content)
    assert found is not None
    assert found == parsed(content)


@pytest.mark.parametrize("tree", [{"ä": 1}, {'"': 1}, {"'": 1}, {"\\": 1}, {"a\n": 1}, {"": 1}, {"a": 1}])
def test_keys(tree: Any, tmp_path: Any) -> None:
    content = content_of(tree, tmp_path)
    assert read(content) in (None, parsed(content))
    raw = json.dumps(json.loads(content), ensure_ascii=False).encode()
    assert read(raw) in (None, parsed(raw))


def test_nothing_is_accepted_that_json_refuses_or_reads_differently(tmp_path: Any) -> None:
    """Bytes are changed, moved and repeated, mostly at the borders of leaves."""
    content = content_of({f"leaf_{number}": jnp.ones(number + 1) for number in range(4)}, tmp_path)
    random_ = random.Random(7)
    pieces = [
        b", ",
        b"}",
        b"}}",
        b'"',
        b"{",
        b" ",
        b"0",
        b"-1",
        b"[]",
        b'"tree_metadata": {}, ',
        b"\n",
        b"\xff",
        content[20:200],
    ]
    different = 0
    for _ in range(20_000):
        start = random_.choice([random_.randrange(len(content)), content.find(b"}}", random_.randrange(len(content)))])
        end = start + random_.choice([0, 0, 1, 2, random_.randrange(200)])
        changed = content[: max(0, start)] + random_.choice([b"", *pieces]) + content[max(0, end) :]
        found = read(changed)
        if found is not None:
            different += changed != content
            assert found == parsed(changed)
    assert different > 100


@pytest.mark.parametrize(
    "leaves",
    [
        '"x": {}',
        '"x": {}, "x": {}',
        "",
    ],
)
def test_repeated_and_other_leaves(leaves: str) -> None:
    one = '{"key_metadata": [{"key": "a", "key_type": 2}], "value_metadata": {"value_type": "scalar", "skip_deserialize": false}}'
    content = ('{"tree_metadata": {' + leaves.replace("{}", one) + '}, "use_zarr3": true}').encode()
    assert read(content) == (None if leaves.count("x") != 1 else parsed(content))


@pytest.mark.parametrize("rest", ["}", " }", '"x": 1,}', '"tree_metadata": {}}', "{}}"])
def test_what_is_not_json_behind_the_leaves(rest: str) -> None:
    one = '"x": {"key_metadata": [{"key": "a", "key_type": 2}], "value_metadata": {"value_type": "scalar", "skip_deserialize": false}}'
    assert read(('{"tree_metadata": {' + one + "}, " + rest).encode()) is None


ARRAY = '{"array_metadata": {"param_name": "a", "write_shape": [8], "chunk_shape": [], "ext_metadata": null}}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'{{"array_metadatas": [{ARRAY}]}}', True),
        (f'{{"array_metadatas": [{ARRAY}, {ARRAY}]}}', True),
        (f'{{"array_metadatas": [{ARRAY}{ARRAY}]}}', False),
        (f'{{"array_metadatas": [{ARRAY}, ]}}', False),
        (f'{{"array_metadatas": [{ARRAY}]}}x', False),
        (f'{{"array_metadatas": [{ARRAY}]}}\n', False),
        (f'{{"array_metadatas": [{ARRAY.replace("[8]", "[08]")}]}}', False),
        (f'{{"array_metadatas": [{ARRAY.replace("[8]", "[8,]")}]}}', False),
        (f'{{"array_metadatas": [{ARRAY.replace("null", "{}")}]}}', False),
    ],
)
def test_array_metadata(text: str, expected: bool) -> None:
    assert plain_text.is_without_keys(text.encode()) == expected
    if expected:
        json.loads(text)


def test_what_is_not_text() -> None:
    assert plain_text.leaves_of(b"\xff") is None
    assert not plain_text.is_without_keys(b"\xff")
    with pytest.raises(DamagedError):
        parsed(b"\xff")
