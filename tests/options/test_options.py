"""CheckpointOptions, the sharding policies and OrbaxSettings."""

import copy
import dataclasses
import functools
import inspect
import math
import pickle
import subprocess
import sys
import threading
import warnings

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxckpt.options import CheckpointOptions, MaxShardSizePolicy, OrbaxSettings, ShardByTaskPolicy
from jaxckpt.storage.settings import WriteSettings

NAMES = [
    "experimental_io_device",
    "experimental_enable_async_checkpoint",
    "experimental_write_callbacks",
    "enable_async",
    "experimental_skip_slot_variables",
    "experimental_sharding_callback",
    "orbax",
]


def callback(path):
    """Can be pickled."""


class Callback:
    """A callback that a deep copy copies."""

    def __call__(self, path):
        """Does nothing."""


@pytest.fixture
def deprecated():
    """Allows, and expects, the warning about the deprecated name."""
    with pytest.warns(DeprecationWarning, match="use enable_async"):
        yield


# -- the constructor ---------------------------------------------------------------------------------------------------


def test_signature_is_tensorflows():
    parameters = inspect.signature(CheckpointOptions).parameters
    assert list(parameters) == NAMES
    defaults = [parameter.default for parameter in parameters.values()]
    assert defaults == [None, False, None, False, False, None, None]
    assert parameters["orbax"].kind is inspect.Parameter.KEYWORD_ONLY
    assert {parameter.kind for name, parameter in parameters.items() if name != "orbax"} == {
        inspect.Parameter.POSITIONAL_OR_KEYWORD
    }


def test_defaults():
    options = CheckpointOptions()
    assert [getattr(options, name) for name in NAMES] == [None, False, None, False, False, None, None]


@pytest.mark.usefixtures("deprecated")
def test_positional_order():
    policy = MaxShardSizePolicy(10)
    options = CheckpointOptions("/task:0", False, [callback], True, True, policy)
    assert options.experimental_io_device == "/task:0"
    assert options.experimental_write_callbacks == [callback]
    assert options.enable_async is True
    assert options.experimental_skip_slot_variables is True
    assert options.experimental_sharding_callback is policy


def test_unknown_and_surplus_arguments_are_refused():
    with pytest.raises(TypeError):
        CheckpointOptions(enable_asynch=True)
    with pytest.raises(TypeError):
        CheckpointOptions(None, False, None, False, False, None, OrbaxSettings())


def test_unknown_attributes_are_refused():
    options = CheckpointOptions()
    assert not hasattr(options, "__dict__")
    with pytest.raises(AttributeError):
        options.enable_asynch = True
    with pytest.raises(AttributeError):
        _ = options.enable_asynch
    with pytest.raises(AttributeError):
        del options.enable_async


# -- the two names of enable_async -------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("new", [False, True])
@pytest.mark.usefixtures("deprecated")
def test_either_name_switches_async_on(old, new):
    options = CheckpointOptions(experimental_enable_async_checkpoint=old, enable_async=new)
    assert options.enable_async is (old or new)
    assert options.experimental_enable_async_checkpoint is (old or new)


def test_setting_either_name_sets_both():
    options = CheckpointOptions()
    options.enable_async = True
    assert options.experimental_enable_async_checkpoint is True
    with pytest.warns(DeprecationWarning, match="use enable_async"):
        options.experimental_enable_async_checkpoint = False
    assert options.enable_async is False
    with pytest.warns(DeprecationWarning, match="use enable_async"):
        options.experimental_enable_async_checkpoint = True
    assert options.enable_async is True


class Subclass(CheckpointOptions):
    """Has attributes of its own."""

    def __init__(self, *args, note="", **kwargs):
        super().__init__(*args, **kwargs)
        self.note = note


class Nested(Subclass):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


def assign(value):
    CheckpointOptions().experimental_enable_async_checkpoint = value


USES = {
    "keyword": lambda value: CheckpointOptions(experimental_enable_async_checkpoint=value),
    "position": lambda value: CheckpointOptions(None, value),
    "partial": lambda value: functools.partial(CheckpointOptions, None)(value),
    "setattr": lambda value: setattr(CheckpointOptions(), "experimental_enable_async_checkpoint", value),
    "assignment": assign,
    "subclass": lambda value: Subclass(None, value),
    "subclass of a subclass": lambda value: Nested(experimental_enable_async_checkpoint=value),
}


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_deprecated_name_warns_once_at_the_callers_line(use, value):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use(value)
    (warning,) = caught
    assert warning.category is DeprecationWarning
    assert "enable_async" in str(warning.message)
    code = use.__code__
    line = code.co_firstlineno + (1 if use is assign else 0)
    assert (warning.filename, warning.lineno) == (code.co_filename, line)


