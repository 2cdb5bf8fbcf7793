"""On what a run was made: the machine, as far as it can change a bit, and how torch was set up on it."""

import platform
from pathlib import Path


def machine(device: str = "cpu") -> dict[str, str]:
    """Processor, system, C library, and the instructions and the device that torch uses. Imports torch."""
    import torch  # here, since whoever reads runs has no use for it

    return {
        "architecture": platform.machine(),
        "system": platform.system(),
        "cpu": _cpu_model(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "libc": " ".join(platform.libc_ver()),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
