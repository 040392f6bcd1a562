"""Exceptions that carry a message for the user. The command line prints them and exits with their status."""


class GgtuneError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do."""

    exit_status = 1


class DataError(GgtuneError):
    """Training data that can't be read or used; names the file and row."""


class NotFiniteError(GgtuneError):
    """A gradient that has no finite norm."""


class ModelError(GgtuneError):
    """A model or adapter file that can't be used."""


class DivergedError(GgtuneError):
    """A training that has diverged."""

    exit_status = 3


class DeviceMemoryError(GgtuneError):
    """Too little memory on a device."""


class DeviceLostError(GgtuneError):
    """A device failed while it computed. Parameters of the last whole step are intact in main memory."""
