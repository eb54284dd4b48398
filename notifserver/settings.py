"""The notifserver's settings."""

from pathlib import Path

from pydantic import Field

from runtime.settings import ServerSettings, UrlList


class NotifserverSettings(ServerSettings):
    """Names carry the prefix SHARDBOX_."""

    metaserver_urls: UrlList = Field(min_length=1)
    cursor_keys_file: Path
    """Key ring of the cursors; any of its keys verifies."""
    max_polls: int = Field(default=20_000, ge=1)
    """Polls held at once. One is 17 kB as long as a coroutine and a stream hold it: 340 MB."""
    max_polls_per_account: int = Field(default=200, ge=1)
    """One poll per device and some that their clients have forgotten."""
