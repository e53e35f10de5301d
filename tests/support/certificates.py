"""Certificates for tests: a certificate authority, and the PEM files of what it signs."""

from __future__ import annotations

from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

__all__ = ["Authority"]


class Authority:
    """A CA whose certificate is in `file`.

    Arguments:
        folder: The folder for its files.
        name: Distinguishes it from other authorities.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self._name = name
        self.file = folder / f"{name}-ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, *names: str, common_name: str | None = None, password: str | None = None) -> tuple[Path, Path]:
        """A certificate for these names and its key. With a password the key is encrypted."""
        made = self._ca.issue_cert(*names, common_name=common_name)
        stem = f"{self._name}-{common_name or names[0]}{'-locked' if password else ''}"
        certificate, key = self._folder / f"{stem}.pem", self._folder / f"{stem}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        # Kafka accepts only keys in PKCS#8.
        lock = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
        private = serialization.load_pem_private_key(made.private_key_pem.bytes(), None)
        key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
        return certificate, key
