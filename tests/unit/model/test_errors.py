"""Errors as data, there and back."""

import pytest

from banger.model import errors
from banger.model.errors import BangerError, HostLacksError, RefusedError, from_code


class PickyError(RefusedError):
    """One that a code and words do not make."""

    def __init__(self, number):
        super().__init__(f"number {number}")


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BangerError) and kind is not errors.CommandFailedError],
)  # fmt: skip
def test_every_error_comes_back_as_the_class_it_was(kind):
    error = from_code(kind.code, "what", detail="detail", hint="hint")
    assert type(error) is kind
    assert (error.what, error.detail, error.hint) == ("what", "detail", "hint")


def test_a_special_error_comes_back_as_the_class_that_states_its_code():
    assert type(from_code(PickyError(3).code, "number 3")) is RefusedError


def test_a_code_that_nobody_knows_is_a_failure():
    assert type(from_code("odd", "what")) is BangerError


def test_a_command_that_failed_comes_back_in_words():
    assert type(from_code("command-failed", "x ended with status 1")) is BangerError
    assert HostLacksError.exit_status == 5
