"""Ed25519 against the vectors of RFC 8032, section 7.1, and what must not pass."""

from __future__ import annotations

import pytest

from insula.security.ed25519 import verify

#: (public key, message, signature), as the RFC prints them: tests 1, 2, 3 and SHA(abc).
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
            "387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
            "4a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]
ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.mark.parametrize("vector", VECTORS)
def test_the_vectors_of_the_rfc(vector):
    key, message, signature = map(bytes.fromhex, vector)
    assert verify(key, message, signature)
    assert not verify(key, message + b"\0", signature)
    for at in (0, 31, 32, 63):
        bent = bytearray(signature)
        bent[at] ^= 1
        assert not verify(key, message, bytes(bent)), at
    other = bytes.fromhex(VECTORS[0][0] if vector is not VECTORS[0] else VECTORS[1][0])
    assert not verify(other, message, signature)


def test_the_same_signature_written_differently_is_refused():
    # S + L verifies the same equation; 5.1.7 wants 0 <= S < L, or anyone could rewrite it.
    key, message, signature = map(bytes.fromhex, VECTORS[0])
    s = int.from_bytes(signature[32:], "little") + ORDER
    assert not verify(key, message, signature[:32] + s.to_bytes(32, "little"))


@pytest.mark.parametrize(
    "key",
    [
        b"",
        bytes(31),
        bytes([0xED]) + bytes([0xFF]) * 30 + bytes([0x7F]),  # y = p, a second way to write 0
        bytes([2]) + bytes(31),  # no point of the curve has this y
        bytes([1]) + bytes(30) + bytes([0x80]),  # x = 0 with the sign of a negative x
    ],
)
def test_what_is_no_key(key):
    assert not verify(key, b"", bytes(64))
    assert not verify(bytes.fromhex(VECTORS[0][0]), b"", b"short")
