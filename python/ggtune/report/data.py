"""The data card of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ggtune.data.doubts import KINDS
from ggtune.report.blocks import Block, Figure, Items, Paragraph, Table
from ggtune.report.curves import number
from ggtune.report.facts import UNKNOWN, share_text
from ggtune.report.plots import lengths_figure
from ggtune.report.reading import RunRecord


def data_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """Rows, lengths, the share that is learned, template, what was skipped, doubts."""
    single = len(runs) == 1
    cards = [run.data_card for run in runs]
    blocks: list[Block] = []
    for run in runs:
        if not run.data_card:
            name = Path(run.setting("data")).name or "the data"
            text = f"The run folder has no data card, and {name} could not be read as it was."
            blocks.append(Paragraph(text, "note", "" if single else run.name))
    if not any(cards):
        return blocks
    head = [] if single else ["", *(run.name for run in runs)]
    blocks.append(Table(head, [row for row in _rows(cards) if any(cell != UNKNOWN for cell in row[1:])]))
    if single:
        blocks += _details(cards[0])
    return blocks


def _rows(cards: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    lengths = [card.get("lengths") for card in cards]
    kinds = dict.fromkeys(kind for card in cards for kind in _counts(card, "skipped"))
    doubts = dict.fromkeys(kind for card in cards for kind in _counts(card, "doubts"))
    return [
        ["Rows", *(_count(card, "rows") for card in cards)],
        ["Samples", *(_count(card, "samples") for card in cards)],
        ["Held out", *(_count(card, "held_out") for card in cards)],
        ["Template", *(str(card.get("template") or UNKNOWN) for card in cards)],
        ["System text", *(str(card.get("system") or UNKNOWN) for card in cards)],
        ["Tokens", *(_count(card, "tokens") for card in cards)],
        ["Learned (counts in the loss)", *(share_text(card.get("learned_share")) for card in cards)],
        ["Length of a sample", *(_length(found) for found in lengths)],
        ["Context", *(_count(card, "context") for card in cards)],
        ["Samples that fit into it", *(share_text(card.get("fit_share")) for card in cards)],
        ["Cut to the context", *(_count(card, "cut") for card in cards)],
        *([f"Skipped: {kind}", *(str(_counts(c, "skipped").get(kind, 0)) for c in cards)] for kind in kinds),
        *([f"Doubts: {kind}", *(str(_counts(c, "doubts").get(kind, 0)) for c in cards)] for kind in doubts),
    ]


def _details(card: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    if (plot := lengths_figure(card.get("lengths"), card.get("context"))) is not None:
        blocks.append(Figure(plot))
    doubts = _counts(card, "doubts")
    if doubts:
        known = [f"{kind}: {KINDS[kind]}" for kind in doubts if kind in KINDS]
        blocks += [Paragraph("`ggtune check-data` names the rows. What the doubts mean:", "note"), Items(known)]
    reasons = card.get("skipped_rows")
    if isinstance(reasons, list) and reasons:
        blocks += [Paragraph("Rows that were skipped:"), Items([str(reason) for reason in reasons])]
    return blocks


def _counts(card: Mapping[str, Any], key: str) -> dict[str, int]:
    found = card.get(key)
    if not isinstance(found, Mapping):
        return {}
    return {str(kind): n for kind, n in found.items() if isinstance(n, int) and n}


def _count(card: Mapping[str, Any], key: str) -> str:
    value = number(card, key)
    return UNKNOWN if value is None else f"{value:,.0f}"


def _length(lengths: Any) -> str:
    values = [number(lengths, key) for key in ("least", "median", "most")] if isinstance(lengths, Mapping) else [None]
    if None in values:
        return UNKNOWN
    least, median, most = (f"{value:,.0f}" for value in values if value is not None)
    return f"{least} to {most} tokens, {median} in the middle"
