import pytest

from ggtune import _core
from ggtune.demo import MODEL


@pytest.fixture(scope="session")
def demo_model() -> _core.Model:
    """Byte-level BPE, a chat template in the llama2 form, BOS 1 and EOS 2."""
    return _core.Model(str(MODEL), vocab_only=True)
