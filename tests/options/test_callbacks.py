"""Which write callbacks are accepted, and how they run."""

import functools
import types
import unittest.mock
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxckpt.options.callbacks import check_callbacks, run_callbacks

PATH = "/checkpoints/ckpt-1"


class Recorder:
    """Callables of many kinds that record their arguments."""

    def __init__(self):
        self.calls = []

    def __call__(self, *args):
        self.calls.append(args)

    def path(self, path):
        self.calls.append((path,))

    def nothing(self):
        self.calls.append(())

    def default(self, path="default"):
        self.calls.append((path,))

    def keyword(self, *, option=None):
        self.calls.append(())

    def required_keyword(self, path, *, option):
        raise AssertionError

    def two(self, path, other):
        raise AssertionError

    def two_with_default(self, path, other=1):
        self.calls.append((path,))

    def keywords(self, **options):
        self.calls.append(())


async def coroutine(path):
    raise AssertionError


async def async_generator(path):
    raise AssertionError
    yield


def generator(path):
    raise AssertionError
    yield


@types.coroutine
def old_coroutine(path):
    raise AssertionError
    yield


class AsyncCallable:
    async def __call__(self, path):
        raise AssertionError

    async def method(self):
        raise AssertionError


def two(path, other):
    raise AssertionError


@pytest.mark.parametrize("name", ["path", "default", "two_with_default", "__call__"])
def test_callback_that_can_take_the_path_gets_it(name):
    recorder = Recorder()
    run_callbacks(check_callbacks([getattr(recorder, name)]), PATH)
    assert recorder.calls == [(PATH,)]


@pytest.mark.parametrize("name", ["nothing", "keyword", "keywords"])
def test_callback_that_cannot_take_the_path_gets_nothing(name):
    recorder = Recorder()
    run_callbacks(check_callbacks([getattr(recorder, name)]), PATH)
    assert recorder.calls == [()]


def test_callable_objects_partials_classes_and_mocks():
    recorder, calls = Recorder(), []

    class Callback:
        def __init__(self, path):
            calls.append(path)

    class AsyncInstances:
        def __init__(self, path):
            calls.append(path)

        async def __call__(self, path):
            raise AssertionError

    mock = unittest.mock.MagicMock()
    run_callbacks(
        check_callbacks(
            [
                recorder,
                functools.partial(recorder.two_with_default, other=2),
                functools.partial(recorder, "a"),
                Callback,
                AsyncInstances,
                mock,
            ]
        ),
        PATH,
    )
    assert recorder.calls == [(PATH,), (PATH,), ("a", PATH)]
    assert calls == [PATH, PATH]
    mock.assert_called_once_with(PATH)


def test_partial_that_fills_in_everything_gets_nothing():
    calls = []
    run_callbacks(check_callbacks([functools.partial(lambda path: calls.append(path), "filled in")]), PATH)
    assert calls == ["filled in"]


def test_builtin_without_signature_is_given_the_path():
    calls = []
    run_callbacks(check_callbacks([max, functools.partial(max, "a"), iter, calls.append]), PATH)
    assert calls == [PATH]


@pytest.mark.parametrize("container", [list, tuple, iter, deque, lambda items: (item for item in items)])
def test_any_iterable_is_copied(container):
    recorder = Recorder()
    assert check_callbacks(container([recorder, print])) == (recorder, print)


def test_none_and_empty_are_no_callbacks():
    assert check_callbacks(None) == ()
    assert check_callbacks([]) == ()
    run_callbacks((), PATH)


@pytest.mark.parametrize(
    "value", [print, two, Recorder(), Recorder, unittest.mock.MagicMock(), functools.partial(print)]
)
def test_bare_callable_is_refused(value):
    with pytest.raises(
        TypeError, match=r"experimental_write_callbacks must be a list of callables, got the callable .*; write \["
    ):
        check_callbacks(value)


@pytest.mark.parametrize("value", ["print", b"print", "", 1, 1.5, True, object()])
def test_values_that_are_no_list_are_refused(value):
    with pytest.raises(TypeError, match=f"must be a list of callables or None, got {type(value).__name__}"):
        check_callbacks(value)


@pytest.mark.parametrize("element", [None, "package:function", 1, [print]])
def test_elements_that_are_not_callable_are_refused(element):
    with pytest.raises(TypeError, match=r"experimental_write_callbacks\[1\]: .* must be callable"):
        check_callbacks([print, element])


