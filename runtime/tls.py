"""TLS: what the servers show, and what they believe."""

import asyncio
import ssl
from pathlib import Path

from runtime.logs import get_log

_log = get_log(__name__)

CERT_CHECK_S = 10.0
"""How often the certificate's files are looked at: a renewed one is in use within this, without a restart."""


def open_server_context(cert_file: Path, key_file: Path) -> ssl.SSLContext:
    """TLS 1.2 or later with a certificate chain and its key.

    Raises:
        ssl.SSLError, OSError: the files are missing, broken, or not each other's.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert_file, key_file)
    return context


def open_client_context(ca_file: Path | None) -> ssl.SSLContext:
    """Verifies servers by the certificates of a file, or by the system's."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def keep_certificate_fresh(
    context: ssl.SSLContext, cert_file: Path, key_file: Path, *, check_s: float = CERT_CHECK_S
) -> None:
    """Take a replaced certificate into use for new connections; those that are open stay. Never returns."""
    seen = _stamps(cert_file, key_file)
    while True:
        await asyncio.sleep(check_s)
        now = _stamps(cert_file, key_file)
        if now == seen:
            continue
        try:
            # Tried first where a pair that does not fit can do no harm; the live context would be left torn.
            open_server_context(cert_file, key_file)
            context.load_cert_chain(cert_file, key_file)
        except (OSError, ssl.SSLError) as error:
            # The files are written one after the other: the next look may find them fitting.
            _log.warning("certificate_not_reloaded", error=repr(error))
            continue
        seen = now
        _log.info("certificate_reloaded", file=str(cert_file))


def _stamps(*files: Path) -> list[tuple[int, int, int]]:
    """What changes when a file is replaced or written anew."""
    stamps: list[tuple[int, int, int]] = []
    for file in files:
        try:
            found = file.stat()
            stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            stamps.append((0, 0, 0))
    return stamps
