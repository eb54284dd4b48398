"""What every test may ask for; the fixtures themselves lie in tests/support."""

import os

# Nothing here speaks to anybody outside, and reading the machine's certificates takes each process 0.1 s.
os.environ |= {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}

pytest_plugins = [
    "tests.support.run",
    "tests.support.databases",
    "tests.support.dev",
    "tests.support.services",
]
