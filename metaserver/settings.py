"""Settings of a metaserver."""

from pathlib import Path

from pydantic import Field

from runtime.bodies import BODY_MEMORY_BYTES
from runtime.settings import UrlList, VerifyingSettings


class MetaserverSettings(VerifyingSettings):
    """Environment variables SHARDBOX_…; the URLs are what clients are told."""

    directory_dsn: str
    """The directory, without a password: libpq finds that by PGPASSFILE."""
    token_keys_file: Path
    """Private JSON Web Key Set of the access tokens; the first key signs."""
    cursor_keys_file: Path
    """Key ring of the cursors; the first key signs."""
    body_memory_bytes: int = Field(default=BODY_MEMORY_BYTES, ge=201 * 2**20)
    """Request bodies held at once. The largest, 150 MiB, must fit into an account's three quarters of it."""
    quota_bytes: int | None = Field(default=None, ge=0)
    """What the live files of an account may come to, unless it has a quota of its own; None: no limit."""
    map_file: Path | None = None
    """Where the last shard map is kept, for a start without the directory."""
    metaserver_urls: UrlList = Field(default_factory=list)
    blockserver_urls: UrlList = Field(default_factory=list)
    blockserver_internal_urls: UrlList = Field(default_factory=list)
    """Where this server reaches them for upload targets; none: at `blockserver_urls`."""
    notifserver_urls: UrlList = Field(default_factory=list)
    """Also told of every commit."""
    public_url: str | None = None
    """Of a balancer in front of all servers; clients are told it instead of the servers' own addresses."""

    def told(self, urls: list[str]) -> list[str]:
        """What clients are told of servers at these addresses."""
        return urls if self.public_url is None else [self.public_url]
