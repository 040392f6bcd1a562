"""The part of Go's text/template that ggtune writes, and how Ollama runs it, to compare with the training's text."""

import re
from dataclasses import dataclass, field

_ACTION = re.compile(r"(\s+(?=\{\{- ))?\{\{(- )?\s*(.*?)\s*( -)?\}\}((?<= -\}\})\s+)?", re.DOTALL)


@dataclass
class Field:
    name: str


@dataclass
class If:
    name: str
    then: list = field(default_factory=list)
    otherwise: list = field(default_factory=list)


def parse(text):
    """Nodes of a template: str, Field and If."""
    root = []
    lists = [root]
    opened = []
    end = 0
    for match in _ACTION.finditer(text):
        if match.start() > end:
            lists[-1].append(text[end : match.start()])
        end = match.end()
        action = match[3]
        if action.startswith("if ."):
            opened.append(If(action[4:]))
            lists[-1].append(opened[-1])
            lists.append(opened[-1].then)
        elif action == "else":
            lists[-1] = opened[-1].otherwise
        elif action == "end":
            opened.pop()
            lists.pop()
        elif re.fullmatch(r"\.\w+", action):
            lists[-1].append(Field(action[1:]))
        else:
            raise ValueError(f"not in the subset: {action}")
    if opened:
        raise ValueError("an if is not ended")
    return [*root, text[end:]] if text[end:] else root


def execute(nodes, values):
    text = ""
    for node in nodes:
        if isinstance(node, str):
            text += node
        elif isinstance(node, Field):
            text += values[node.name]
        else:
            text += execute(node.then if values[node.name] else node.otherwise, values)
    return text


def render_chat(text, turns, system=""):
    """What Ollama sends for ``turns``, pairs of prompt and response; after the last turn's .Response all is cut."""
    nodes = parse(text)
    cut = nodes[: nodes.index(Field("Response")) + 1]
    rendered = ""
    for i, (prompt, response) in enumerate(turns):
        values = {"System": system if i == 0 else "", "Prompt": prompt, "Response": response}
        rendered += execute(cut if i == len(turns) - 1 else nodes, values)
    return rendered
