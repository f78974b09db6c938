"""Bring an archive over HTTP into a file, going on where the last try stopped, and accept it by its digest alone.

Every URL is tried in turn. A cut connection is tried again from the byte where it was cut (``Range``, RFC 9110 section 14), as long as
tries bring something. What a server says about ranges is compared, and in the end only the SHA-256 counts: an archive that was
put together from pieces and is not the right one is fetched once more as a whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import urllib.error
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Final, Protocol, cast

from banger import __version__
from banger.host import fs
from banger.model.clock import Deadline
from banger.model.errors import HostLacksError

_BLOCK_BYTES: Final = 1 << 16
_ANSWER_S: Final = 30.0
_PAUSE_S: Final = 0.5
_IDLE_TRIES: Final = 3
_TRIES: Final = 1000
_GONE_FOR_GOOD: Final = {400, 401, 403, 404, 405, 410, 451}


@dataclass(frozen=True, slots=True)
class Wanted:
    """An archive: where it may be had, its size and its SHA-256 in hex; in errors ``what`` it is, ``pin`` is what states
    them, and ``hint`` the next step.
    """

    urls: tuple[str, ...]
    size_bytes: int
    sha256: str
    what: str = "the archive"
    pin: str = "the manifest"
    hint: str = "do it again"


class Listener(Protocol):
    """Is told how far a download has come."""

    def advance(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        """``stage`` (always "download") has done so much of its work."""
        ...

    def note(self, sentence: str) -> None:
        """Something that a person should know."""
        ...


class _TryFailedError(Exception):
    """One try brought no whole archive; ``final``: another one of the same URL would not either."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


def download(wanted: Wanted, part: Path, deadline: Deadline, reporter: Listener) -> None:
    """Make ``part`` the wanted archive, keeping what it has of it. On failure HostLacksError tells what each URL did; ``part``
    stays, for the next time. OSError if ``part`` cannot be written.
    """
    failures: list[str] = []
    for url in wanted.urls:
        try:
            _Source(url, wanted, part, deadline, reporter).bring()
        except _TryFailedError as error:
            failures.append(f"{url}: {error}")
            if len(failures) < len(wanted.urls):  # of the last one the error tells
                reporter.note(failures[-1])
        else:
            return
    have = fs.length_bytes(part)
    kept = f"{have} of {wanted.size_bytes} bytes are kept for the next time" if have else ""
    raise HostLacksError(
        f"{wanted.what} could not be downloaded",
        detail="\n".join(filter(None, [*failures, kept])),
        hint=wanted.hint,
    )


