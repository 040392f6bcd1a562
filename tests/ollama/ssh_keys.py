"""Key files as OpenSSH writes them, and the check that a registry makes of a signed request."""

import base64
import hashlib

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_ssh_public_key

EMPTY = base64.b64encode(hashlib.sha256().hexdigest().encode()).decode()


def write_key(path, key=None):
    key = key or ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    return path


def verify(header, method, url):
    """What the token server does; raises InvalidSignature."""
    public, _, signature = header.partition(":")
    key = load_ssh_public_key(f"ssh-ed25519 {public}".encode())
    key.verify(base64.b64decode(signature, validate=True), f"{method},{url},{EMPTY}".encode())
    return public
