"""The blockserver's settings."""

from pathlib import Path

from pydantic import Field

from runtime.settings import ServerSettings, UrlList


class BlockserverSettings(ServerSettings):
    """Names carry the prefix SHARDBOX_."""

    metaserver_urls: UrlList = Field(min_length=1)
    token_verify_keys_file: Path
    """Public JSON Web Key Set; without private keys, which only metaservers have."""
    block_dir: Path
    block_min_free_bytes: int = Field(default=256 * 2**20, ge=0)
    """Left free on the blocks' file system: a database or a log on it must not die of our uploads."""
    block_upload_memory_bytes: int = Field(default=192 * 2**20, ge=40 * 2**20)
    """Bodies held at once: 48 whole blocks, or 6 full packs. At least one pack must fit."""
    block_download_memory_bytes: int = Field(default=128 * 2**20, ge=40 * 2**20)
    """Blocks held at once on their way out: 32 whole ones, or 7 large packs."""
