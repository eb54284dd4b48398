"""Errors: stable codes, each once."""

import re

from wire import errors
from wire.errors import ErrorInfo, ShardboxError, all_errors, error_from_info


def test_codes_are_unique_and_well_formed():
    found = all_errors()  # raises where two classes share one
    classes = [
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, ShardboxError) and cls is not ShardboxError
    ]
    assert sorted(found) == sorted(cls.code for cls in classes)
    for code, cls in found.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*(/[a-z_]+)?", code), code
        assert 400 <= cls.status < 600
        assert "code" in vars(cls), f"{cls.__name__} has no code of its own"


def test_what_can_be_retried():
    for cls in all_errors().values():
        if cls.status in (503, 507):
            assert cls.retryable, cls
        if cls.status in (400, 401, 403, 404):
            assert not cls.retryable, cls


def test_every_error_crosses_the_wire():
    for code, cls in all_errors().items():
        error = cls("why", details={"a": 1})
        back = error_from_info(error.info(), status=cls.status, retry_after_s=3)
        assert type(back) is cls
        assert (back.code, str(back), back.details, back.retry_after_s) == (code, "why", {"a": 1}, 3)


def test_an_unknown_code_keeps_what_it_says():
    info = ErrorInfo(code="from_the_future", message="m", retryable=True, details={})
    error = error_from_info(info, status=418)
    assert (error.code, error.status, error.retryable, str(error)) == ("from_the_future", 418, True, "m")
    assert "from_the_future" not in all_errors()
    assert error.info() == info


def test_an_error_without_words_says_its_own():
    assert str(errors.NotFound()) == "Nothing there that the caller may see."
