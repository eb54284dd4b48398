"""The blockserver's settings."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from runtime.settings import UrlList, VerifyingSettings


class StoreSettings(BaseSettings):
    """Where the blocks are; also for commands that work on the store. Names carry the prefix SHARDBOX_."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(env_prefix="SHARDBOX_", extra="ignore")

    block_store: Literal["folder", "s3"] = "folder"
    block_dir: Path | None = None
    block_min_free_bytes: int = Field(default=256 * 2**20, ge=0)
    """Left free on the blocks' file system: a database or a log on it must not die of our uploads."""
    s3_bucket: str | None = None
    s3_prefix: str = ""
    s3_region: str = "us-east-1"
    s3_endpoint_url: str | None = None
    """None: Amazon's of the region."""
    s3_public_endpoint_url: str | None = None
    """Where clients reach the store, if that differs."""
    s3_addressing: Literal["auto", "path", "virtual"] = "auto"
    s3_credentials_file: Path | None = None
    """None: boto3's own chain (AWS_… variables, ~/.aws, the machine's role)."""
    s3_direct: bool = True
    """Whether clients may be sent to the store itself."""
    s3_verifies_checksums: bool = False
    """Safe as it is: to say so of a store that does not verify would let clients put wrong bytes in place."""

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        needed = "block_dir" if self.block_store == "folder" else "s3_bucket"
        if not getattr(self, needed):
            raise ValueError(f"SHARDBOX_BLOCK_STORE={self.block_store} needs SHARDBOX_{needed.upper()}")
        return self


class BlockserverSettings(VerifyingSettings, StoreSettings):
    """Names carry the prefix SHARDBOX_."""

    metaserver_urls: UrlList = Field(min_length=1)
    token_verify_keys_file: Path
    """Public JSON Web Key Set; without private keys, which only metaservers have."""
    block_upload_memory_bytes: int = Field(default=192 * 2**20, ge=64 * 2**20)
    """Bodies held at once: 48 whole blocks, or 6 full packs. One pack must fit into an account's part."""
    block_download_memory_bytes: int = Field(default=128 * 2**20, ge=40 * 2**20)
    """Blocks held at once on their way out: 32 whole ones, or 7 large packs. One fits into an account's part,
    too."""
    s3_redirects: bool = False
    """Whether `?redirect=1` answers with an address in the store, whose key and Last-Modified tell when the
    block first came in, from whomever."""
    block_url_expires_s: int = Field(default=900, ge=60, le=3_600)
    """Such addresses: a block on a slow line; who loses the right to it keeps one no longer than this."""
