"""`python -m client`: the same as `shardbox`."""

from client.cli import main

main()
