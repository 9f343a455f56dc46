"""Cases: a small real checkpoint, taken apart, changed at random places, and put together again with right checksums.

A case is made by its seed and number alone. Its directory holds a sound checkpoint, the hostile one, and a state file that calls the
hostile one the latest.
"""

import copy
import functools
import json
import os
import random
import re
import shutil
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
from golden import make
from hostile import documents, foreign_cases, ocdbt

GOLDEN = Path(make.__file__).parent
BASES = [
    *("jaxckpt-0.1.0/model", "jaxckpt-0.1.0/chunks", "jaxckpt-0.1.0/chunks_zstd", "jaxckpt-0.1.0/chunks_files"),
    *("jaxckpt-0.1.0/leaf_kinds", "jaxckpt-0.1.0/compressible_zstd_files", "orbax-0.12.8/v0_standard"),
    *("orbax-0.12.8/v0_zarr2_files", "orbax-0.12.8/v0_zarr2_ocdbt_zstd", "orbax-0.12.8/v0_zarr3_files_zstd"),
    *("orbax-0.12.8/v0_zarr3_ocdbt", "orbax-0.12.8/v1_zarr3_ocdbt_zstd", "orbax-0.12.8/v1_zarr2_files"),
]
# `Case.values` of a case from another library.
FOREIGN = "foreign"
# Where links of hostile checkpoints lead.
OUTSIDE = [
    "/dev/zero",
    "/dev/stdin",
    "/etc/passwd",
    "/proc/self/environ",
    "/",
    "..",
    "../ckpt-1/_METADATA",
    "/dev/tty",
    "loop",
]
NAMES = [
    b"../ckpt-1/_METADATA",
    b"/etc/passwd",
    b"a\0b",
    b"",
    b".",
    b"d",
    b"d/../../ckpt-1/_METADATA",
    b"x" * 5000,
    b"/dev/zero",
    b"pipe",
]
INTS = [
    0,
    1,
    2,
    3,
    127,
    128,
    255,
    1000,
    65535,
    65536,
    10**6,
    2**31,
    2**32,
    10**13,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**69,
]


@dataclass
class Case:
    """What the readers are given.

    Attributes:
      directory: of the checkpoints and the state file.
      path: the hostile checkpoint.
      values: name of the function in `golden.make` that returns what was saved.
      what: the changes, in words.
      database: directory and structure of the OCDBT database; None if there is none.
    """

    directory: Path
    path: Path
    values: str
    what: list[str] = field(default_factory=list)
    database: tuple[str, ocdbt.Database] | None = None


