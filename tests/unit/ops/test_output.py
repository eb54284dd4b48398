"""Tables for people."""

import pytest

from ops.output import print_table


@pytest.mark.parametrize("name", ["[/b]Ann", "Ann [b]", ":smile:"])
def test_a_name_that_looks_like_markup_is_shown_as_it_is(name: str, capsys: pytest.CaptureFixture[str]):
    print_table(["name", "quota"], [(name, None)])
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in shown] == ["name", name]
    assert shown[1].rstrip().endswith("–")
