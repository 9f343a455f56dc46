"""JSON documents, changed at random: what a stranger might write where a number, a name or an object is meant."""

import json
import random
from typing import Any

NUMBERS: list[Any] = [
    0,
    -1,
    1,
    2,
    3,
    7,
    1.5,
    True,
    False,
    None,
    10**6,
    10**8,
    2**31,
    10**10,
    10**13,
    10**15,
    2**62,
    2**63,
    2**64,
    10**30,
]
# Tokens that Python's own encoder does not write.
RAW = [
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "9" * 400,
    "9" * 6000,
    "[" * 50_000 + "]" * 50_000,
    '{"a":' * 20_000 + "1" + "}" * 20_000,
]
TEXTS = [
    "",
    ".",
    "..",
    "../../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "\ud800",
    "x" * 5000,
    "a/b/../../..",
    "d/../..",
    "float32",
    "string",
    "json",
]
TEXTS += [
    "bytes",
    "numpy",
    "scalar",
    "Dict",
    "None",
    "jax.Array",
    "zstd",
    "default",
    "sharding_indexed",
    "transpose",
    "9" * 30,
    "-1",
    "1e5",
]
_MARK = "\u0001raw:"


def mutate(content: bytes, rng: random.Random, times: int) -> bytes:
    """The document with changes at random places; or not a document any more."""
    if rng.random() < 0.03:
        return rng.choice(
            [b"", b"null", b"[]", b"3", b'"x"', b"{", b"\xff\xfe", content[: len(content) // 2], content * 2]
        )
    document = json.loads(content)
    for _ in range(times):
        document = _change(document, rng)
    try:
        text = json.dumps(document)
    except RecursionError:
        text = json.dumps(f"{_MARK}{len(RAW) - 1}")
    for number, token in enumerate(RAW):
        text = text.replace(json.dumps(f"{_MARK}{number}"), token)
    return text.encode("utf-8", "surrogatepass")


def _change(document: Any, rng: random.Random) -> Any:
    places = _places(document)
    if not places:
        return _anything(rng)
    # Large documents are mostly alike: half of the time the upper levels are meant.
    parent, key = rng.choice(places[: 1 + len(places) // 8] if rng.random() < 0.5 else places)
    old = parent[key]
    kind = rng.random()
    if kind < 0.35:
        parent[key] = _alike(old, rng)
    elif kind < 0.6:
        parent[key] = _anything(rng)
    elif kind < 0.7:
        del parent[key]
    elif kind < 0.8 and isinstance(parent, list) and len(places) < 2000:
        parent[:] = parent * rng.choice([2, 3, 40])
    elif kind < 0.8 and isinstance(parent, dict):
        parent[rng.choice(TEXTS)] = parent.pop(key)
    elif kind < 0.9:
        other, place = rng.choice(places)
        try:
            parent[key], other[place] = json.loads(json.dumps(other[place])), json.loads(json.dumps(old))
        except (KeyError, IndexError):
            parent[key] = None
    else:
        deep: Any = old
        for _ in range(rng.choice([1, 5, 900])):
            deep = [deep] if rng.random() < 0.5 else {"key": deep}
        parent[key] = deep
    return document


def _places(document: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    order = [document]
    for node in order:
        items = (
            list(node.items() if isinstance(node, dict) else enumerate(node)) if isinstance(node, (dict, list)) else []
        )
        found += [(node, key) for key, _ in items]
        order += [child for _, child in items]
    return found


def _alike(old: Any, rng: random.Random) -> Any:
    """Something of the same type."""
    if isinstance(old, str):
        return rng.choice([*TEXTS, old + "x", old * 3, old[1:]])
    if isinstance(old, list):
        if old and all(type(item) is int for item in old):
            if rng.random() < 0.5:
                return [rng.choice([1, 3, 10**4, 10**8, 10**13]) for _ in range(rng.choice([1, len(old), 33]))]
            return [item * rng.choice([0, 1, 2, 1000, 10**6, 10**9]) for item in old]
        return rng.choice([[], old[::-1], old[1:], [*old, *old]])
    if isinstance(old, dict):
        return {key: child for key, child in old.items() if rng.random() < 0.7}
    return rng.choice(NUMBERS)


def _anything(rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(NUMBERS)
    if kind < 0.6:
        return rng.choice(TEXTS)
    if kind < 0.8:
        return f"{_MARK}{rng.randrange(len(RAW))}"
    return rng.choice([[], {}, [[]], [{}], {"a": {}}, [0] * 40, [10**13], [10**5] * 3, {"format": 1, "kinds": {}}])
