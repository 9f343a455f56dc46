"""Upper bounds for sizes that a file claims. A file that claims more is damaged, or was made to do harm.

Each bound lies far above the sizes in real checkpoints, and low enough that a stranger's checkpoint costs only seconds and megabytes. The
bounds limit claims only: data is allowed whatever its size if as many bytes lie on disk.
"""

# A metadata file (`_METADATA`, `array_metadatas/*`, `_sharding`, `_strings.json`, `_JAXCKPT`): room for a million leaves.
METADATA_FILE_BYTES = 512 << 20
# A file of a few fields: `_CHECKPOINT_METADATA`, `_JAXCKPT_OWNER`. Orbax keeps the user's metrics and metadata in the first one.
NOTE_FILE_BYTES = 64 << 20
# The state file of a directory (`checkpoint`): room for 100,000 checkpoints with long names.
STATE_FILE_BYTES = 64 << 20
# `manifest.ocdbt`: it grows by 50 bytes for each version of the database; Orbax writes a few.
MANIFEST_BYTES = 16 << 20
# `zarr.json` or `.zarray` of one array.
ARRAY_METADATA_BYTES = 1 << 20

# Levels between the top of the tree and a leaf. JAX itself cannot flatten a deeper tree.
TREE_LEVELS = 1000
# Axes of an array, as in numpy. TensorStore, which reads the arrays that jaxckpt's own engine does not, allows 32.
AXES = 64
TENSORSTORE_AXES = 32
# Bytes of an array, and of a chunk. Sums of such sizes still fit into 63 bits.
ARRAY_BYTES = 1 << 62
# Codecs in one list of codecs, and how deeply such lists may be nested (`sharding_indexed` holds lists).
CODECS = 8
CODEC_LEVELS = 2

# The path of a file, relative to the checkpoint (PATH_MAX of Linux).
PATH_BYTES = 4096
# A key of an OCDBT database, as for TensorStore.
KEY_BYTES = 65535
# Levels of a B-tree: enough for 2**32 leaves if every node has two children.
TREE_HEIGHT = 32
# Keys and paths share prefixes on disk, so they are larger in memory. They may take this many bytes, plus a multiple of each node's bytes:
# EXPANDED_KEY_RATIO times its plain size, but at most EXPANDED_KEY_COMPRESSED_RATIO times its size on disk, where it may be compressed
# (similar names shrink to a fiftieth).
EXPANDED_KEY_BYTES = 64 << 20
EXPANDED_KEY_RATIO = 16
EXPANDED_KEY_COMPRESSED_RATIO = 64
# A compressed B-tree node may expand to this many bytes plus this multiple of its bytes (similar names shrink to a hundredth).
EXPANDED_NODE_BYTES = 4 << 20
EXPANDED_NODE_RATIO = 1000
# Entries of a compressed node: this many plus this many for each byte on disk. Each entry has its own key, which costs a byte.
NODE_ENTRIES = 1 << 16
NODE_ENTRIES_RATIO = 8

# A compressed chunk may expand to this many bytes plus this multiple of its bytes: zstd turns 128 KiB of zeros into 4 bytes.
EXPANDED_CHUNK_BYTES = 1 << 20
EXPANDED_CHUNK_RATIO = 32768
# Chunks that equal the fill value may be absent (Orbax left them out before 2024; zarr still does). One call without a target, as readers
# and `verify` make it, may fill in this many bytes. A call with a target of the array's shape may fill in any number.
ABSENT_BYTES = 64 << 20
# Absent chunks of one array. Each of them costs a look-up.
ABSENT_CHUNKS = 1 << 16
# If sizes on disk are unknown (an array in a bucket, outside of OCDBT), a chunk may have this many bytes: the largest that Orbax writes.
UNKNOWN_CHUNK_BYTES = 2 << 30
# In the same case, an array that is read without a target may have this many bytes.
UNKNOWN_ARRAY_BYTES = 16 << 30
