"""The lines of the servers' logs: when, and about which client.

None of our lines has a text, a key or the name of a file.
"""

TIMED = "%(asctime)s "  # before every line
_MOST_HOST = 64  # characters
DATE = "%Y-%m-%d %H:%M:%S"


def shown(address: object) -> str:
    """A client in the log: its host and port, if it has them."""
    match address:
        case (str(host), int(port), *_):
            # A proxy may pass on what a client says of itself.
            printable = "".join(c if c.isprintable() else "?" for c in host[:_MOST_HOST])
            return f"{printable}:{port}"
    return "a local client"
