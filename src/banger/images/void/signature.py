"""Signatures of XBPS packages: RSA, PKCS#1 v1.5, over the SHA-256 of the package file (xbps: lib/verifysig.c, lib/external/fexec.c).

A repository's key stands in its index, which is not signed: a key counts only if its SHA-256 is pinned.
"""

from __future__ import annotations

import hashlib
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from banger.model.errors import InvalidInputError

MAX_KEY_BYTES = 16 << 10
MAX_SIGNATURE_BYTES = 4096
_LEAST_BITS, _MOST_BITS = 2048, 16384


class SigningKey:
    """A public RSA key."""

    def __init__(self, key: RSAPublicKey) -> None:
        self._key = key

    @classmethod
    def parse(cls, pem: bytes, what: str) -> Self:
        """The key in ``pem``; InvalidInputError naming ``what`` if it is no RSA key of a size that can be trusted."""
        hint = "get the index again; a mirror that stays so is not Void's"
        try:
            key = load_pem_public_key(pem[:MAX_KEY_BYTES])
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidInputError(f"{what} is no public key", detail=str(error), hint=hint) from error  # fmt: skip
        if not isinstance(key, RSAPublicKey) or not _LEAST_BITS <= key.key_size <= _MOST_BITS:
            raise InvalidInputError(
                f"{what} is no RSA key of {_LEAST_BITS} bits or more", hint=hint
            )
        return cls(key)

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the key's SubjectPublicKeyInfo (RFC 5280) in DER: what a recipe pins."""
        der = self._key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(der).hexdigest()

    @property
    def pem(self) -> str:
        """The key alone, as PEM: without what else the text had that it was read from."""
        form = PublicFormat.SubjectPublicKeyInfo
        return self._key.public_bytes(Encoding.PEM, form).decode("ascii")

    @property
    def xbps_name(self) -> str:
        """As xbps calls it: the MD5 of the OpenSSH public key blob, with colons (lib/pubkey2fp.c). For people, not for trust."""
        numbers = self._key.public_numbers()
        blob = b"".join(
            len(part).to_bytes(4, "big") + part
            for part in (b"ssh-rsa", _mpint(numbers.e), _mpint(numbers.n))
        )
        return hashlib.md5(blob, usedforsecurity=False).digest().hex(":")

    def signed(self, sha256: str, signature: bytes) -> bool:
        """Whether ``signature`` is this key's over a file with this SHA-256 (hex)."""
        try:
            self._key.verify(signature, bytes.fromhex(sha256), PKCS1v15(), Prehashed(SHA256()))
        except (InvalidSignature, ValueError):
            return False
        return True


def _mpint(number: int) -> bytes:
    """A positive number as RFC 4251, section 5, writes it."""
    return number.to_bytes(number.bit_length() // 8 + 1, "big")
