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
