"""A request to a server that accepts it, and stays silent."""

import http.client
import socket

from aiotimer import expires


def fetch_reward() -> bytes:
    connection = http.client.HTTPConnection(*silent.getsockname())
    connection.request("POST", "/reward")
    return connection.getresponse().read()  # here


silent = socket.create_server(("127.0.0.1", 0))
with expires(after=1):
    fetch_reward()
