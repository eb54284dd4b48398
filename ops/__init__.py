"""`shardctl`: the operators' command, and the embedded development cluster."""
