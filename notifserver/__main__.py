"""`python -m notifserver`."""

from notifserver.main import main

main()