class _Source:
    """One URL of the archive."""

    def __init__(
        self, url: str, wanted: Wanted, part: Path, deadline: Deadline, reporter: Listener
    ) -> None:
        self._url, self._wanted, self._part = url, wanted, part
        self._deadline, self._reporter = deadline, reporter
        self._tag_file = part.with_name(f"{part.name}.etag")
        self._opener = _opener()

    def bring(self) -> None:
        """Try until the archive is whole and right; raises _TryFailedError."""
        idle, wrong, why = 0, 0, ""
        if fs.length_bytes(self._part) > self._wanted.size_bytes:
            self.forget()
        for _ in range(_TRIES):
            before = fs.length_bytes(self._part)
            if before < self._wanted.size_bytes:
                try:
                    self._try(before)
                except _TryFailedError as error:
                    if error.final:
                        raise
                    why = str(error)
            if fs.length_bytes(self._part) == self._wanted.size_bytes:
                if self._is_right():
                    self._tag_file.unlink(missing_ok=True)
                    return
                self.forget()
                wrong += 1
                if before == 0 or wrong > 1:  # else pieces of two archives may have met
                    raise _TryFailedError(f"its SHA-256 is not {self._wanted.pin}'s", final=True)
            elif fs.length_bytes(self._part) <= before:
                idle += 1
                if idle >= _IDLE_TRIES:
                    raise _TryFailedError(why)
                time.sleep(min(_PAUSE_S * idle, self._deadline.remaining_s))
            else:
                idle = 0
            if self._deadline.passed:
                raise _TryFailedError(f"it took too long; at last: {why}")
        raise _TryFailedError(f"gave up after {_TRIES} tries: {why}")

    def forget(self) -> None:
        """Remove what is there."""
        self._part.unlink(missing_ok=True)
        self._tag_file.unlink(missing_ok=True)

    def _is_right(self) -> bool:
        with self._part.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self._wanted.sha256

    def _try(self, have: int) -> None:
        """One request; what it brings is in the part afterwards, however it ends."""
        with closing(self._ask(have)) as answer:
            if answer.status == 206:
                self._check_range(answer.headers.get("Content-Range", ""), have)
            elif answer.status == 200:
                self._check_length(answer.headers.get("Content-Length", ""))
                self.forget()  # the server knows no ranges, or its archive is another one by now
            else:
                raise _TryFailedError(f"it answered with status {answer.status}", final=True)
            tag = answer.headers.get("ETag", "")
            fs.write_atomic(self._tag_file, f"{self._url}\n{tag}".encode())
            self._copy(answer)

    def _ask(self, have: int) -> HTTPResponse:
        headers = {"User-Agent": f"banger/{__version__}", "Accept": "*/*"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if tag := self._tag():
                headers["If-Range"] = tag
        request = urllib.request.Request(self._url, headers=headers)  # noqa: S310  the opener knows http and https only
        try:
            timeout_s = max(0.1, min(_ANSWER_S, self._deadline.remaining_s))
            return cast("HTTPResponse", self._opener.open(request, timeout=timeout_s))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # our piece is longer than what they have
                self.forget()
            raise _TryFailedError(
                f"{error.code} {error.reason}", final=error.code in _GONE_FOR_GOOD
            ) from None
        except urllib.error.URLError as error:
            raise _TryFailedError(
                str(getattr(error.reason, "strerror", "") or error.reason)
            ) from None
        except (OSError, HTTPException) as error:
            raise _TryFailedError(str(error) or type(error).__name__) from None

    def _tag(self) -> str:
        """The strong validator of the piece that we have, if this URL gave one (RFC 9110: a weak one must not be used here)."""
        try:
            url, _, tag = self._tag_file.read_text().partition("\n")
        except FileNotFoundError:
            return ""
        return tag if url == self._url and re.fullmatch(r'"[!#-~]*"', tag) else ""

    def _check_range(self, text: str, have: int) -> None:
        match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", text)
        if match is None or int(match[1]) != have:
            raise _TryFailedError(f"it answered with another range than asked for: {text!r}")
        if match[2] not in {"*", str(self._wanted.size_bytes)}:
            raise self._another_size(match[2])

    def _check_length(self, text: str) -> None:
        if text.isdigit() and int(text[:18]) != self._wanted.size_bytes:
            raise self._another_size(text)

    def _another_size(self, size: str) -> _TryFailedError:
        return _TryFailedError(
            f"it has {size} bytes, {self._wanted.pin} says {self._wanted.size_bytes}", final=True
        )

    def _copy(self, answer: HTTPResponse) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._part, flags, 0o600), "wb", buffering=0) as file:
            done = os.fstat(file.fileno()).st_size
            while not self._deadline.passed:
                try:
                    block = answer.read1(_BLOCK_BYTES)
                except (OSError, HTTPException) as error:
                    raise _TryFailedError(f"the connection broke at byte {done}: {error}") from None
                if not block:
                    if done < self._wanted.size_bytes:
                        raise _TryFailedError(f"the connection ended at byte {done}")
                    return
                done += len(block)
                if done > self._wanted.size_bytes:
                    self.forget()
                    raise self._another_size("more")
                _write_all(file.fileno(), block)
                self._reporter.advance("download", done, self._wanted.size_bytes)
        raise _TryFailedError("it took too long")


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS, redirected or through the environment's proxy; no other scheme, not even after a redirection."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def get(url: str, limit_bytes: int, *, what: str, timeout_s: float = _ANSWER_S) -> bytes | None:
    """The body of ``url``, whose digest nothing states yet, up to ``limit_bytes``; None if the server has none (404, 410).

    HostLacksError if it cannot be had or is longer.
    """
    request = urllib.request.Request(url, headers={"User-Agent": f"banger/{__version__}"})  # noqa: S310  as in _Source
    why = ""
    for attempt in range(_IDLE_TRIES):
        time.sleep(_PAUSE_S * attempt)
        try:
            with closing(_opener().open(request, timeout=timeout_s)) as answer:
                data = cast("HTTPResponse", answer).read(limit_bytes + 1)
            if len(data) <= limit_bytes:
                return data
            why = f"it has more than {limit_bytes} bytes"
            break
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in {404, 410}:
                return None
            why = f"{error.code} {error.reason}"
        except urllib.error.URLError as error:
            why = str(getattr(error.reason, "strerror", "") or error.reason)
        except (OSError, HTTPException) as error:
            why = str(error) or type(error).__name__
    raise HostLacksError(
        f"{what} could not be downloaded", detail=f"{url}: {why}", hint=f"curl -I {url}"
    )
