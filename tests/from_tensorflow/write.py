"""Writes checkpoints with TensorFlow, and next to each the values that TensorFlow's own reader finds in it.

Run as a program, by a Python that has TensorFlow and Keras: ``python write.py DIRECTORY``. It imports nothing of jaxckpt.

Each directory ``<name>`` has a file ``expected.json``: the name of the checkpoint; dtype, shape and bytes (in hexadecimal) of each tensor.
The directory ``golden`` beside this program has what it wrote with TensorFlow 2.21 (``python write.py golden``), so that most tests do not
need TensorFlow.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import tensorflow as tf

NUMBERS = [
    *(
        "float16",
        "float32",
        "float64",
        "bfloat16",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    ),
    *("bool", "complex64", "complex128", "float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz"),
    *("float8_e5m2fnuz", "int4", "uint4", "int2", "uint2", "float4_e2m1fn"),
]


def main(directory: Path) -> None:
    """Writes all checkpoints."""
    for write in (tree, keras3, keras2, keras2_legacy, dtypes, strings, partitioned, small_shards, sharded, v1):
        target = directory / write.__name__
        target.mkdir(parents=True)
        tf.random.set_seed(0)
        np.random.seed(0)
        prefix = write(target)
        if prefix is not None:
            record(prefix, target / "expected.json")


def record(prefix: str, path: Path) -> None:
    """Writes what TensorFlow reads from a checkpoint."""
    reader = tf.train.load_checkpoint(prefix)
    keys = {}
    for key, shape in sorted(reader.get_variable_to_shape_map().items()):
        dtype = reader.get_variable_to_dtype_map()[key]
        value = reader.get_tensor(key)
        if dtype == tf.string:
            texts = [value] if shape == [] else list(value.reshape(-1))
            content: Any = [text.hex() for text in texts]
        else:
            content = np.ascontiguousarray(value).tobytes().hex()
        keys[key] = {"dtype": dtype.name, "shape": shape, "content": content}
    path.write_text(json.dumps({"prefix": os.path.basename(prefix), "keys": keys}))


# The variables of `tree`, in the order of its optimizer.
NAMES = ["layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel"]


class Dense(tf.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.random.normal([rows, columns]))
        self.bias = tf.Variable(tf.random.normal([columns]))


class Net(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [Dense(4, 8), Dense(8, 2)]
        self.tied = self.layers[0].kernel
        # A key that TensorFlow has to escape.
        self.named = {"a/b.c~d": tf.Variable([1.5, 2.5]), "e": tf.Variable(3)}


def tree(directory: Path) -> str:
    """Plain modules, an optimizer of tf.keras, and a manager."""
    import keras

    net = Net()
    optimizer = keras.optimizers.Adam(0.01)
    variables = [*net.layers[0].trainable_variables, *net.layers[1].trainable_variables]
    optimizer.build(variables)
    checkpoint = tf.train.Checkpoint(
        model=net,
        optimizer=optimizer,
        step=tf.Variable(7, dtype=tf.int64),
        epoch=tf.Variable(3),
        rate=tf.Variable(0.125),
    )
    manager = tf.train.CheckpointManager(checkpoint, str(directory), max_to_keep=2)
    for _ in range(3):
        for variable in variables:
            variable.assign_add(tf.random.normal(variable.shape))
        optimizer.apply([tf.random.normal(variable.shape) for variable in variables])
        path = manager.save()
    # The step after the checkpoint, which a program in JAX takes too.
    optimizer.apply([tf.ones_like(variable) * (0.1 * (number + 1)) for number, variable in enumerate(variables)])
    after = [
        {"name": name, "value": variable.numpy().tolist()} for name, variable in zip(NAMES, variables, strict=True)
    ]
    (directory / "after.json").write_text(json.dumps(after))
    return path


def _model(keras: Any) -> Any:
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="relu", name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(2, name="out"),
        ]
    )


def _train(keras: Any, optimizer: Any, directory: Path) -> str:
    model = _model(keras)
    model.compile(optimizer, "mse")
    model.fit(np.random.randn(32, 4).astype("float32"), np.random.randn(32, 2).astype("float32"), verbose=0)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer, step=tf.Variable(1, dtype=tf.int64))
    return checkpoint.save(str(directory / "ckpt"))


def keras3(directory: Path) -> str:
    """Keras 3: the weights are stored under the optimizer only."""
    import keras

    return _train(keras, keras.optimizers.Adam(0.01), directory)


def keras2(directory: Path) -> str:
    """Keras 2, and its newer optimizer."""
    import tf_keras

    return _train(tf_keras, tf_keras.optimizers.Adam(0.01), directory)


def keras2_legacy(directory: Path) -> str:
    """Keras 2, and its older optimizer, which has slot variables."""
    import tf_keras

    return _train(tf_keras, tf_keras.optimizers.legacy.Adam(0.01), directory)


def dtypes(directory: Path) -> str:
    """Every type of number, as arrays, scalars and empty arrays. Variables cannot have some of them, so tensors are saved."""
    names, tensors = [], []
    for name in NUMBERS:
        dtype = getattr(tf.dtypes, name, None) or getattr(tf.dtypes.experimental, name, None)
        if dtype is None:
            continue
        plain = np.arange(12) % (2 if "4" in name[-5:] or "2" in name[-5:] else 12)
        array = plain.astype(dtype.as_numpy_dtype)
        for prefix, value in {"": array.reshape(3, 4), "scalar_": array[1], "empty_": array[:0].reshape(0, 3)}.items():
            names.append(prefix + name)
            tensors.append(tf.constant(value, dtype))
    names.append("special")
    tensors.append(tf.constant(np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)))
    # Types that only TensorFlow has.
    names.append("quantized")
    tensors.append(tf.bitcast(tf.constant([1, 2, 3], tf.int8), tf.qint8))
    prefix = str(directory / "ckpt")
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
    return prefix


def strings(directory: Path) -> str:
    """Texts, bytes that are not text, and arrays of them."""
    values = {
        "text": tf.Variable("grüße"),
        "empty": tf.Variable(""),
        "bytes": tf.Variable(b"\xff\x00\xfe"),
        "long": tf.Variable("x" * 300),
        "array": tf.Variable([["a", "bb"], ["", "\u20ac" * 100]]),
        "none": tf.Variable(tf.constant([], tf.string)),
        "number": tf.Variable([1.0, 2.0]),
    }
    return tf.train.Checkpoint(**values).save(str(directory / "ckpt"))


def partitioned(directory: Path) -> str:
    """The older Saver: partitioned variables, and slots below the variables' names. It writes no object graph."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        make = tf.compat.v1.get_variable
        table = make("table", [10, 3], partitioner=tf.compat.v1.fixed_size_partitioner(4), dtype=tf.float32)
        make("columns", [3, 200], partitioner=tf.compat.v1.fixed_size_partitioner(3, axis=1), dtype=tf.bfloat16)
        whole = make("dense/kernel", [4, 4])
        loss = sum(tf.reduce_sum(part**2) for part in [*table, whole])
        tf.compat.v1.train.AdamOptimizer(0.1).minimize(loss, tf.compat.v1.train.get_or_create_global_step())
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver()
        return saver.save(session, str(directory / "ckpt"), global_step=5, write_meta_graph=False)