def test_constructor_of_options_inside_another_constructor_is_a_caller():
    class Trainer:
        def __init__(self):
            self.options = CheckpointOptions(experimental_enable_async_checkpoint=True)

    with pytest.warns(DeprecationWarning, match="use enable_async") as caught:
        Trainer()
    assert caught[0].lineno == Trainer.__init__.__code__.co_firstlineno + 1


@pytest.mark.slow
def test_default_filter_shows_each_place_once():
    program = (
        "from jaxckpt.options import CheckpointOptions\n"
        "for _ in range(3):\n"
        "    options = CheckpointOptions(experimental_enable_async_checkpoint=True)\n"
        "    options.experimental_enable_async_checkpoint = False\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    shown = [line for line in result.stderr.splitlines() if "DeprecationWarning" in line]
    assert [line.split(" ")[0] for line in shown] == ["<string>:3:", "<string>:4:"]


def test_reading_copying_comparing_and_printing_do_not_warn():
    options = CheckpointOptions(enable_async=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert options.experimental_enable_async_checkpoint is True
        assert copy.copy(options) == copy.deepcopy(options) == pickle.loads(pickle.dumps(options)) == options
        assert eval(repr(options)) == options


# -- validation --------------------------------------------------------------------------------------------------------

NOT_BOOLS = [None, 0, 1, "", "true", 1.0, [], np.True_]
INVALID = [
    *[("enable_async", value, TypeError, "enable_async: expected True or False") for value in NOT_BOOLS],
    *[("experimental_skip_slot_variables", value, TypeError, "expected True or False") for value in NOT_BOOLS],
    ("experimental_io_device", "garbage", ValueError, "experimental_io_device='garbage'"),
    ("experimental_io_device", "", ValueError, "experimental_io_device=''"),
    ("experimental_io_device", b"CPU:0", ValueError, "experimental_io_device"),
    ("experimental_io_device", True, ValueError, "experimental_io_device"),
    ("experimental_io_device", 0.0, ValueError, "experimental_io_device"),
    ("experimental_io_device", -1, ValueError, "experimental_io_device"),
    ("experimental_write_callbacks", callback, TypeError, r"write \[callback\]"),
    ("experimental_write_callbacks", "callback", TypeError, "list of callables"),
    ("experimental_write_callbacks", 1, TypeError, "list of callables"),
    ("experimental_write_callbacks", [None], TypeError, r"\[0\]: .* callable"),
    ("experimental_write_callbacks", [lambda a, b: None], ValueError, "<lambda>.* 0 or 1"),
    ("experimental_sharding_callback", ShardByTaskPolicy, ValueError, r"write ShardByTaskPolicy\(\)"),
    ("experimental_sharding_callback", MaxShardSizePolicy, ValueError, "experimental_sharding_callback"),
    ("experimental_sharding_callback", 1000, ValueError, "experimental_sharding_callback"),
    ("experimental_sharding_callback", callback, ValueError, "experimental_sharding_callback"),
    ("experimental_sharding_callback", False, ValueError, "experimental_sharding_callback"),
    ("orbax", {}, TypeError, "orbax: expected OrbaxSettings"),
    ("orbax", OrbaxSettings, TypeError, "orbax: expected OrbaxSettings"),
    ("orbax", False, TypeError, "orbax: expected OrbaxSettings"),
]


@pytest.mark.parametrize(("name", "value", "kind", "text"), INVALID)
def test_invalid_values_are_refused_at_construction_and_at_assignment(name, value, kind, text):
    with pytest.raises(kind, match=text):
        CheckpointOptions(**{name: value})
    options = CheckpointOptions()
    with pytest.raises(kind, match=text):
        setattr(options, name, value)
    assert options == CheckpointOptions()


@pytest.mark.parametrize("value", NOT_BOOLS)
@pytest.mark.usefixtures("deprecated")
def test_deprecated_flag_must_be_a_bool_too(value):
    with pytest.raises(TypeError, match="experimental_enable_async_checkpoint: expected True or False"):
        CheckpointOptions(experimental_enable_async_checkpoint=value, enable_async=True)
    options = CheckpointOptions()
    with pytest.raises(TypeError, match="experimental_enable_async_checkpoint: expected True or False"):
        options.experimental_enable_async_checkpoint = value
    assert options.enable_async is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # Whether the device exists is checked later.
        ("experimental_io_device", "/job:worker/task:7/device:GPU:3"),
        ("experimental_io_device", 7),
        ("experimental_io_device", None),
        ("enable_async", True),
        ("experimental_skip_slot_variables", True),
        ("experimental_sharding_callback", ShardByTaskPolicy()),
        ("experimental_sharding_callback", MaxShardSizePolicy(1)),
        ("experimental_sharding_callback", None),
        ("orbax", OrbaxSettings(timeout_secs=1)),
        ("orbax", None),
    ],
)
def test_valid_values_are_reported_as_given(name, value):
    assert getattr(CheckpointOptions(**{name: value}), name) == value
    options = CheckpointOptions()
    setattr(options, name, value)
    assert getattr(options, name) == value


