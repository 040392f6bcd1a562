"""What can go wrong between here and a registry."""

from ggtune.errors import GgtuneError


class RegistryError(GgtuneError):
    """A registry that refuses, or says what makes no sense. ``status`` is HTTP's, 0 where the answer was no refusal."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class LoginError(RegistryError):
    """No credentials, or credentials that the registry refuses."""


class TransientError(RegistryError):
    """What may go well the next time: a lost connection, a server that is busy.

    ``retry_after_s``: how long the server asks to wait.
    """

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SessionLostError(RegistryError):
    """An upload that the registry no longer knows, or holds other bytes of: it has to begin anew."""


class DigestRefusedError(RegistryError):
    """A registry found other bytes than the digest says at the end of an upload."""
