"""The subcommands of `shardctl`, one file for each noun."""
