"""The bounds of what is read: a file that claims more is damaged, or was made to do harm.

Each bound lies far above what real checkpoints hold, and low enough that a checkpoint of a stranger costs seconds and megabytes. They limit
claims; what the bytes on disk justify is allowed whatever its size.
"""

# A metadata file (`_METADATA`, `array_metadatas/*`, `_sharding`, `_strings.json`, `_JAXCKPT`): a million leaves.
METADATA_FILE_BYTES = 512 << 20
# A file of a few fields: `_CHECKPOINT_METADATA`, `_JAXCKPT_OWNER`. Orbax keeps metrics and metadata of the user in the first one.
NOTE_FILE_BYTES = 64 << 20
# The state file: 100,000 checkpoints with long names.
STATE_FILE_BYTES = 64 << 20
# `manifest.ocdbt`: it grows by 50 bytes for each version of the database; Orbax writes a few.
MANIFEST_BYTES = 16 << 20
# `zarr.json` or `.zarray` of one array.
ARRAY_METADATA_BYTES = 1 << 20

# Levels between the top of the tree and a leaf. JAX itself flattens no deeper tree.
TREE_LEVELS = 1000
# Axes of an array, as for numpy. TensorStore, which reads what jaxckpt's own engine does not, knows 32.
AXES = 64
TENSORSTORE_AXES = 32
# Bytes of an array, and of a chunk: sums of sizes stay in 63 bits.
ARRAY_BYTES = 1 << 62
# Codecs in one list of codecs, and lists inside each other (`sharding_indexed` holds lists).
CODECS = 8
CODEC_LEVELS = 2

# The path of a file, relative to the checkpoint (PATH_MAX of Linux).
PATH_BYTES = 4096
# A key of an OCDBT database, as for TensorStore.
KEY_BYTES = 65535
# Levels of a B-tree: with two children a node, 2**32 leaves.
TREE_HEIGHT = 32
# Keys and paths share prefixes on disk. In memory they may take this, and so many times the bytes of their nodes: as they are, and on disk
# where they are compressed (names that are alike shrink to a fiftieth).
EXPANDED_KEY_BYTES = 64 << 20
EXPANDED_KEY_RATIO = 16
EXPANDED_KEY_COMPRESSED_RATIO = 64
# A compressed B-tree node may expand to this, and to so many times its bytes (names that are alike shrink to a hundredth).
EXPANDED_NODE_BYTES = 4 << 20
EXPANDED_NODE_RATIO = 1000
# Entries of a compressed node: this, and so many for each of its bytes on disk. Each entry has a key of its own, which costs a byte.
NODE_ENTRIES = 1 << 16
NODE_ENTRIES_RATIO = 8

# A compressed chunk may expand to this, and to so many times its bytes: zstd turns 128 KiB of zeros into 4 bytes.
EXPANDED_CHUNK_BYTES = 1 << 20
EXPANDED_CHUNK_RATIO = 32768
# Chunks that equal the fill value may be absent (Orbax left them out before 2024, zarr does it still). Without a target, as readers and
# `verify` read, this many bytes may be filled in by one call. Into a target of its shape an array is read whatever is absent.
ABSENT_BYTES = 64 << 20
# Absent chunks of one array: each costs a look-up.
ABSENT_CHUNKS = 1 << 16
# Where sizes on disk are not known (an array in a bucket, outside of OCDBT), a chunk may have this: the largest that Orbax writes.
UNKNOWN_CHUNK_BYTES = 2 << 30
# ... and an array that is read without a target this.
UNKNOWN_ARRAY_BYTES = 16 << 30
