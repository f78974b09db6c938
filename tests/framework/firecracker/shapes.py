"""What a request's body may look like, and serde's words for what it may not.

A kind reads a `Node` into a plain value or raises JsonError. Fields that the played release does not know yet are unknown to it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tests.framework.firecracker.jsontext import JsonError, Member, Node, finish, parse

Version = tuple[int, ...]


class Kind(Protocol):
    """A type of value."""

    def read(self, node: Node, version: Version) -> Any:
        """The value, or JsonError."""
        ...


class Text:
    """A string."""

    def read(self, node: Node, version: Version) -> str:
        if node.sound().kind != "string":
            raise node.unexpected("a string")
        return node.value


class Flag:
    """A boolean."""

    def read(self, node: Node, version: Version) -> bool:
        if node.sound().kind != "boolean":
            raise node.unexpected("a boolean")
        return node.value


@dataclass(frozen=True, slots=True)
class Whole:
    """An unsigned integer by Rust's name for it, such as ``u8``."""

    name: str

    def read(self, node: Node, version: Version) -> int:
        if node.sound().kind != "integer":
            raise node.unexpected(self.name)
        bits = 64 if self.name == "usize" else int(self.name[1:])
        if not 0 <= node.value < 1 << bits:
            raise JsonError(f"invalid value: {node.shown}, expected {self.name}", node.end)
        return node.value


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of these words; a pair is a word and the release that brought it."""

    words: tuple[str | tuple[str, Version], ...]

    def known(self, version: Version) -> list[str]:
        """The words that the release knows."""
        pairs = [(word, ()) if isinstance(word, str) else word for word in self.words]
        return [word for word, since in pairs if version >= since]

    def read(self, node: Node, version: Version) -> str:
        if node.sound().kind != "string":
            raise JsonError("expected value", node.start + 1)
        known = self.known(version)
        if node.value not in known:
            message = f"unknown variant `{node.value}`, expected {_choice(known)}"
            raise JsonError(message, node.end)
        return node.value


@dataclass(frozen=True, slots=True)
class Checked:
    """A string that ``check`` accepts (it raises ValueError for others)."""

    check: Callable[[str], str]
    refusal: str
    late: bool = True

    def read(self, node: Node, version: Version) -> str:
        text = Text().read(node, version)
        try:
            return self.check(text)
        except ValueError:
            raise JsonError(self.refusal, node.end, late=self.late) from None


@dataclass(frozen=True, slots=True)
class ListOf:
    """A sequence of ``kind``."""

    kind: Kind

    def read(self, node: Node, version: Version) -> list[Any]:
        if node.sound().kind != "sequence":
            raise node.unexpected("a sequence")
        return [self.kind.read(item, version) for item in node.value]


@dataclass(frozen=True, slots=True)
class TextMap:
    """An object with any keys, whose values are strings."""

    def read(self, node: Node, version: Version) -> dict[str, str]:
        if node.sound().kind != "map":
            raise node.unexpected("a map")
        return {member.key: Text().read(member.node, version) for member in node.value}


@dataclass(frozen=True, slots=True)
class Field:
    """A member of a struct. ``nullable``: an Option, for which null is as good as absence; ``default`` stands for absence."""

    name: str
    kind: Kind
    required: bool = False
    nullable: bool = False
    default: Any = None
    since: Version = ()


def need(name: str, kind: Kind) -> Field:
    """A field that must be there."""
    return Field(name, kind, required=True)


def option(name: str, kind: Kind, since: Version = ()) -> Field:
    """A field that may be missing or null."""
    return Field(name, kind, nullable=True, since=since)


def default(name: str, kind: Kind, value: Any, since: Version = ()) -> Field:
    """A field with a value of its own when it is missing; null is no value."""
    return Field(name, kind, default=value, since=since)


@dataclass(frozen=True, slots=True)
class Struct:
    """An object with exactly these fields; ``name`` is Firecracker's own, ``defined`` the official description's."""

    name: str
    fields: tuple[Field, ...]
    defined: str = ""

    def known(self, version: Version) -> list[Field]:
        """The fields that the release has."""
        return [field for field in self.fields if version >= field.since]

    def read(self, node: Node, version: Version) -> dict[str, Any]:
        """Every known field with its value, in the order of the declaration."""
        if node.sound().kind != "map":
            raise node.unexpected(f"struct {self.name}")
        known = {field.name: field for field in self.known(version)}
        found: dict[str, Any] = {}
        for member in node.value:
            self._check_key(member, known, found)
            found[member.key] = _member(known[member.key], member, version)
        for field in known.values():
            if field.required and field.name not in found:
                raise JsonError(f"missing field `{field.name}`", node.end)
        return {name: found.get(name, field.default) for name, field in known.items()}

    @staticmethod
    def _check_key(member: Member, known: Mapping[str, Field], found: Mapping[str, Any]) -> None:
        if member.key not in known:
            if not member.key:
                member.node.sound()
            expected = f"expected {_choice(list(known))}" if known else "there are no fields"
            raise JsonError(f"unknown field `{member.key}`, {expected}", member.key_after)
        if member.key in found:
            raise JsonError(f"duplicate field `{member.key}`", member.key_after)

    def decode(self, body: bytes, version: Version) -> dict[str, Any]:
        """The fields in ``body``; JsonError."""
        node = parse(body)
        values = self.read(node, version)
        finish(body, node)
        return values


def _member(field: Field, member: Member, version: Version) -> Any:
    if member.node.kind == "null" and field.nullable:
        return None
    try:
        return field.kind.read(member.node, version)
    except JsonError as error:
        if error.late:
            raise JsonError(error.message, member.after) from error
        raise


def _choice(words: Sequence[str]) -> str:
    quoted = [f"`{word}`" for word in words]
    if len(quoted) <= 2:
        return " or ".join(quoted)
    return f"one of {', '.join(quoted)}"


def _mac(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise ValueError(text)
    return text.lower()


def _register(text: str) -> str:
    if text not in {"eax", "ebx", "ecx", "edx"}:
        raise ValueError(text)
    return text


def _level(text: str) -> str:
    names = {"warning": "Warn", **{w.lower(): w for w in ("Off", "Trace", "Debug", "Info", "Warn", "Error")}}  # fmt: skip
    if text.lower() not in names:
        raise ValueError(text)
    return names[text.lower()]


MAC = Checked(_mac, "The provided MAC address is invalid.")
REGISTER = Checked(_register, "Invalid CPUID register. Must be one of [eax, ebx, ecx, edx]")
LEVEL = Checked(_level, "Invalid LevelFilter")
IPV4 = Checked(
    lambda text: str(ipaddress.IPv4Address(text)), "invalid IPv4 address syntax", late=False
)
