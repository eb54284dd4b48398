"""Times in the API's form."""

import pytest

from runtime.clock import format_us, parse_time_us


@pytest.mark.parametrize(
    "text",
    ["2015-05-12T15:50:38Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "1969-12-31T23:59:59Z"],
)
def test_a_time_comes_back_as_it_was_given(text: str):
    assert format_us(parse_time_us(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2015-5-12T15:50:38Z",
        "２０15-05-12T15:50:38Z",
        "2015-02-30T00:00:00Z",
        "2015-05-12T15:50:38+00:00",
    ],
)
def test_other_forms_are_refused(text: str):
    with pytest.raises(ValueError, match=r"time|day|data"):
        parse_time_us(text)
