"""What lies behind an exception is found, however exceptions are wound about each other."""

from __future__ import annotations

import pytest

from drr2ct.pipeline.running.bundle import find_input_error
from drr2ct.pipeline.running.faults import causes, origin
from drr2ct.transforms.validation import InputError


def test_causes_of_an_exception_that_is_its_own_end() -> None:
    mistake = InputError("the radiograph is missing.")
    mistake.__cause__ = mistake
    assert list(causes(mistake)) == [mistake]
    assert find_input_error(mistake) is mistake


def test_causes_of_a_circle_by_context_end_and_what_lies_beyond_is_found() -> None:
    first, second, beyond = ValueError("a"), RuntimeError("b"), OSError("c")
    first.__cause__, second.__context__ = second, first
    first.__context__ = beyond
    assert list(causes(first)) == [first, second]
    second.__cause__ = first
    second.__context__ = beyond
    assert list(causes(first)) == [first, second, beyond]


def test_a_mistake_found_behind_an_error_keeps_what_it_came_from() -> None:
    with pytest.raises(RuntimeError) as raised:
        try:
            try:
                raise OSError("the disk")
            except OSError as error:
                raise InputError("the file is missing.") from error
        except InputError as error:
            raise RuntimeError("MONAI wraps it") from error
    wrapped = raised.value
    mistake = find_input_error(wrapped)
    assert mistake is not None and isinstance(origin(mistake, wrapped), OSError)
    assert origin(mistake, mistake) is mistake.__cause__, "never itself"
    made = InputError("said of it.")
    assert origin(made, wrapped) is wrapped
