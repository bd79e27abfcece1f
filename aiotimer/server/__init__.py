"""The server's process: connections, workers, looks, reaping, and the reports of it."""
