"""JSON that remembers where things stand: the messages of serde_json end in ``at line L column C``.

The column is the number of bytes read of that line. Texts of syntax errors are those of serde_json's documentation.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 127
_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS = {b"true": True, b"false": False, b"null": None}


class JsonError(Exception):
    """What is wrong, and how many bytes were read by then."""

    def __init__(self, message: str, end: int) -> None:
        super().__init__(message)
        self.message = message
        self.end = end

    def placed(self, text: bytes) -> str:
        """The message with its place in ``text``."""
        before = text[: self.end]
        line, column = before.count(b"\n") + 1, self.end - before.rfind(b"\n") - 1
        return f"{self.message} at line {line} column {column}"


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it ended. A map's value is a list of (key, end of the key, node), a sequence's a list of nodes."""

    value: Any
    end: int
    kind: str  # map, sequence, string, integer, floating point, boolean, null

    @property
    def shown(self) -> str:
        """As serde names an unexpected value."""
        match self.kind:
            case "string":
                return f"string {json.dumps(self.value, ensure_ascii=False)}"
            case "boolean":
                return f"boolean `{str(self.value).lower()}`"
            case "integer" | "floating point":
                return f"{self.kind} `{self.value}`"
        return self.kind

    @property
    def plain(self) -> Any:
        """The value as `json.loads` has it."""
        if self.kind == "map":
            return {key: node.plain for key, _, node in self.value}
        if self.kind == "sequence":
            return [node.plain for node in self.value]
        return self.value


def parse(text: bytes) -> Node:
    """The one value in ``text``; JsonError."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise JsonError("invalid unicode code point", error.start) from error
    node = _Reader(text).value(0, 0)
    rest = _skip(text, node.end)
    if rest < len(text):
        raise JsonError("trailing characters", rest + 1)
    return node


def _skip(text: bytes, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing too


class _Reader:
    def __init__(self, text: bytes) -> None:
        self._text = text

    def value(self, at: int, depth: int) -> Node:
        at = _skip(self._text, at)
        match self._text[at : at + 1]:
            case b"":
                raise JsonError("EOF while parsing a value", at)
            case b"{" | b"[" if depth > MAX_DEPTH:
                raise JsonError("recursion limit exceeded", at + 1)
            case b"{":
                return self._map(at + 1, depth + 1)
            case b"[":
                return self._sequence(at + 1, depth + 1)
            case b'"':
                text, end = self._string(at)
                return Node(text, end, "string")
        return self._scalar(at)

    def _scalar(self, at: int) -> Node:
        for word, value in _WORDS.items():
            if self._text.startswith(word, at):
                kind = "null" if value is None else "boolean"
                return Node(value, at + len(word), kind)
        number = _NUMBER.match(self._text, at)
        if number is None:
            raise JsonError("expected value", at + 1)
        if number[1] or number[2]:
            return Node(float(number[0]), number.end(), "floating point")
        return Node(int(number[0]), number.end(), "integer")

    def _string(self, at: int) -> tuple[str, int]:
        found = _STRING.match(self._text, at)
        if found is not None:
            return json.loads(found[0]), found.end()
        if b'"' not in self._text[at + 1 :]:
            raise JsonError("EOF while parsing a string", len(self._text))
        control = re.search(rb"[\x00-\x1f]", self._text[at:])
        if control is not None:
            raise JsonError(
                "control character (\\u0000-\\u001F) found while parsing a string",
                at + control.end(),
            )
        raise JsonError("invalid escape", at + self._text[at:].find(b"\\") + 2)

    def _map(self, at: int, depth: int) -> Node:
        entries: list[tuple[str, int, Node]] = []
        while (at := self._next(at, b"}", "an object", first=not entries)) >= 0:
            if self._text[at : at + 1] != b'"':
                raise JsonError("key must be a string", at + 1)
            key, key_end = self._string(at)
            colon = _skip(self._text, key_end)
            if self._text[colon : colon + 1] != b":":
                self._bad(colon, "expected `:`", "an object")
            node = self.value(colon + 1, depth)
            entries.append((key, key_end, node))
            at = node.end
        return Node(entries, -at - 1, "map")

    def _sequence(self, at: int, depth: int) -> Node:
        items: list[Node] = []
        while (at := self._next(at, b"]", "a list", first=not items)) >= 0:
            items.append(self.value(at, depth))
            at = items[-1].end
        return Node(items, -at - 1, "sequence")

    def _next(self, at: int, closing: bytes, what: str, *, first: bool) -> int:
        """Where the next entry begins, or the end of the whole as ``-end - 1``."""
        at = _skip(self._text, at)
        mark = self._text[at : at + 1]
        if mark == closing:
            return -(at + 1) - 1
        if first:
            return at if mark else self._bad(at, "", what)
        if mark != b",":
            self._bad(at, f"expected `,` or `{closing.decode()}`", what)
        at = _skip(self._text, at + 1)
        if self._text[at : at + 1] == closing:
            raise JsonError("trailing comma", at + 1)
        return at

    def _bad(self, at: int, message: str, what: str) -> int:
        if at >= len(self._text):
            raise JsonError(f"EOF while parsing {what}", at)
        raise JsonError(message, at + 1)
