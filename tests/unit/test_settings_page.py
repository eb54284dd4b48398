"""docs/settings.md against the settings classes."""

import re
from pathlib import Path

from blockserver.settings import BlockserverSettings
from metaserver.settings import MetaserverSettings
from notifserver.settings import NotifserverSettings
from runtime.settings import ServerSettings

PAGE = (Path(__file__).parents[2] / "docs/settings.md").read_text()
SERVERS = {
    "metaserver": MetaserverSettings,
    "blockserver": BlockserverSettings,
    "notifserver": NotifserverSettings,
}


def test_the_page_names_each_setting_of_each_server():
    rows = re.findall(r"^\| `SHARDBOX_(\w+)` \| ([\w, ]+) \|", PAGE, re.MULTILINE)
    told = {
        (server, name.lower())
        for name, servers in rows
        for server in (SERVERS if servers == "all" else servers.split(", "))
    }
    there = {(server, field) for server, cls in SERVERS.items() for field in cls.model_fields}
    assert told == there
    assert all(("metaserver", field) in told for field in ServerSettings.model_fields)


def test_the_page_has_the_default_of_each_setting():
    rows = dict(re.findall(r"^\| `SHARDBOX_(\w+)` \| [\w, ]+ \| (.*?) \|", PAGE, re.MULTILINE))
    compared = 0
    for cls in SERVERS.values():
        for name, field in cls.model_fields.items():
            told = value_of(rows[name.upper()])
            if told == "–" or isinstance(told, int) or isinstance(field.default, int | float):
                assert (told == "–") == field.is_required(), name
                assert field.is_required() or told == field.default, name
                compared += 1
    assert compared > 30


def value_of(default: str) -> str | int | bool:
    """What a cell says; a sentence stays one."""
    text = default.strip("`").replace(",", "").removesuffix(" MiB")
    if text in ("true", "false"):
        return text == "true"
    return int(text) * (2**20 if default.endswith(" MiB") else 1) if text.isdigit() else text
