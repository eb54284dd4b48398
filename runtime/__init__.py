"""How a server process lives: settings, web base, tokens, metrics, logs, start and drain."""