# -- callbacks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", [list, tuple, iter, lambda items: (item for item in items)])
def test_callbacks_are_copied_into_a_list(container):
    given_callbacks = [callback, print]
    options = CheckpointOptions(experimental_write_callbacks=container(given_callbacks))
    given_callbacks.clear()
    assert options.experimental_write_callbacks == [callback, print]
    options.experimental_write_callbacks = container([print])
    assert options.experimental_write_callbacks == [print]


def test_list_of_callbacks_can_be_appended_to_as_in_tensorflow():
    options = CheckpointOptions(experimental_write_callbacks=[callback])
    other = copy.copy(options)
    other.experimental_write_callbacks.append(print)
    assert other.experimental_write_callbacks == [callback, print]
    assert options.experimental_write_callbacks == [callback]


# -- comparing, printing, copying, pickling ----------------------------------------------------------------------------


def test_options_are_equal_if_all_values_are():
    def make(**changes):
        arguments = {
            "experimental_io_device": "CPU:0",
            "experimental_write_callbacks": [callback],
            "enable_async": True,
            "experimental_skip_slot_variables": True,
            "experimental_sharding_callback": MaxShardSizePolicy(3),
            "orbax": OrbaxSettings(timeout_secs=3),
        }
        return CheckpointOptions(**{**arguments, **changes})

    assert make() == make()
    for change in (
        {"experimental_io_device": "CPU"},
        {"experimental_write_callbacks": [callback, callback]},
        {"enable_async": False},
        {"experimental_skip_slot_variables": False},
        {"experimental_sharding_callback": MaxShardSizePolicy(4)},
        {"orbax": None},
    ):
        assert make(**change) != make()
    assert make() != "options"
    assert Subclass() != CheckpointOptions()
    with pytest.raises(TypeError, match="unhashable"):
        hash(make())


def test_repr_is_an_expression():
    options = CheckpointOptions("CPU:0", enable_async=True, experimental_sharding_callback=MaxShardSizePolicy(5))
    assert eval(repr(options)) == options
    assert "MaxShardSizePolicy(max_shard_size=5)" in repr(options)
    assert "deprecat" not in repr(options)
    assert "experimental_enable_async_checkpoint" not in repr(options)
    assert repr(Subclass()).startswith("Subclass(")


def test_copy_shares_callbacks_and_deepcopy_copies_them():
    function = Callback()
    options = CheckpointOptions(2, experimental_write_callbacks=[function, callback], orbax=OrbaxSettings())
    shallow, deep = copy.copy(options), copy.deepcopy(options)
    assert shallow == options
    assert shallow.experimental_write_callbacks is not options.experimental_write_callbacks
    assert shallow.experimental_write_callbacks[0] is function
    assert deep.experimental_write_callbacks[0] is not function
    assert isinstance(deep.experimental_write_callbacks[0], Callback)
    assert deep.experimental_write_callbacks[1] is callback
    for other in (shallow, deep):
        other.enable_async = True
        other.experimental_io_device = None
    assert options.enable_async is False
    assert options.experimental_io_device == 2


def test_deepcopy_of_a_callback_that_holds_its_options():
    class Holder:
        def save(self, path):
            """Does nothing."""

    holder = Holder()
    holder.options = CheckpointOptions(experimental_write_callbacks=[holder.save])
    options = copy.deepcopy(holder.options)
    owner = options.experimental_write_callbacks[0].__self__
    assert owner is not holder
    assert owner.options is options