def small_shards(directory: Path) -> str:
    """Many shards: arrays are cut into slices of 600 bytes."""
    checkpoint = tf.train.Checkpoint(
        big=tf.Variable(tf.random.normal([40, 7])),
        wide=tf.Variable(tf.random.normal([2, 200])),
        small=tf.Variable([1, 2, 3]),
        texts=tf.Variable(["a", "b"]),
    )
    policy = tf.train.experimental.MaxShardSizePolicy(600)
    options = tf.train.CheckpointOptions(experimental_sharding_callback=policy)
    return checkpoint.save(str(directory / "ckpt"), options=options)


def sharded(directory: Path) -> str:
    """Several data files with whole arrays, as several devices write them."""
    with (
        tf.Graph().as_default(),
        tf.compat.v1.Session(
            config=tf.compat.v1.ConfigProto(device_count={"CPU": 3}, allow_soft_placement=True)
        ) as session,
    ):
        for number in range(3):
            with tf.device(f"/cpu:{number}"):
                tf.compat.v1.get_variable(f"part{number}", [5, number + 1])
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(sharded=True)
        return saver.save(session, str(directory / "ckpt"), write_meta_graph=False)


def v1(directory: Path) -> None:
    """The format before TensorFlow 1.0."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.get_variable("kernel", [4, 4])
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(write_version=tf.compat.v1.train.SaverDef.V1)
        saver.save(session, str(directory / "ckpt"), write_meta_graph=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
