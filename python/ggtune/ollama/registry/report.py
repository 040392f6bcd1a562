"""What pushing and pulling tell of themselves while they go on."""

from ggtune.ollama.manifest import Layer


class Report:
    """Says nothing; the command line's says it on the terminal."""

    def begin(self, layer: Layer, doing: str) -> None:
        """Hear that work on a blob begins: ``doing`` is ``sending``, ``fetching`` or ``checking``."""

    def at(self, done_bytes: int) -> None:
        """Hear how far that is; it may go back."""

    def end(self, outcome: str) -> None:
        """Hear how it ended: ``sent``, ``there already``, ...; empty where it failed or goes on with something else."""

    def note(self, text: str) -> None:
        """Hear of something else: a try that failed, a wait."""
