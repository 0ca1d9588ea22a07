"""Globs over keys and paths: ``*``, ``?`` and ``[a-z]`` in a name, ``**`` over folders."""

import re

from effnet_batch.errors import ConfigError

_WILDCARD = re.compile(r"[*?\[]")


class Glob:
    """A compiled pattern.

    Attributes:
        root: the folders before the first wildcard, without a slash at the end.
        prefix: all characters before the first wildcard.

    Raises:
        ConfigError: a class of characters that is none, such as ``[z-a]``.
    """

    def __init__(self, pattern: str) -> None:
        wildcard = _WILDCARD.search(pattern)
        self.prefix = pattern[: wildcard.start()] if wildcard else pattern
        self.root = self.prefix.rpartition("/")[0]
        self._literal = pattern
        self._segments = pattern.split("/")
        try:
            self._regex = re.compile(_translate(pattern))
        except re.error as error:  # such as [z-a]
            raise ConfigError(f"{pattern!r} is not a glob: {error}") from None

    def matches(self, name: str) -> bool:
        """Tells whether a file of this name is meant; one spelled like the pattern is."""
        return self._regex.fullmatch(name) is not None or name == self._literal

    def may_hold_matches(self, folder: str) -> bool:
        """Tells whether anything below this folder can match, so that others are not walked."""
        names = folder.split("/")
        for index, name in enumerate(names):
            if index < len(self._segments) and "**" in self._segments[index]:
                return True
            if index >= len(self._segments) - 1:
                return False
            if not re.fullmatch(_translate(self._segments[index]), name):
                return False
        return True


def has_wildcard(text: str) -> bool:
    """Tells whether a text is a glob."""
    return _WILDCARD.search(text) is not None


def _translate(pattern: str) -> str:
    regex, position = [], 0
    while position < len(pattern):
        if pattern.startswith("**/", position) and pattern[position - 1 : position] in ("", "/"):
            regex.append("(?:.*/)?")  # also no folder at all
            position += 3
        elif pattern.startswith("**", position):
            regex.append(".*")
            position += 2
        elif pattern[position] == "*":
            regex.append("[^/]*")
            position += 1
        elif pattern[position] == "?":
            regex.append("[^/]")
            position += 1
        elif (match := re.compile(r"\[(!?)(\]?[^\]/]*)\]").match(pattern, position)) and match[2]:
            inside = re.sub(r"([\\\[\]^&~|])", r"\\\1", match[2])
            # The slash is shut out, or [!a] would cross into another folder.
            regex.append(f"(?!/)[{'^' if match[1] else ''}{inside}]")
            position = match.end()
        else:
            regex.append(re.escape(pattern[position]))
            position += 1
    return "(?s:" + "".join(regex) + ")"
