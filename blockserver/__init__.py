"""Blocks in and out of a store. What a caller may do is asked of the metaserver."""
