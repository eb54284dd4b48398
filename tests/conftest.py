"""What every test may ask for; the fixtures themselves lie in tests/support."""

pytest_plugins = [
    "tests.support.run",
    "tests.support.databases",
    "tests.support.dev",
    "tests.support.services",
]
