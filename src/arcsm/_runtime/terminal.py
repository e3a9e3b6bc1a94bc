"""Text of unknown origin, such as names of columns and files, made safe to print."""

import re

#: Control characters, which terminals obey, marks that reorder text, and parts of names that are not UTF-8.
_UNSAFE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """Return a text as one line, with escape sequences in place of characters that would change the terminal.

    Example:
        >>> printable("price\\x1b[2J")
        'price\\\\x1b[2J'
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))
