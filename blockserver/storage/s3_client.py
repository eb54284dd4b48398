"""A client of an S3 store: its time-outs, and credentials that may change while it runs."""

import configparser
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import CredentialProvider, RefreshableCredentials

from wire.errors import UpstreamUnavailable

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 2.0
"""A store on the same network that takes no connection within two seconds is not there. (The same time is
given to each piece of a body to leave.)"""
READ_TIMEOUT_S = 6.0
"""The longest silence. What a store acknowledges it has written to its disks, mostly within 0.1 s."""
TRIES = 2
"""One more after a connection that broke or a SlowDown, within a second. Whoever asked can try again."""
DEADLINE_S = 15.0
"""The longest that one operation takes: two tries of a store that takes connections and never answers are
13 s. A store that is too slow to move 4 MiB in this time is as good as none."""
CREDENTIALS_REREAD_S = 10
"""A credentials file that has been replaced is in use after ten seconds."""

Addressing = Literal["auto", "path", "virtual"]


@dataclass(frozen=True, slots=True)
class S3Options:
    """Which bucket, and how it is reached."""

    bucket: str
    prefix: str = ""
    """Put before every key; mostly ends with a slash."""
    region: str = "us-east-1"
    endpoint_url: str | None = None
    """None: Amazon's of the region."""
    public_endpoint_url: str | None = None
    """What addresses for clients are made with; None: the same."""
    addressing: Addressing = "auto"
    credentials_file: Path | None = None
    """In the form of ~/.aws/credentials, profile default; None: boto3's own chain."""
    is_direct: bool = True
    """Whether clients reach the store, and may be given addresses of it."""
    is_verifying: bool = False
    """Whether the store refuses bytes that do not have the checksum sent with them."""


def make_client(options: S3Options, endpoint_url: str | None, *, max_connections: int) -> "S3Client":
    """A client for any number of threads. Nothing is sent yet."""
    # At debug level these write whole requests, with their signatures, into the log.
    for name in ("boto3", "botocore", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    session = botocore.session.get_session()
    if options.credentials_file is not None:
        chain = session.get_component("credential_provider")
        chain.insert_before("env", CredentialsFile(options.credentials_file))
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": TRIES},
        max_pool_connections=max_connections,
        signature_version="s3v4",
        s3={"addressing_style": options.addressing, "payload_signing_enabled": True},
        # We send SHA-256 where it is of use. boto3's own default, a CRC in a trailer, many stores refuse.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    here = boto3.session.Session(botocore_session=session, region_name=options.region)
    # The stubs know other services too, whose types are not installed.
    return here.client("s3", endpoint_url=endpoint_url, config=config)  # pyright: ignore[reportUnknownMemberType]


class CredentialsFile(CredentialProvider):
    """Credentials of a file that is read anew all the time, so that they can be rotated under a server."""

    METHOD = "shardbox-credentials-file"

    def __init__(self, path: Path):
        super().__init__()
        self._path = path

    def load(self) -> RefreshableCredentials:
        """What the file says now."""
        return RefreshableCredentials.create_from_metadata(
            metadata=self._read(),
            refresh_using=self._read,
            method=self.METHOD,
            advisory_timeout=CREDENTIALS_REREAD_S,
            mandatory_timeout=CREDENTIALS_REREAD_S // 2,
        )

    def _read(self) -> dict[str, str | None]:
        try:
            parser = configparser.ConfigParser(interpolation=None)
            parser.read_string(self._path.read_text())
            profile = parser["default"]
            expires_at = datetime.now(UTC) + timedelta(seconds=2 * CREDENTIALS_REREAD_S)
            return {
                "access_key": profile["aws_access_key_id"],
                "secret_key": profile["aws_secret_access_key"],
                # An empty one would be written into every address.
                "token": profile.get("aws_session_token") or None,
                "expiry_time": expires_at.isoformat(),
            }
        except (OSError, ValueError, KeyError, configparser.Error) as error:
            # Not the cause itself: a parser's message quotes the line.
            raise UpstreamUnavailable(
                f"the credentials file cannot be used: {type(error).__name__}"
            ) from None
