"""Random histories of a namespace against real PostgreSQL, and for each rule a proof that it is needed."""
