"""A small base model, 64 questions and answers, and a run over both.

The model (``wordnet-10m-q5_k_m.gguf``) was trained on sentences made from WordNet 3.0, whose notice is in
``ggtune/licenses/WORDNET.txt``.
"""

from pathlib import Path

MODEL = Path(__file__).with_name("wordnet-10m-q5_k_m.gguf")
DATA = Path(__file__).with_name("chemistry.csv")
