"""Settings that every server has, read from the environment (twelve-factor)."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, IPvAnyNetwork, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from runtime.oidc import DEFAULT_LEEWAY_S
from runtime.rates import BURST_PER_ACCOUNT, REQUESTS_PER_ACCOUNT_S, RateLimiter, Rates
from wire.keys import KeyRing

PREFIX = "SHARDBOX_"
"""Of the variables' names."""


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


UrlList = Annotated[list[str], NoDecode, BeforeValidator(_split)]
"""Comma-separated base URLs."""


NetworkList = Annotated[list[IPvAnyNetwork], NoDecode, BeforeValidator(_split)]
"""Comma-separated addresses and networks (CIDR)."""


LogLevel = Annotated[
    Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(lambda text: str(text).lower())
]


class ServerSettings(BaseSettings):
    """The part that is alike in all servers; each adds its own fields. Names carry the prefix SHARDBOX_."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    listen_host: str = "127.0.0.1"
    listen_port: int = Field(ge=0, le=65_535)
    log_level: LogLevel = "info"
    service_keys_file: Path
    """Key ring of the credentials that servers show one another."""
    drain_s: float = Field(default=10.0, ge=0, le=600)
    """How long requests under way may go on after SIGTERM. Ten seconds cover a commit with a slow shard."""
    drain_notice_s: float = Field(default=0.0, ge=0, le=600)
    """How long a server goes on accepting after SIGTERM while /readyz says that it is going: a balancer in
    front must have noticed before connections are refused."""
    header_timeout_s: float = Field(default=75.0, gt=0, le=3_600)
    """How long a connection may take to send the head of its next request. Beyond the 60 s that proxies keep
    an idle connection, so that it is they who close it; a poll that is held has sent its head."""
    body_timeout_s: float = Field(default=120.0, gt=0, le=3_600)
    """How long a body may take: 150 MiB at 10 Mbit/s. A slower sender sends smaller bodies."""
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    """PEM: the chain and its key. With neither, TLS ends in front of the servers."""
    ca_file: Path | None = None
    """PEM certificates that other servers are verified by, instead of the system's."""
    trusted_proxies: NetworkList = Field(default_factory=list)
    """Whose X-Forwarded-For is believed."""

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("a certificate and its key come together")
        return self


class VerifyingSettings(ServerSettings):
    """The servers that take users' tokens."""

    requests_per_account_s: float = Field(default=REQUESTS_PER_ACCOUNT_S, gt=0)
    request_burst_per_account: int = Field(default=BURST_PER_ACCOUNT, ge=1)
    """How often an account may ask this process: on average, and at once."""
    oidc_issuers_file: Path | None = None
    """Outside issuers whose tokens are taken."""
    token_leeway_s: float = Field(default=DEFAULT_LEEWAY_S, ge=0, le=300)
    """How far an issuer's clock may be from ours."""


def make_rates(settings: VerifyingSettings) -> Rates:
    """The limiters of a process."""
    return Rates(RateLimiter(settings.requests_per_account_s, settings.request_burst_per_account))


def read_ring(path: Path) -> KeyRing:
    """The key ring of a file."""
    return KeyRing.parse(path.read_bytes())
