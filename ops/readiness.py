"""Whether a server of the cluster answers, asked from outside."""

import http.client
from urllib.parse import urlsplit

PROBE_TIMEOUT_S = 2.0


def http_status(url: str, path: str, *, timeout_s: float = PROBE_TIMEOUT_S) -> int | None:
    """The status of a GET; None when there is no answer."""
    # Not urllib: that would ask a proxy of the environment's for 127.0.0.1.
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def http_text(url: str, path: str, *, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
    """The body of a GET that is answered with 200; None when it is not."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        return text if answer.status == http.client.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def is_server_ready(url: str) -> bool:
    """Whether an HTTP server says that it is ready."""
    return http_status(url, "/readyz") == http.client.OK
