"""The running servers held against their own OpenAPI documents."""
