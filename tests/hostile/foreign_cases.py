"""Cases from other libraries' files: checkpoints of TensorFlow and safetensors files, changed at random places, with right checksums."""

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from hostile import bundles, documents

GOLDEN = Path(__file__).parents[1] / "from_tensorflow/golden"
GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"
BASES = [
    "tree",
    "keras2_legacy",
    "strings",
    "small_shards",
    "partitioned",
    "dtypes",
    "safetensors",
    "sharded safetensors",
]
INTS = [0, 1, 2, 127, 128, 255, 65536, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
KEYS = [
    b"",
    b"a",
    b"a/b",
    b"x" * 60000,
    b"/" * 5000,
    b"\0",
    b"\xff\xfe",
    b"model",
    b"step/.ATTRIBUTES/VARIABLE_VALUE",
    b"..",
    b"../..",
]
OUTSIDE = ["/dev/zero", "/etc/passwd", "..", "loop", "/proc/self/environ"]

Files = dict[str, bytes]
Entries = list[tuple[bytes, bytes]]


def make(rng: random.Random, number: int, directory: Path) -> tuple[Path, list[str]]:
    """Writes a case.

    Args:
      rng: the source of all choices.
      number: chooses the base.
      directory: a directory that does not exist.

    Returns:
      The path of the hostile checkpoint, and the changes in words.
    """
    base = BASES[number % len(BASES)]
    directory.mkdir()
    special: dict[str, Callable[[Path], None]] = {}
    what = [base]
    if "safetensors" in base:
        files, name = _safetensors(base, rng, what)
    else:
        files, name = _tensorflow(base, rng, what)
    if rng.random() < 0.1:
        _special(files, special, rng, what)
    for file, content in files.items():
        (directory / file).write_bytes(content)
    for file, put in special.items():
        (directory / file).unlink()
        put(directory / file)
    (directory / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n')
    return directory / name, what


def _special(files: Files, special: dict[str, Callable[[Path], None]], rng: random.Random, what: list[str]) -> None:
    file = rng.choice(list(files))
    if file.startswith("ckpt-1."):
        return
    outside = rng.choice(OUTSIDE)
    special[file] = rng.choice([os.mkfifo, Path.mkdir, lambda path: path.symlink_to(outside)])
    what.append(f"special {file}")


def _bytes(files: Files, rng: random.Random, what: list[str]) -> None:
    """Changes bytes of a file, which no checksum follows."""
    file = rng.choice([each for each in files if not each.startswith("ckpt-1.")])
    content = bytearray(files[file])
    kind = rng.choice(["flip", "cut", "more", "zeros"])
    what.append(f"{kind} {file}")
    if kind == "flip" and content:
        for _ in range(rng.choice([1, 1, 5])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[rng.randrange(len(content) + 1) :]
    elif kind == "more":
        content += rng.randbytes(rng.choice([1, 48, 5000]))
    else:
        content[:] = bytes(len(content))
    files[file] = bytes(content)


def _tensorflow(base: str, rng: random.Random, what: list[str]) -> tuple[Files, str]:
    prefix = json.loads((GOLDEN / base / "expected.json").read_text())["prefix"]
    files = {}
    for path in (GOLDEN / base).glob(f"{prefix}.*"):
        for name in ("ckpt-1", "ckpt-2"):
            files[name + path.name.removeprefix(prefix)] = path.read_bytes()
    entries = bundles.decode(files["ckpt-2.index"])
    options: dict[str, Any] = {}
    for _ in range(rng.choice([1, 1, 2, 3])):
        change = rng.choice([_entry, _entry, _keys, _graph, _graph, _slices, _table, None])
        if change is None:
            files["ckpt-2.index"] = bundles.encode(entries, **options)
            _bytes(files, rng, what)
            return files, "ckpt-2"
        what.append(change.__name__)
        change(entries, options, files, rng)
    files["ckpt-2.index"] = bundles.encode(entries, **options)
    return files, "ckpt-2"


def _entry(entries: Entries, options: dict[str, Any], files: Files, rng: random.Random) -> None:
    """Changes a field of a message, at any depth."""
    at = rng.randrange(len(entries))
    key, value = entries[at]
    entries[at] = key, _message(value, rng, 3)


def _message(content: bytes, rng: random.Random, depth: int) -> bytes:
    try:
        found = bundles.fields(content)
    except IndexError:
        found = []
    if not found:
        return rng.randbytes(rng.choice([0, 1, 4]))
    at = rng.randrange(len(found))
    number, kind, value = found[at]
    choice = rng.choice(["value", "value", "value", "drop", "twice", "many", "kind"])
    if choice == "drop":
        del found[at]
    elif choice == "twice":
        found.insert(at, found[at])
    elif choice == "many":
        found += [found[at]] * rng.choice([10, 70, 3000])
    elif choice == "kind":
        found[at] = number, 0, rng.choice(INTS)
    elif kind == 2 and depth:
        found[at] = number, kind, _message(value, rng, depth - 1)
    else:
        found[at] = number, kind, rng.choice(INTS) if kind != 2 else rng.randbytes(3)
    return bundles.message(found)


def _keys(entries: Entries, options: dict[str, Any], files: Files, rng: random.Random) -> None:
    kind = rng.choice(["replace", "twice", "shuffle", "many", "prefixes", "deep"])
    at = rng.randrange(len(entries))
    if kind == "replace":
        entries[at] = rng.choice(KEYS), entries[at][1]
    elif kind == "twice":
        entries.insert(at, entries[at])
    elif kind == "shuffle":
        rng.shuffle(entries)
    elif kind == "many":
        value = entries[-1][1]
        entries += [(b"~" + number.to_bytes(3, "big"), value) for number in range(rng.choice([100, 5000]))]
    else:
        value = entries[-1][1]
        first = b"~" + (b"/a" * 900 if kind == "deep" else b"k" * rng.choice([1000, 60000]))
        entries[:] = [entries[0], (first, value), *((bytes([1]), value) for _ in range(rng.choice([100, 3000])))]
        options["prefixes"] = True


def _slices(entries: Entries, options: dict[str, Any], files: Files, rng: random.Random) -> None:
    """Changes the slices of a tensor, if there are any."""
    found = [at for at, (_, value) in enumerate(entries) if any(number == 7 for number, _, _ in bundles.fields(value))]
    if not found:
        _entry(entries, options, files, rng)
        return
    at = rng.choice(found)
    key, value = entries[at]
    listed = bundles.fields(value)
    parts = [field for field in listed if field[0] == 7]
    others = [field for field in listed if field[0] != 7]
    kind = rng.choice(["twice", "drop", "many", "change"])
    if kind == "twice":
        parts.append(rng.choice(parts))
    elif kind == "drop":
        del parts[rng.randrange(len(parts))]
    elif kind == "many":
        parts = parts * 2000
    else:
        number, wire, content = parts[0]
        parts[0] = number, wire, _message(content, rng, 2)
    entries[at] = key, bundles.message(others + parts)


def _table(entries: Entries, options: dict[str, Any], files: Files, rng: random.Random) -> None:
    options[rng.choice(["kind", "blocks"])] = rng.choice([0, 1, 2, 250])


def _graph(entries: Entries, options: dict[str, Any], files: Files, rng: random.Random) -> None:
    """Replaces the object graph."""
    at = next((at for at, (key, _) in enumerate(entries) if key == GRAPH), None)
    if at is None:
        _entry(entries, options, files, rng)
        return
    keys = [key for key, _ in entries[1:] if key != GRAPH]
    kind = rng.choice(["complete", "chain", "wide", "damaged", "ladder", "slots"])
    size = rng.choice([3, 60, 300])
    if kind == "complete":
        nodes = [bundles.node([(child, f"n{child}") for child in range(size)], keys[:1]) for _ in range(size)]
    elif kind == "chain":
        nodes = [bundles.node([((each + 1) % (size * 5), "x" * size)], keys[:1]) for each in range(size * 5)]
    elif kind == "wide":
        nodes = [
            bundles.node([(0, f"{each}") for each in range(size * 30)] + [(1, "a")]),
            bundles.node([(rng.choice(INTS), "b")], keys),
        ]
    elif kind == "ladder":
        # Twice as many paths with every step.
        nodes = [bundles.node([(each + 1, "l" * size), (each + 1, "r")], keys) for each in range(size)] + [
            bundles.node([], keys)
        ]
    elif kind == "slots":
        slots = [(rng.randrange(3), f"m{each}", rng.randrange(3)) for each in range(size * 30)]
        nodes = [
            bundles.node([(1, "o"), (2, "v"), (2, "w")], keys, slots),
            bundles.node([(0, "r")], keys, slots),
            bundles.node([], keys),
        ]
    else:
        nodes = [rng.randbytes(size)]
    content = bundles.message([(1, 2, each) for each in nodes])
    lengths = struct.pack("<I", len(content))
    crc = google_crc32c.value(lengths)
    seal = struct.pack("<I", bundles.mask(crc))
    shard = next(file for file in sorted(files) if file.startswith("ckpt-2.data"))
    offset = len(files[shard])
    stored = bundles.varint(len(content)) + seal + content
    files[shard] += stored
    crc = google_crc32c.extend(google_crc32c.extend(crc, seal), content)
    entry = [
        (1, 0, 7),
        (2, 2, b""),
        (3, 0, int(shard.split("-")[2])),
        (4, 0, offset),
        (5, 0, len(stored)),
        (6, 5, bundles.mask(crc)),
    ]
    entries[at] = GRAPH, bundles.message(entry)


def _safetensors(base: str, rng: random.Random, what: list[str]) -> tuple[Files, str]:
    arrays = {"model.w": np.arange(6, dtype=np.float32), "b": np.zeros((2, 3), np.int8), "s": np.array(1, np.int64)}
    names = list(arrays) if base == "safetensors" else [*arrays][:2]
    files = {"x.safetensors": _file({name: arrays[name] for name in names}, rng, what)}
    if base == "safetensors":
        target = "x.safetensors"
    else:
        files["y.safetensors"] = _file({"s": arrays["s"]}, rng, what)
        places = {**dict.fromkeys(names, "x.safetensors"), "s": "y.safetensors"}
        index = json.dumps({"metadata": {"total_size": 38}, "weight_map": places}).encode()
        if rng.random() < 0.5:
            what.append("index")
            index = documents.mutate(index, rng, rng.choice([1, 2]))
        target = "x.safetensors.index.json"
        files[target] = index
    if rng.random() < 0.4:
        _bytes(files, rng, what)
    return files, target


def _file(arrays: dict[str, np.ndarray], rng: random.Random, what: list[str]) -> bytes:
    at, document, data = 0, {}, b""
    own: dict[str, Any] = {"format": 1, "leaves": {}, "strings": {"t": "text"}, "record": {"save_counter": 3}}
    for name, array in arrays.items():
        document[name] = {
            "dtype": {"f": "F32", "i": f"I{array.itemsize * 8}"}[array.dtype.kind],
            "shape": list(array.shape),
        }
        document[name]["data_offsets"] = [at, at + array.nbytes]
        own["leaves"][name] = {"type": "np.ndarray", "indices": [0]}
        at += array.nbytes
        data += array.tobytes()
    inner = json.dumps(own).encode()
    if rng.random() < 0.5:
        what.append("own metadata")
        inner = documents.mutate(inner, rng, 1)
    metadata = {"format": "np"} | ({"jaxckpt": inner.decode("utf-8", "replace")} if rng.random() < 0.6 else {})
    text = json.dumps({"__metadata__": metadata, **document}).encode()
    if rng.random() < 0.6:
        what.append("header")
        text = documents.mutate(text, rng, rng.choice([1, 1, 3]))
    length = len(text) if rng.random() < 0.9 else rng.choice(INTS)
    return struct.pack("<Q", length) + text + data


def targets() -> dict[str, Any]:
    """Targets that fit some of the bases."""
    return {
        "step": np.int64(0),
        "model": {"tied": np.zeros((4, 8), np.float32), "w": np.zeros(6, np.float32)},
        "big": np.zeros((40, 7), np.float32),
        "text": "",
        "b": np.zeros((2, 3), np.int8),
        "table": np.zeros((10, 3), np.float32),
    }