def make_case(seed: int, number: int, directory: Path) -> Case:
    """Writes a case into a directory that does not exist."""
    rng = random.Random(f"{seed}:{number}")
    if number % 4 == 3:
        path, what = foreign_cases.make(rng, number // 4, directory)
        return Case(directory, path, FOREIGN, what)
    base = BASES[number % len(BASES)]
    path = directory / "ckpt-2"
    shutil.copytree(GOLDEN / base, directory / "ckpt-1")
    case = Case(directory, path, make.values_of(Path(base).name), [base])
    found, database = _base(base)
    files, case.database = dict(found), copy.deepcopy(database)
    special: dict[str, Callable[[Path], None]] = {}
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        change = rng.choices([_document, _tree, _places, _shard, _file, _state], [38, 24, 14, 6, 13, 5])[0]
        try:
            change(files, special, case, rng)
        except (LookupError, ValueError, RecursionError):
            # An earlier change has left nothing to change here.
            continue
    _renew_digests(files)
    for name, content in files.items():
        file = path / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        except (OSError, ValueError):
            # A name that no file can have.
            continue
    for name, put in special.items():
        file = path / name
        try:
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            else:
                file.unlink(missing_ok=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            put(file)
        except OSError:
            # Another change has put something else in the place of a directory above.
            continue
    if not (directory / "checkpoint").exists() and not os.path.lexists(directory / "checkpoint"):
        (directory / "checkpoint").write_text(
            'model_checkpoint_path: "ckpt-2"\nall_model_checkpoint_paths: "ckpt-1"\nall_model_checkpoint_paths: "ckpt-2"\n'
        )
    return case


@functools.cache
def _base(base: str) -> tuple[dict[str, bytes], tuple[str, ocdbt.Database] | None]:
    sound = GOLDEN / base
    files = {str(file.relative_to(sound)): file.read_bytes() for file in sound.rglob("*") if file.is_file()}
    return files, _database(files)


Files = dict[str, bytes]
Special = dict[str, Callable[[Path], None]]


def _document(files: Files, special: Special, case: Case, rng: random.Random) -> None:
    """Changes a JSON document: a file, or a value of the database."""
    names = [name for name in files if _is_document(name)]
    # The more a file says, the more often.
    weights = [6 if name.endswith("_METADATA") else 3 if "/" not in name else 1 for name in names]
    name = rng.choices(names, weights)[0]
    times = rng.choice([1, 1, 2, 4])
    if name.endswith("manifest.ocdbt"):
        _inner_document(files, name, case, rng, times)
        return
    case.what.append(f"document {name}")
    content, _, _ = files[name].partition(b"\n")
    try:
        files[name] = documents.mutate(content, rng, times)
    except (ValueError, RecursionError):
        files[name] = b"{}"


def _is_document(name: str) -> bool:
    last = name.rpartition("/")[2]
    if last in ("_METADATA", "_sharding", "_strings.json", "_JAXCKPT", "_CHECKPOINT_METADATA", "zarr.json", ".zarray"):
        return True
    return "array_metadatas/" in name or (last == "manifest.ocdbt" and "ocdbt.process" not in name)


def _database(files: Files) -> tuple[str, ocdbt.Database] | None:
    manifests = [name for name in files if name.endswith("manifest.ocdbt") and "ocdbt.process" not in name]
    if not manifests:
        return None
    folder = manifests[0].removesuffix("manifest.ocdbt")
    return folder, ocdbt.decode(files, folder)


def _put_database(files: Files, folder: str, database: ocdbt.Database, rng: random.Random) -> None:
    """Writes all nodes of a database into a new data file, which begins with its own name."""
    name = rng.randbytes(16)
    data = bytearray(name)
    path = f"d/{name.hex()}"
    files[folder + "manifest.ocdbt"] = database.encode(data, path.encode(), 0)
    files[folder + path] = bytes(data)


def _inner_document(files: Files, name: str, case: Case, rng: random.Random, times: int) -> None:
    found = case.database
    if found is None:
        return
    folder, database = found
    places = [
        (node, number)
        for node, number in _values(database)
        if node.values[number][:2] == b'{"' and node.values[number][-1:] == b"}"
    ]
    if not places:
        return
    for node, number in rng.sample(places, min(len(places), rng.choice([1, 3]))):
        _set_value(node, number, documents.mutate(node.values[number], rng, times))
    case.what.append("documents in the database")
    _put_database(files, folder, database, rng)


def _values(database: ocdbt.Database) -> list[tuple[ocdbt.Tree, int]]:
    """Node and number of every value that is in a node."""
    return [(node, number) for node in ocdbt.nodes(database.root) for number in range(len(node.values))]


def _set_value(node: ocdbt.Tree, number: int, value: bytes) -> None:
    node.values[number] = value
    inline = [position for position, kind in enumerate(node.columns[1]) if not kind]
    node.columns[0][inline[number]] = len(value)


def _shard(files: Files, special: Special, case: Case, rng: random.Random) -> None:
    """Changes where the chunks in some shards are."""
    case.what.append("shards")
    for name in [name for name in files if "/c/" in name and _is_shard(files[name])]:
        if rng.random() < 0.5:
            files[name] = _with_other_index(files[name], rng)
    if case.database is None:
        return
    folder, database = case.database
    places = [(node, number) for node, number in _values(database) if _is_shard(node.values[number])]
    for node, number in rng.sample(places, min(len(places), rng.choice([1, 3]))):
        _set_value(node, number, _with_other_index(node.values[number], rng))
    _put_database(files, folder, database, rng)


def _is_shard(value: bytes) -> bool:
    """Whether a value ends in the index of one chunk. The goldens have no others."""
    return len(value) > 20 and google_crc32c.value(value[-20:-4]) == int.from_bytes(value[-4:], "little")


def _with_other_index(value: bytes, rng: random.Random) -> bytes:
    numbers = list(struct.unpack("<QQ", value[-20:-4])) * rng.choice([1, 1, 1, 2, 1000])
    for _ in range(rng.choice([1, 2])):
        numbers[rng.randrange(len(numbers))] = rng.choice([*INTS[:-1], len(value) - 20, len(value) - 21])
    index = struct.pack(f"<{len(numbers)}Q", *numbers)
    return value[:-20] + index + google_crc32c.value(index).to_bytes(4, "little")


def _tree(files: Files, special: Special, case: Case, rng: random.Random) -> None:
    """Changes the structure of the B-tree."""
    found = case.database
    if found is None:
        _document(files, special, case, rng)
        return
    folder, database = found
    root = database.root
    if root is None:
        return
    kind = rng.choice(
        ["claims", "manifest", "tower", "cycle", "keys", "prefixes", "table", "order", "twice", "bomb", "cut"]
    )
    case.what.append(f"tree {kind}")
    node = rng.choice(ocdbt.nodes(root))
    if kind == "claims":
        node.claims[rng.choice(["files", "count", "height", "prefix", "suffix"])] = rng.choice(INTS)
    elif kind == "manifest":
        names = ["kind", "files", "versions", "root height", "file", "offset", "length", "cut"]
        database.claims[rng.choice(names)] = rng.choice(INTS)
    elif kind in ("tower", "cycle"):
        width, height = rng.choice([2, 10, 200]), rng.choice([3, 20, 200])
        for _ in range(1 if kind == "cycle" else height):
            root = _parent(root, width)
        if kind == "cycle":
            root.claims["self"] = 1
        database.root, database.height = root, root.height
    elif kind == "keys":
        node.keys[rng.randrange(len(node.keys))] = rng.choice(NAMES)
    elif kind == "prefixes":
        size = rng.choice([10_000, 60_000])
        count = rng.choice([2000, 20_000])
        node.keys = [b"k" * size, *(number.to_bytes(4, "big") for number in range(1, count))]
        node.claims.update(prefix=size, raw=1)
        node.columns = [[0] * count for _ in node.columns]
        node.values, node.children = [], []
    elif kind == "table":
        count = rng.choice([10, 5000])
        node.files += [
            (b"d/" + b"f" * rng.choice([10, 4000]) + number.to_bytes(4, "big"), 0) for number in range(count)
        ]
    elif kind == "order":
        rng.shuffle(node.keys)
    elif kind == "twice":
        position = rng.randrange(len(node.keys))
        node.keys.insert(position, node.keys[position])
        for column in node.columns[: 2 if not node.height else None]:
            column.insert(position, column[position] if position < len(column) else 0)
        if node.height:
            node.children.insert(position, node.children[position])
    elif kind == "bomb":
        node.compressed = True
        node.values += [b"\0" * rng.choice([10**5, 3 * 10**7])]
    else:
        for column in node.columns:
            del column[rng.randrange(len(column) + 1) :]
    _put_database(files, folder, database, rng)


def _parent(child: ocdbt.Tree, width: int) -> ocdbt.Tree:
    """A node all of whose children are one."""
    keys = [number.to_bytes(2, "big") for number in range(width)]
    columns = [[0] * width, *([0] * width for _ in range(6))]
    # The child is written once; its place is then copied.
    parent = _SameChild(child.height + 1, [], keys, columns, [], [child], {}, child.compressed)
    return parent


class _SameChild(ocdbt.Tree):
    """A node that refers to its only child once for each key."""

    def encode(self) -> bytes:
        for column in self.columns[1:4]:
            column[:] = [column[0]] * len(column)
        return super().encode()


def _places(files: Files, special: Special, case: Case, rng: random.Random) -> None:
    """Changes where values, children and files of the database are."""
    found = case.database
    if found is None:
        _file(files, special, case, rng)
        return
    folder, database = found
    nodes = ocdbt.nodes(database.root)
    if not nodes:
        return
    node = rng.choice(nodes)
    kind = rng.choice(["number", "alias", "swap", "name", "column", "inline"])
    case.what.append(f"places {kind}")
    columns = [column for column in node.columns if column]
    if kind == "name":
        if node.files:
            node.files[rng.randrange(len(node.files))] = (rng.choice(NAMES), rng.choice([0, 0, 1, 100]))
        else:
            node.files.append((rng.choice(NAMES), 0))
        if b"pipe" in [path for path, _ in node.files]:
            special[f"{folder}pipe"] = os.mkfifo
    elif kind == "alias" and columns:
        for column in node.columns[2:]:
            column[:] = [column[0]] * len(column) if column else []
    elif kind == "swap" and columns:
        column = rng.choice(columns)
        rng.shuffle(column)
    elif kind == "column" and columns:
        column = rng.choice(columns)
        column[:] = [rng.choice(INTS)] * len(column)
    elif kind == "inline" and node.values:
        position = rng.randrange(len(node.values))
        old = node.values[position]
        node.values[position] = rng.choice([b"", old[:3], old * 2, bytes(len(old))])
        inline = [number for number, kind in enumerate(node.columns[1]) if not kind]
        node.columns[0][inline[position]] = len(node.values[position])
    elif columns:
        column = rng.choice(columns)
        column[rng.randrange(len(column))] = rng.choice(INTS)
    _put_database(files, folder, database, rng)


def _file(files: Files, special: Special, case: Case, rng: random.Random) -> None:
    """Puts something else in the place of a file, or of a directory."""
    name = rng.choice(sorted({*files, *(name.rpartition("/")[0] for name in files)} - {""}))
    kind = rng.choice(["pipe", "directory", "link", "socket", "empty", "half", "double", "gone", "sparse", "other"])
    case.what.append(f"{kind} {name}")
    if kind == "pipe":
        special[name] = os.mkfifo
    elif kind == "directory":
        special[name] = Path.mkdir
    elif kind == "socket":
        special[name] = _socket
    elif kind == "link":
        target = rng.choice([*OUTSIDE, "itself"])
        special[name] = lambda file: file.symlink_to(file.name if target == "itself" else target)
    elif kind == "sparse":
        size = rng.choice([10**6, 2 * 10**9, 10**12])
        special[name] = lambda file: _sparse(file, size)
    elif name in files:
        old = files[name]
        if kind == "gone":
            del files[name]
        else:
            other = rng.choice(list(files.values()))
            files[name] = {"empty": b"", "half": old[: len(old) // 2], "double": old * 2, "other": other}[kind]


def _sparse(file: Path, size: int) -> None:
    with open(file, "wb") as opened:
        opened.truncate(size)


def _socket(file: Path) -> None:
    # The path of a socket must be short, so it is bound relative to its directory.
    made = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(file.parent)
    try:
        made.bind(file.name[:90])
    finally:
        os.chdir(here)
        made.close()


def _state(files: Files, special: Special, case: Case, rng: random.Random) -> None:
    """Changes the state file."""
    file = case.directory / "checkpoint"
    if os.path.lexists(file):
        return
    kind = rng.choice(["pipe", "directory", "link", "text", "long", "sparse"])
    case.what.append(f"state file {kind}")
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    elif kind == "link":
        file.symlink_to(rng.choice(OUTSIDE))
    elif kind == "sparse":
        _sparse(file, 10**10)
    elif kind == "long":
        file.write_text('all_model_checkpoint_paths: "' + "ckpt-2" * 10_000 + '"\n' + "[" * 10_000)
    else:
        name = rng.choice(
            ["ckpt-2", "../../x", "/etc/passwd", "ckpt-2/../ckpt-1", "", "a" * 5000, r"\377\000", r"\U99999999"]
        )
        number = rng.choice(["1e400", "nan", "-1", "9" * 5000, "x", "1e300"])
        file.write_text(
            f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "ckpt-1"\nall_model_checkpoint_timestamps: {number}\n'
            f"last_preserved_timestamp: {number}\n"
        )


def _renew_digests(files: Files) -> None:
    """Makes `_JAXCKPT` right again, where it can still be read."""
    for name in [name for name in files if name.rpartition("/")[2] == "_JAXCKPT"]:
        folder = name.removesuffix("_JAXCKPT")
        body, _, _ = files[name].partition(b"\n")
        try:
            document = json.loads(body)
            noted = document["files"]
            has_database = f"{folder}manifest.ocdbt" in files
            for file, content in files.items():
                inner = file.removeprefix(folder)
                if inner == "_JAXCKPT" or not file.startswith(folder):
                    continue
                if has_database and re.match(r"(ocdbt[^/]*/)?d/", inner):
                    if inner not in noted:
                        noted[inner] = [len(content), "named"]
                elif inner in noted and "/c/" not in f"/{inner}/":
                    noted[inner] = [len(content), f"{google_crc32c.value(content):08x}"]
            for file in [
                file for file in noted if isinstance(file, str) and folder + file not in files and len(file) < 60
            ]:
                if file not in ("..", ".", "") and not file.startswith(("/", "..")) and "\0" not in file:
                    del noted[file]
            body = json.dumps(document, sort_keys=True).encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, IndexError):
            pass
        files[name] = body + f"\n{google_crc32c.value(body):08x}\n".encode()
