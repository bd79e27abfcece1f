"""The worker's process: blocks, clients, and the connection to a server."""
