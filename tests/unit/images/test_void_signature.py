"""Signatures are accepted from the pinned key alone, over exactly what was signed."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from banger.images.void.signature import SigningKey
from banger.model.errors import InvalidInputError
from tests.framework.xbps_repository import fingerprint, new_key, sign

KEY = new_key()
VOID = b"""-----BEGIN PUBLIC KEY-----
MIICIjANBgkqhkiG9w0BAQEFAAOCAg8AMIICCgKCAgEAvrSzBZMvgvOCI3AXbOjb
2rKRkJSTM3c/EjTIgCgDXgum93BPCtY8McFVoCU4OiXHGfTmq139BVNpLvLHL9Ks
-----END PUBLIC KEY-----
"""


def pem(key):
    public = key.public_key() if hasattr(key, "public_key") else key
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def key():
    return SigningKey.parse(pem(KEY), "the key")


def test_a_signature_of_the_key_over_the_file_counts(key):
    assert key.signed(sha256(b"package"), sign(KEY, b"package"))
    assert key.fingerprint == fingerprint(KEY)


def test_no_other_signature_counts(key):
    digest = sha256(b"package")
    good = sign(KEY, b"package")
    raw = hashlib.sha256(b"package").digest()
    for bad in (
        b"",
        b"\0" * 256,
        good[:-1],
        good + b"\0",
        bytes([good[0] ^ 1]) + good[1:],
        sign(KEY, b"another"),
        sign(new_key(), b"package"),
        KEY.sign(raw, padding.PSS(padding.MGF1(SHA256()), 32), utils.Prehashed(SHA256())),
        KEY.sign(raw[:20], padding.PKCS1v15(), utils.Prehashed(SHA1())),
    ):
        assert not key.signed(digest, bad)
    assert not key.signed(sha256(b"another"), good)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no key",
        VOID,
        pem(ec.generate_private_key(ec.SECP256R1())),
        pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)),
    ],
)
def test_only_an_rsa_key_of_a_size_to_trust_is_one(text):
    with pytest.raises(InvalidInputError, match="the key in the index is no"):
        SigningKey.parse(text, "the key in the index")


def test_what_stands_around_a_key_does_not_come_with_it():
    noisy = b"\xff\xfe mine\n" + pem(KEY) + b"\xff more"
    assert SigningKey.parse(noisy, "the key").pem.encode() == pem(KEY)


def test_a_key_is_called_as_xbps_and_ssh_call_it(key, tmp_path):
    import subprocess

    public = KEY.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (tmp_path / "key.pub").write_bytes(public + b"\n")
    said = subprocess.run(
        ["ssh-keygen", "-l", "-E", "md5", "-f", tmp_path / "key.pub"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said.split()[1] == f"MD5:{key.xbps_name}"
