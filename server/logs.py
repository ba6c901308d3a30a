"""The lines of the servers' logs: when, and about which client.

No line has a text, a key or the name of a file.
"""

TIMED = "%(asctime)s "  # before every line
DATE = "%Y-%m-%d %H:%M:%S"


def shown(address: object) -> str:
    """A client in the log: its host and port, if it has them."""
    match address:
        case (str(host), int(port), *_):
            return f"{host}:{port}"
    return "a local client"
