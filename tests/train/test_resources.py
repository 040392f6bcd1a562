"""What is said of a run that needs more memory than there is."""

import pytest

from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.train.resources import check_memory

CONFIG = TrainConfig(model="m.gguf", data="d.csv")


def test_a_file_larger_than_memory_is_read_again() -> None:
    parts = {"weights": 1000, "compute": 200}
    with pytest.raises(GgtuneError, match=r"--force starts all the same.* read from the disk again for every"):
        check_memory(CONFIG, parts, 512, 300)
    check_memory(TrainConfig(model="m.gguf", data="d.csv", force=True), parts, 512, 300)


def test_what_is_computed_has_to_fit() -> None:
    with pytest.raises(GgtuneError) as error:
        check_memory(CONFIG, {"weights": 1000, "compute": 2000}, 512, 300)
    assert "disk" not in str(error.value)