def test_jax_device_is_kept_and_counts_as_its_process():
    device = jax.devices()[3]
    options = CheckpointOptions(device)
    assert options.experimental_io_device is device
    assert options == CheckpointOptions(0) == CheckpointOptions(jax.devices()[0])
    assert copy.copy(options).experimental_io_device is device
    assert copy.deepcopy(options).experimental_io_device is device
    assert copy.deepcopy([options, device][0]).experimental_io_device is device
    loaded = pickle.loads(pickle.dumps(options))
    assert loaded == options
    assert loaded.experimental_io_device == 0


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(protocol):
    options = CheckpointOptions(
        "/task:0",
        experimental_write_callbacks=[callback],
        enable_async=True,
        experimental_sharding_callback=MaxShardSizePolicy(7),
        orbax=OrbaxSettings(compression="zstd"),
    )
    loaded = pickle.loads(pickle.dumps(options, protocol))
    assert loaded == options
    assert loaded.experimental_write_callbacks == [callback]


def test_pickle_of_a_callback_that_cannot_be():
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(CheckpointOptions(experimental_write_callbacks=[lambda: None]))


def test_subclasses_keep_their_attributes():
    options = Subclass(1, enable_async=True, note="mine")
    options.extra = []
    for other in (copy.copy(options), copy.deepcopy(options), pickle.loads(pickle.dumps(options))):
        assert type(other) is Subclass
        assert other == options
        assert (other.note, other.extra, other.enable_async) == ("mine", [], True)
        other.note = "other"
        assert other != options
    assert options.note == "mine"


names = st.sampled_from(["CPU:0", "/job:localhost", "/task:1", 0, 3, None])
policies = st.none() | st.just(ShardByTaskPolicy()) | st.integers(1, 2**40).map(MaxShardSizePolicy)
settings = st.none() | st.builds(
    OrbaxSettings, timeout_secs=st.floats(0.1, 1e6), compression=st.sampled_from([None, "zstd"])
)
callback_lists = st.none() | st.lists(st.sampled_from([callback, print, len]))


@given(names, callback_lists, st.booleans(), st.booleans(), policies, settings)
def test_options_survive_every_way_of_copying(device, callbacks, asynchronous, skip, policy, orbax):
    options = CheckpointOptions(
        device,
        experimental_write_callbacks=callbacks,
        enable_async=asynchronous,
        experimental_skip_slot_variables=skip,
        experimental_sharding_callback=policy,
        orbax=orbax,
    )
    rebuilt = CheckpointOptions()
    for name in NAMES:
        if name != "experimental_enable_async_checkpoint":
            setattr(rebuilt, name, getattr(options, name))
    for other in (copy.copy(options), copy.deepcopy(options), pickle.loads(pickle.dumps(options)), rebuilt):
        assert other == options
        assert repr(other) == repr(options)


