"""Errors about arguments: their text, and the reason that they carry for callers with words of their own."""

import copy
import pickle

import pytest

from jaxckpt._lib.arguments import Refusal, mismatch, refusal, refusal_of


def test_a_refusal() -> None:
    error = refusal(ValueError, "device='x: y'", "cannot parse 'x: y'", expected="a word; expected or not")
    assert type(error) is ValueError
    assert str(error) == "device='x: y': cannot parse 'x: y'; expected a word; expected or not."
    assert refusal_of(error) == Refusal("cannot parse 'x: y'", says_expected=False)
    assert str(refusal(TypeError, "device", "no")) == "device: no."


def test_a_mismatch() -> None:
    error = mismatch(TypeError, "seconds", "a number of seconds", "'expected 3'")
    assert type(error) is TypeError
    assert str(error) == "seconds: expected a number of seconds, got 'expected 3'."
    assert refusal_of(error) == Refusal("expected a number of seconds, got 'expected 3'", says_expected=True)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_the_reason_stays_with_its_error(again: object) -> None:
    error = mismatch(ValueError, "size", "a positive int", "0")
    assert callable(again)
    assert refusal_of(again(error)) == refusal_of(error)


def test_an_error_of_another_origin_is_its_whole_text() -> None:
    assert refusal_of(ValueError("size: expected more.")) == Refusal("size: expected more", says_expected=False)