@pytest.mark.parametrize(
    ("callback", "name"),
    [
        (two, "two"),
        (lambda path, other: None, "<lambda>"),
        (lambda *, path: None, "<lambda>"),
        (Recorder().two, "Recorder.two"),
        (Recorder().required_keyword, "Recorder.required_keyword"),
        # It is not bound: it takes self, so it could be called with the path in its place. Two arguments.
        (Recorder.path, None),
        (functools.partial(two, path=1), "two"),
        (functools.partial(two, 1, 2, 3), "two"),
        (functools.wraps(two)(lambda *args: None), "two"),
    ],
)
def test_callables_of_other_arity_are_refused(callback, name):
    with pytest.raises(ValueError, match=rf"experimental_write_callbacks\[0\]: .*{name or ''}.* 0 or 1 arguments"):
        check_callbacks([callback])


@pytest.mark.parametrize(
    ("callback", "kind"),
    [
        (coroutine, "an async function"),
        (functools.partial(coroutine), "an async function"),
        (functools.partial(functools.partial(coroutine), PATH), "an async function"),
        (AsyncCallable(), "an async function"),
        (functools.partial(AsyncCallable()), "an async function"),
        (AsyncCallable().method, "an async function"),
        (async_generator, "an async generator function"),
        (functools.partial(async_generator), "an async generator function"),
        (generator, "a generator function"),
        (old_coroutine, "a generator function"),
    ],
)
def test_callables_whose_body_would_not_run_are_refused(callback, kind):
    with pytest.raises(ValueError, match=rf"\[0\]: .* is {kind}.* 0 or 1 arguments"):
        check_callbacks([callback])


def test_error_of_the_iterable_is_raised_as_it_is():
    def callbacks():
        yield print
        raise KeyError("from the generator")

    with pytest.raises(KeyError, match="from the generator"):
        check_callbacks(callbacks())


def test_callbacks_run_in_order_and_their_results_are_ignored():
    order = []
    callbacks = [lambda: order.append(0) or "result", lambda path: order.append(1) or 1 / 1, lambda: order.append(2)]
    assert run_callbacks(check_callbacks(callbacks), PATH) is None
    assert order == [0, 1, 2]


def raiser(error, calls=None):
    def callback():
        if calls is not None:
            calls.append(error)
        raise error

    return callback


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_one_error_is_that_very_exception_and_the_others_run(error):
    calls = []
    with pytest.raises(type(error)) as caught:
        run_callbacks(check_callbacks([calls.append, raiser(error), calls.append]), PATH)
    assert caught.value is error
    assert caught.value.__context__ is None
    assert calls == [PATH, PATH]
    assert error.__notes__ == [
        f"(raised by the write callback raiser.<locals>.callback; the checkpoint {PATH} is saved)"
    ]


def test_several_errors_are_a_group():
    calls, errors = [], [ValueError(1), TypeError(2), ValueError(3)]
    with pytest.raises(
        ExceptionGroup, match="3 write callbacks failed; the checkpoint /checkpoints/ckpt-1 is saved"
    ) as caught:
        run_callbacks(check_callbacks([raiser(errors[0]), calls.append, *map(raiser, errors[1:])]), PATH)
    assert list(caught.value.exceptions) == errors
    assert calls == [PATH]


def test_group_with_an_interrupt_is_no_plain_exception():
    with pytest.raises(BaseExceptionGroup) as caught:
        run_callbacks(check_callbacks([raiser(ValueError()), raiser(KeyboardInterrupt())]), PATH)
    assert not isinstance(caught.value, Exception)


def test_error_inside_the_callback_is_not_taken_for_a_wrong_signature():
    calls = []

    def callback(path):
        calls.append(path)
        raise TypeError("missing 1 required positional argument")

    with pytest.raises(TypeError, match="missing 1 required"):
        run_callbacks(check_callbacks([callback]), PATH)
    assert calls == [PATH]


def test_exceptions_that_refuse_notes_still_arrive():
    class FrozenError(Exception):
        def __setattr__(self, name, value):
            raise AttributeError(name)

    error = FrozenError()
    with pytest.raises(FrozenError) as caught:
        run_callbacks(check_callbacks([raiser(error)]), PATH)
    assert caught.value is error


@given(st.integers(0, 3), st.integers(0, 3), st.booleans(), st.integers(0, 2), st.booleans())
def test_arity_decides(required, optional, variadic, keywords, keywords_required):
    names = [f"a{k}" for k in range(required)] + [f"b{k}=None" for k in range(optional)]
    star = ["*rest"] if variadic else ["*"] if keywords else []
    names += star + [f"c{k}" + ("" if keywords_required else "=None") for k in range(keywords)]
    scope = {}
    exec(f"def callback({', '.join(names)}): return locals()", scope)
    callback, calls = scope["callback"], []
    if required > 1 or (keywords and keywords_required):
        with pytest.raises(ValueError, match="0 or 1"):
            check_callbacks([callback])
        return

    @functools.wraps(callback)
    def recording(*args):
        calls.append(args)
        callback(*args)

    run_callbacks(check_callbacks([recording]), PATH)
    assert calls == [(PATH,) if required or optional or variadic else ()]
