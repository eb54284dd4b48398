"""The drill: a shard's server and then the directory's are lost under commits, and come back."""
