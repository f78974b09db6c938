"""JSON as serde_json reads it: from left to right, so that the first thing that is wrong is the one that is said, with its place.

A text that breaks off or goes wrong is still a tree up to there; the rest is a broken `Node`, which raises when it is looked at. The column
in ``at line L column C`` is the number of bytes read of that line.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_DEPTH = 127
_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS = {b"t": (b"true", True), b"f": (b"false", False), b"n": (b"null", None)}
_DIGITS = b"0123456789"


class JsonError(Exception):
    """What is wrong, and how many bytes were read by then. ``late``: serde looks for the place only after the whole member."""

    def __init__(self, message: str, end: int, *, late: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.end = end
        self.late = late

    def placed(self, text: bytes) -> str:
        """The message with its place in ``text``."""
        before = text[: self.end]
        line, column = before.count(b"\n") + 1, self.end - before.rfind(b"\n") - 1
        return f"{self.message} at line {line} column {column}"


@dataclass(frozen=True, slots=True)
class Member:
    """A key and its value in a map; the places are where serde stands when either turns out to be wrong."""

    key: str
    key_after: int
    node: Node
    after: int


@dataclass(frozen=True, slots=True)
class Node:
    """A value, and the bytes from ``start`` to ``end`` that it stands in. A map's value is a list of `Member`, a sequence's of `Node`,
    a broken one's the JsonError.
    """

    kind: str  # map, sequence, string, integer, floating point, boolean, null, broken
    value: Any
    start: int
    end: int

    def sound(self) -> Node:
        """Itself; JsonError if it is broken."""
        if self.kind == "broken":
            raise self.value
        return self

    @property
    def shown(self) -> str:
        """As serde names an unexpected value."""
        if self.kind == "string":
            return f"string {json.dumps(self.value, ensure_ascii=False)}"
        if self.kind == "boolean":
            return f"boolean `{str(self.value).lower()}`"
        if self.kind in {"integer", "floating point"}:
            return f"{self.kind} `{self.value}`"
        return self.kind

    def unexpected(self, expected: str) -> JsonError:
        """An error for a value of the wrong type; of a map or a sequence serde has then read nothing."""
        place = self.start if self.kind in {"map", "sequence"} else self.end
        return JsonError(f"invalid type: {self.shown}, expected {expected}", place)

    @property
    def plain(self) -> Any:
        """The value as `json.loads` has it; JsonError."""
        self.sound()
        if self.kind == "map":
            return {member.key: member.node.plain for member in self.value}
        if self.kind == "sequence":
            return [node.plain for node in self.value]
        return self.value


def parse(text: bytes) -> Node:
    """The one value in ``text``, which may be broken; `finish` looks at what follows it."""
    return _Reader(text).value(0, 0)


def finish(text: bytes, node: Node) -> None:
    """Nothing but blanks may follow the value; JsonError."""
    rest = _skip(text, node.end)
    if rest < len(text):
        raise JsonError("trailing characters", rest + 1)


def loads(text: bytes) -> Any:
    """The plain value of a whole text; JsonError."""
    node = parse(text)
    value = node.plain
    finish(text, node)
    return value


def _skip(text: bytes, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing too


class _Reader:
    def __init__(self, text: bytes) -> None:
        self._text = text

    def value(self, at: int, depth: int) -> Node:
        """The value that begins here or after blanks; never raises."""
        start = _skip(self._text, at)
        try:
            return self._value(start, depth)
        except JsonError as error:
            return Node("broken", error, start, error.end)

    def _value(self, at: int, depth: int) -> Node:
        first = self._text[at : at + 1]
        if not first:
            raise JsonError("EOF while parsing a value", at)
        if first in b"{[" and depth > MAX_DEPTH:
            raise JsonError("recursion limit exceeded", at + 1)
        if first == b"{":
            return self._map(at, depth + 1)
        if first == b"[":
            return self._sequence(at, depth + 1)
        if first == b'"':
            text, end = self._string(at)
            return Node("string", text, at, end)
        if first in _WORDS:
            return self._word(at, *_WORDS[first])
        if first in b"-" + _DIGITS:
            return self._number(at)
        raise JsonError("expected value", at + 1)

    def _word(self, at: int, word: bytes, value: bool | None) -> Node:
        for place, letter in enumerate(word, at):
            if place >= len(self._text):
                raise JsonError("EOF while parsing a value", place)
            if self._text[place] != letter:
                raise JsonError("expected ident", place + 1)
        return Node("null" if value is None else "boolean", value, at, at + len(word))

    def _number(self, at: int) -> Node:
        found = _NUMBER.match(self._text, at)
        if found is None:
            self._bad_number(at + 1)
        end = found.end()
        rest = self._text[end : end + 1]
        if rest and (rest in b".eE" or (found[0].lstrip(b"-") == b"0" and rest in _DIGITS)):
            self._bad_number(end)
        number: Any = float(found[0]) if found[1] or found[2] else int(found[0])
        if not -(1 << 63) <= number < 1 << 64:  # serde_json goes on with a float
            number = float(number)
        kind = "floating point" if isinstance(number, float) else "integer"
        return Node(kind, number, at, end)

    def _bad_number(self, at: int) -> NoReturn:
        """After a sign, a point or an exponent a digit is missing, or a zero is followed by one."""
        while self._text[at : at + 1] and self._text[at : at + 1] in b".eE+-":
            at += 1
        if at >= len(self._text):
            raise JsonError("EOF while parsing a value", at)
        raise JsonError("invalid number", at + 1)

    def _string(self, at: int) -> tuple[str, int]:
        found = _STRING.match(self._text, at)
        if found is not None:
            try:
                return json.loads(found[0]), found.end()
            except UnicodeDecodeError as error:
                raise JsonError("invalid unicode code point", at + error.start) from error
        place = at + 1
        while (letter := self._text[place : place + 1]) and letter != b'"':
            if letter < b" ":
                message = "control character (\\u0000-\\u001F) found while parsing a string"
                raise JsonError(message, place + 1)
            if letter == b"\\" and not re.match(
                rb'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})', self._text[place:]
            ):
                if len(self._text) <= place + 1:
                    break
                raise JsonError("invalid escape", place + 2)
            place += 2 if letter == b"\\" else 1
        raise JsonError("EOF while parsing a string", len(self._text))

    def _map(self, start: int, depth: int) -> Node:
        members: list[Member] = []
        at = start + 1
        try:
            while (at := self._next(at, b"}", "an object", first=not members)) >= 0:
                key, key_end = self._key(at)
                node = self._after_colon(key_end, depth)
                members.append(Member(key, self._after(key_end), node, self._after(node.end)))
                if node.kind == "broken":
                    return Node("map", members, start, node.end)
                at = node.end
        except JsonError as error:
            broken = Node("broken", error, error.end, error.end)
            return Node(
                "map", [*members, Member("", error.end, broken, error.end)], start, error.end
            )
        return Node("map", members, start, -at - 1)

    def _key(self, at: int) -> tuple[str, int]:
        if self._text[at : at + 1] != b'"':
            raise JsonError("key must be a string", at + 1)
        return self._string(at)

    def _after_colon(self, key_end: int, depth: int) -> Node:
        at = _skip(self._text, key_end)
        if self._text[at : at + 1] == b":":
            return self.value(at + 1, depth)
        error = self._wrong(at, "expected `:`", "an object")
        return Node("broken", error, at, error.end)

    def _after(self, end: int) -> int:
        """Where serde_json stands after it has tried to close the map."""
        at = _skip(self._text, end)
        return at + 1 if self._text[at : at + 1] == b"}" else at

    def _sequence(self, start: int, depth: int) -> Node:
        items: list[Node] = []
        at = start + 1
        try:
            while (at := self._next(at, b"]", "a list", first=not items)) >= 0:
                items.append(self.value(at, depth))
                at = items[-1].end
                if items[-1].kind == "broken":
                    return Node("sequence", items, start, at)
        except JsonError as error:
            broken = Node("broken", error, error.end, error.end)
            return Node("sequence", [*items, broken], start, error.end)
        return Node("sequence", items, start, -at - 1)

    def _next(self, at: int, closing: bytes, what: str, *, first: bool) -> int:
        """Where the next entry begins, or the end of the whole as ``-end - 1``."""
        at = _skip(self._text, at)
        mark = self._text[at : at + 1]
        if mark == closing:
            return -(at + 1) - 1
        if first and mark:
            return at
        if mark != b",":
            raise self._wrong(at, f"expected `,` or `{closing.decode()}`", what)
        at = _skip(self._text, at + 1)
        if self._text[at : at + 1] == closing:
            raise JsonError("trailing comma", at + 1)
        if at >= len(self._text):
            raise JsonError("EOF while parsing a value", at)
        return at

    def _wrong(self, at: int, message: str, what: str) -> JsonError:
        if at >= len(self._text):
            return JsonError(f"EOF while parsing {what}", at)
        return JsonError(message, at + 1)