@given(st.sampled_from(NAMES), st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary())
def test_any_value_is_taken_or_refused_without_a_change(name, value):
    options = CheckpointOptions()
    before = copy.copy(options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            setattr(options, name, value)
        except (TypeError, ValueError):
            assert options == before
        else:
            assert getattr(options, name) == value


# -- sharding policies -------------------------------------------------------------------------------------------------


def test_policies_compare_hash_and_print():
    assert ShardByTaskPolicy() == ShardByTaskPolicy()
    assert MaxShardSizePolicy(5) == MaxShardSizePolicy(max_shard_size=5) != MaxShardSizePolicy(6)
    assert ShardByTaskPolicy() != MaxShardSizePolicy(5)
    assert len({ShardByTaskPolicy(), ShardByTaskPolicy(), MaxShardSizePolicy(5), MaxShardSizePolicy(5)}) == 2
    assert repr(ShardByTaskPolicy()) == "ShardByTaskPolicy()"
    assert eval(repr(MaxShardSizePolicy(5))) == MaxShardSizePolicy(5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        MaxShardSizePolicy(5).max_shard_size = 6


@pytest.mark.parametrize("size", [True, False, 1.0, "1000", None, b"1", [1], np.float64(1), np.True_])
def test_max_shard_size_of_another_type(size):
    with pytest.raises(TypeError, match=r"max_shard_size: .*int"):
        MaxShardSizePolicy(size)


@pytest.mark.parametrize("size", [0, -1, -(2**70), 2**63])
def test_max_shard_size_out_of_range(size):
    with pytest.raises(ValueError, match=rf"max_shard_size: .*got {size}"):
        MaxShardSizePolicy(size)


def test_max_shard_size_of_numpy_becomes_an_int():
    assert type(MaxShardSizePolicy(np.int32(5)).max_shard_size) is int


# -- OrbaxSettings -----------------------------------------------------------------------------------------------------

SIZES = ["chunk_byte_size", "target_data_file_size", "memory_limit_bytes"]
TIMES = ["timeout_secs", "exit_timeout_secs"]


def test_defaults_are_those_of_the_writer():
    orbax, write = OrbaxSettings(), WriteSettings()
    for name in ("timeout_secs", "compression", *SIZES):
        assert getattr(orbax, name) == getattr(write, name)
    assert orbax.timeout_secs == 1200
    assert orbax.exit_timeout_secs == 600
    assert orbax.compression is None


def test_every_field_is_documented():
    for item in dataclasses.fields(OrbaxSettings):
        assert f"\n  {item.name}: " in inspect.getdoc(OrbaxSettings)


def test_settings_are_frozen_comparable_hashable_and_picklable():
    orbax = OrbaxSettings(timeout_secs=5, compression="zstd")
    assert orbax == OrbaxSettings(compression="zstd", timeout_secs=5.0)
    assert hash(orbax) == hash(dataclasses.replace(orbax))
    assert pickle.loads(pickle.dumps(orbax)) == orbax
    assert eval(repr(orbax)) == orbax
    with pytest.raises(dataclasses.FrozenInstanceError):
        orbax.timeout_secs = 6


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", [True, None, "600", b"1", [1], 1j, np.True_])
def test_seconds_of_another_type(name, value):
    with pytest.raises(TypeError, match=f"{name}: expected a number of seconds, got .*{type(value).__name__}"):
        OrbaxSettings(**{name: value})


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", [0, 0.0, -1, -0.5, math.inf, -math.inf, math.nan, 10**400, threading.TIMEOUT_MAX * 2])
def test_seconds_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected a positive, finite number of seconds"):
        OrbaxSettings(**{name: value})


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [True, 1e6, None, "16MB", np.float32(1)])
def test_sizes_of_another_type(name, value):
    with pytest.raises(TypeError, match=f"{name}: expected a number of bytes as an int, got .*{type(value).__name__}"):
        OrbaxSettings(**{name: value})


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, 2**63])
def test_sizes_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected a number of bytes, at least .* got {value}"):
        OrbaxSettings(**{name: value})


@pytest.mark.parametrize(
    ("value", "kind"),
    [("gzip", ValueError), ("", ValueError), ("ZSTD", ValueError), (True, TypeError), (3, TypeError), ([], TypeError)],
)
def test_unknown_compression(value, kind):
    with pytest.raises(kind, match=r'compression: expected None .* or "zstd"'):
        OrbaxSettings(compression=value)


@pytest.mark.parametrize("value", [0, 1, "yes", "auto", []])
def test_reading_once_is_a_bool_or_none(value):
    with pytest.raises(TypeError, match="read_once_per_job: expected True, False or None"):
        OrbaxSettings(read_once_per_job=value)


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="timeout"):
        OrbaxSettings(timeout=5)
    with pytest.raises(TypeError):
        OrbaxSettings(5)


def test_numbers_of_numpy_become_python_numbers():
    orbax = OrbaxSettings(timeout_secs=np.float32(5), exit_timeout_secs=np.int64(6), chunk_byte_size=np.int64(64))
    assert [type(value) for value in (orbax.timeout_secs, orbax.exit_timeout_secs, orbax.chunk_byte_size)] == [
        float,
        float,
        int,
    ]
    assert orbax == OrbaxSettings(timeout_secs=5, exit_timeout_secs=6, chunk_byte_size=64)


@given(
    st.floats(min_value=0, exclude_min=True, max_value=threading.TIMEOUT_MAX) | st.integers(1, 10**6),
    st.integers(16, 2**63 - 1),
    st.integers(1, 2**63 - 1),
    st.integers(16, 2**63 - 1),
)
def test_every_combination_of_valid_fields_is_valid(seconds, chunk, file, memory):
    orbax = OrbaxSettings(
        timeout_secs=seconds,
        exit_timeout_secs=seconds,
        chunk_byte_size=chunk,
        target_data_file_size=file,
        memory_limit_bytes=memory,
    )
    assert dataclasses.astuple(orbax) == (seconds, seconds, None, chunk, file, memory, None)
