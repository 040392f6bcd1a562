"""Devices of these tests: simulated ones in main memory, or the one that ``GGTUNE_TEST_DEVICE`` names ("Vulkan0")."""

import os
from collections.abc import Iterator

import pytest

from ggtune import _core

# SIM0 and SIM1; SIM2 rounds products to half precision; SIM3 has no ROPE; SIM4 has room for nothing
SIMULATED = "256M,256M,256M:half,256M:lacks=ROPE,1M"


@pytest.fixture(autouse=True, scope="package")
def simulated_devices() -> Iterator[None]:
    """They are read when the devices are first asked for, and stay for the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GGTUNE_SIMULATED_DEVICES", SIMULATED)
        assert {device.name for device in _core.devices()} >= {f"SIM{i}" for i in range(5)}
        yield


@pytest.fixture
def device() -> str:
    """Name of the device that a test is about."""
    return os.environ.get("GGTUNE_TEST_DEVICE", "") or "SIM0"
