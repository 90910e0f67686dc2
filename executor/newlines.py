"""Line ends as Python's own reader of source text makes them."""


def plain_newlines(text: str) -> str:
    """`text` with a line feed for each carriage return, and for each pair of both."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
