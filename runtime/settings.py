"""Settings that every server has, read from the environment (twelve-factor)."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from wire.keys import KeyRing


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


UrlList = Annotated[list[str], NoDecode, BeforeValidator(_split)]
"""Comma-separated base URLs."""


class ServerSettings(BaseSettings):
    """The part that is alike in all servers; each adds its own fields. Names carry the prefix SHARDBOX_."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(env_prefix="SHARDBOX_", extra="ignore")

    listen_host: str = "127.0.0.1"
    listen_port: int = Field(ge=0, le=65_535)
    log_level: str = "info"
    service_keys_file: Path
    """Key ring of the credentials that servers show one another."""
    drain_s: float = Field(default=10.0, ge=0, le=600)
    """How long requests under way may go on after SIGTERM. Ten seconds cover a commit with a slow shard."""


def read_ring(path: Path) -> KeyRing:
    """The key ring of a file."""
    return KeyRing.parse(path.read_bytes())
