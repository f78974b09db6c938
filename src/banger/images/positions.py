"""Where in a TOML text each key and value stands. `tomllib` reads, but does not tell that; this tells, but does not check.

So the text must be TOML that `tomllib` has read. A path is a tuple of keys and, in arrays, indices: ``("services", 0, "port")``.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field

Path = tuple[str | int, ...]
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_PLAIN = re.compile(r"[^,\]}\n#]*")  # numbers, booleans, dates
_STRINGS = (
    re.compile(r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}', re.DOTALL),
    re.compile(r"'''(?:[^']|'(?!''))*'{3,5}", re.DOTALL),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)


@dataclass(slots=True)
class Positions:
    """The index of one text. ``keys`` and ``values`` give offsets; a table is where its header, or its first dotted key, is."""

    text: str
    keys: dict[Path, int] = field(default_factory=dict)
    values: dict[Path, int] = field(default_factory=dict)
    _at: int = 0
    _lengths: dict[Path, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        table: Path = ()
        while self._skip(_BLANK) < len(self.text):
            if self.text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def line_column(self, offset: int) -> tuple[int, int]:
        """Counted from 1, columns in characters."""
        begin = self.text.rfind("\n", 0, offset) + 1
        return self.text.count("\n", 0, offset) + 1, offset - begin + 1

    def find(self, path: Path, *, key: bool = False) -> tuple[int, int]:
        """Line and column of the value at ``path``, or of its ``key``; of the nearest thing around it where there is none."""
        first, second = (self.keys, self.values) if key else (self.values, self.keys)
        for length in range(len(path), 0, -1):
            known = first if length == len(path) else self.keys
            for index in (known, second):
                if path[:length] in index:
                    return self.line_column(index[path[:length]])
        return 1, 1

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self.text, self._at)
        if match is not None:
            self._at = match.end()
        return self._at

    def _take(self, sign: str) -> bool:
        """Whether ``sign`` is next; it is passed then."""
        there = self.text.startswith(sign, self._at)
        self._at += len(sign) if there else 0
        return there

    def _header(self) -> Path:
        start = self._at
        many = self._take("[[")
        if not many:
            self._take("[")
        *outer, last = self._names()
        path: Path = ()
        for name, _ in outer:
            path = self._latest((*path, name))
        path = (*path, last[0])
        self._take("]]" if many else "]")
        if many:
            number = self._lengths.get(path, 0)
            self._lengths[path] = number + 1
            self.keys.setdefault(path, start)
            path = (*path, number)
        self.keys.setdefault(path, start)
        return path

    def _latest(self, path: Path) -> Path:
        return (*path, self._lengths[path] - 1) if path in self._lengths else path

    def _names(self) -> list[tuple[str, int]]:
        """A dotted key: its parts and their offsets."""
        found = []
        while True:
            start = self._skip(_SPACE)
            match = _BARE.match(self.text, start)
            if match is not None:
                self._at, name = match.end(), match[0]
            else:
                self._string()
                name = tomllib.loads(f"x = {self.text[start : self._at]}")["x"]
            found.append((name, start))
            self._skip(_SPACE)
            if not self._take("."):
                return found

    def _pair(self, table: Path) -> None:
        path = table
        for name, start in self._names():
            path = (*path, name)
            self.keys.setdefault(path, start)
        self._take("=")
        self._skip(_SPACE)
        self._value(path)

    def _string(self) -> bool:
        for pattern in _STRINGS:
            match = pattern.match(self.text, self._at)
            if match is not None:
                self._at = match.end()
                return True
        return False

    def _value(self, path: Path) -> None:
        self.values[path] = self._at
        if self._string():
            return
        if self._take("["):
            number = 0
            while self._skip(_BLANK) < len(self.text) and not self._take("]"):
                self._value((*path, number))
                number += 1
                self._skip(_BLANK)
                self._take(",")
        elif self._take("{"):
            while self._skip(_BLANK) < len(self.text) and not self._take("}"):
                self._pair(path)
                self._skip(_BLANK)
                self._take(",")
        else:
            self._skip(_PLAIN)
