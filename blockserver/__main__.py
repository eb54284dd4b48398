"""`python -m blockserver`."""

from blockserver.main import main

main()
