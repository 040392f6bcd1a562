"""The parts of ``make_golden.py``: tiny models, llama.cpp's converters, PyTorch's numbers."""
