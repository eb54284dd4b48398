"""Where a namespace lives: slots, ring, shard map, router, pools, `run_tx` and the ownership fence."""
