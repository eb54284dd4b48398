"""Moving slots and single namespaces between shards while clients keep syncing (docs/resharding.md)."""
