"""What the GPU's driver says of its state now: clocks, throttling, temperature, power. Needs nvidia-ml-py."""

from __future__ import annotations

import importlib
from typing import Any


def read(address: str) -> dict[str, Any]:
    """Return what can be read, with units in the names; empty where the driver's library is not there.

    Args:
        address: the device's on the PCI bus. Its number would not do: CUDA counts the devices that a program may see,
            the driver's library all of them, and in another order.
    """
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByPciBusId(address)
    except Exception:  # noqa: BLE001 - no library, no driver and no permission all mean: nothing can be read
        return {}
    queries = {
        "sm_clock_megahertz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_megahertz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "throttle_bits": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
    }
    state: dict[str, Any] = {}
    for name, query in queries.items():
        try:
            state[name] = query()
        except Exception:  # noqa: BLE001 - a virtual GPU answers some queries and not others
            continue
    return state
