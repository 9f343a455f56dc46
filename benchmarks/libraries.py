"""How other libraries save and restore, as their users call them. Each is imported when it is its turn."""

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np

from benchmarks import states
from benchmarks.contenders import Contender, Wait, sync_files

_THREADS = 2


def _quiet_orbax() -> Any:
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)
    return ocp


class OrbaxV0(Contender):
    """Orbax's `Checkpointer` and `AsyncCheckpointer` with `PyTreeCheckpointHandler`, as its users call them."""

    name = "orbax-v0"
    package = "orbax-checkpoint"
    asynchronous = True

    def __init__(self, state: states.State) -> None:
        super().__init__(state)
        ocp = _quiet_orbax()
        self._ocp = ocp
        self._sync = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))
        self._async = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))

    def save(self, path: str) -> None:
        self._sync.save(path, args=self._ocp.args.PyTreeSave(self.state))

    def start(self, path: str) -> Wait:
        self._async.save(path, args=self._ocp.args.PyTreeSave(self.state))
        return self._async.wait_until_finished  # type: ignore[no-any-return]

    def restore(self, path: str) -> Any:
        targets = states.targets(self.state)
        arguments = self._ocp.checkpoint_utils.construct_restore_args(targets)
        restored = self._sync.restore(path, args=self._ocp.args.PyTreeRestore(item=targets, restore_args=arguments))
        return jax.block_until_ready(jax.tree.leaves(restored))


class OrbaxV1(Contender):
    """Orbax's new interface (`orbax.checkpoint.v1`) with its defaults."""

    name = "orbax-v1"
    package = "orbax-checkpoint"
    asynchronous = True
    compression = True

    def __init__(self, state: states.State) -> None:
        super().__init__(state)
        self._v1 = _quiet_orbax().v1
        self._context = self._v1.Context()
        self._context.array.saving.use_compression = self.compression

    def save(self, path: str) -> None:
        with self._context:
            self._v1.save(path, self.state)

    def start(self, path: str) -> Wait:
        with self._context:
            return self._v1.save_async(path, self.state).result  # type: ignore[no-any-return]

    def restore(self, path: str) -> Any:
        with self._context:
            return jax.block_until_ready(jax.tree.leaves(self._v1.load(path, states.targets(self.state))))


class OrbaxV1Raw(OrbaxV1):
    """The same, without compression."""

    name = "orbax-v1-raw"
    compression = False


class TensorFlow(Contender):
    """`tf.train.Checkpoint` of variables."""

    name = "tensorflow"
    package = "tensorflow-cpu"
    module = "tensorflow"
    asynchronous = True
    verifies = True

    def __init__(self, state: states.State) -> None:
        super().__init__(state)
        tf: Any = importlib.import_module("tensorflow")

        self._tf = tf
        self._variables = {name: tf.Variable(array) for name, array in states.arrays_only(state).items()}
        self._checkpoint = tf.train.Checkpoint(
            **{name.replace(".", "_"): value for name, value in self._variables.items()}
        )

    @classmethod
    def version(cls) -> str | None:
        cls.package = next((name for name in ("tensorflow-cpu", "tensorflow") if _installed(name)), "tensorflow")
        return super().version()

    def save(self, path: str) -> None:
        os.makedirs(path)
        self._checkpoint.write(os.path.join(path, "state"))
        sync_files(path)

    def start(self, path: str) -> Wait:
        os.makedirs(path)
        options = self._tf.train.CheckpointOptions(enable_async=True)
        self._checkpoint.write(os.path.join(path, "state"), options)

        def wait() -> None:
            self._checkpoint.sync()
            sync_files(path)

        return wait

    def restoring(self, path: str) -> Callable[[], Any]:
        for variable in self._variables.values():
            variable.assign(self._tf.zeros_like(variable))

        def read() -> Any:
            self._checkpoint.read(os.path.join(path, "state")).assert_consumed()
            return [variable.numpy() for variable in self._variables.values()]

        return read


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class _Torch(Contender):
    package = "torch"
    module = "torch"

    def __init__(self, state: states.State) -> None:
        super().__init__(state)
        warnings.filterwarnings("ignore", module="torch")
        self._torch: Any = importlib.import_module("torch")
        self._tensors = {name: self._tensor(array) for name, array in states.arrays_only(state).items()}

    def _tensor(self, array: np.ndarray) -> Any:
        # The library numpy does not know bfloat16, and so torch's conversion does not.
        if array.dtype == ml_dtypes.bfloat16:
            return self._torch.tensor(array.view(np.int16)).view(self._torch.bfloat16)
        return self._torch.tensor(array)

    def _array(self, tensor: Any) -> np.ndarray:
        if tensor.dtype == self._torch.bfloat16:
            return np.asarray(tensor.view(self._torch.int16).numpy()).view(ml_dtypes.bfloat16)
        return np.asarray(tensor.numpy())


class TorchDcp(_Torch):
    """PyTorch's distributed checkpoint in one process, two writer threads."""

    name = "torch-dcp"
    asynchronous = True

    def _dcp(self) -> Any:
        return importlib.import_module("torch.distributed.checkpoint")

    def save(self, path: str) -> None:
        dcp = self._dcp()
        dcp.save(self._tensors, storage_writer=dcp.FileSystemWriter(path, thread_count=_THREADS))

    def start(self, path: str) -> Wait:
        dist: Any = importlib.import_module("torch.distributed")
        dcp = self._dcp()
        # Its asynchronous save needs a process group, also for one process.
        if not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        future: Any = dcp.async_save(self._tensors, storage_writer=dcp.FileSystemWriter(path, thread_count=_THREADS))
        return future.result  # type: ignore[no-any-return]

    def restoring(self, path: str) -> Callable[[], Any]:
        dcp = self._dcp()
        targets = {name: self._torch.zeros_like(tensor) for name, tensor in self._tensors.items()}

        def read() -> Any:
            dcp.load(targets, checkpoint_id=path)
            return [self._array(tensor) for tensor in targets.values()]

        return read


class TorchSave(_Torch):
    """`torch.save` and `torch.load`."""

    name = "torch-save"

    def save(self, path: str) -> None:
        self._torch.save(self._tensors, path)
        sync_files(path)

    def restore(self, path: str) -> Any:
        return [self._array(tensor) for tensor in self._torch.load(path, weights_only=True).values()]


class SafeTensors(Contender):
    """`safetensors.flax`."""

    name = "safetensors"
    package = "safetensors"

    def save(self, path: str) -> None:
        arrays = dict(zip(states.arrays_only(self.state), map(_for_jax, jax.tree.leaves(self.state)), strict=True))
        importlib.import_module("safetensors.flax").save_file(arrays, path)
        sync_files(path)

    def restore(self, path: str) -> Any:
        restored = importlib.import_module("safetensors.flax").load_file(path)
        return jax.block_until_ready([restored[name] for name in states.arrays_only(self.state)])


def _for_jax(leaf: Any) -> Any:
    """Returns a leaf as it is if it is an array of numbers on a device."""
    is_key = isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if isinstance(leaf, jax.Array) and not is_key else states.plain(leaf)
