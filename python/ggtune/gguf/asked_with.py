"""How a model has to be asked after its training, as the ``ggtune.*`` keys of adapter and model say."""

from collections.abc import Mapping
from dataclasses import dataclass

ASKED_WITH = ("template", "system", "system_differs")
"""Names of these keys without their prefix; in a merged file they are the last adapter's."""


@dataclass(frozen=True)
class AskedWith:
    """What the samples of the training had."""

    template: str | None = None  # its name; None where nobody says
    system: str | None = None  # "": there was none; None where nobody says
    system_differs: bool = False  # not all samples had the same

    @classmethod
    def of(cls, adapter: Mapping[str, str], model: Mapping[str, str]) -> "AskedWith":
        """Read the keys, by :data:`ASKED_WITH`, of an adapter beside the model; what it says goes first."""
        return cls(
            template=adapter.get("template") or model.get("template") or None,
            system=adapter.get("system", model.get("system")),
            system_differs=adapter.get("system_differs", model.get("system_differs")) == "true",
        )

    def template_or(self, given: str | None) -> str | None:
        """Return the name of the template to ask with: what the user gives, else the training's."""
        return given or self.template

    def system_or(self, given: str | None) -> str | None:
        """Return the system text to ask with: what the user gives ("": none), else the training's."""
        return (self.system if given is None else given) or None
