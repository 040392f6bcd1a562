"""Answers of a model: one as it comes, many side by side, or a conversation."""

from ggtune.generate.answers import Answer, answers
from ggtune.generate.chat import Chat
from ggtune.generate.pieces import answer_pieces

__all__ = ["Answer", "Chat", "answer_pieces", "answers"]
