"""The server's process: connections, workers, looks, reaping, and what is told of it."""
