"""Hardware on which the choice of an engine depends, detected without any framework."""

from __future__ import annotations

import os
from pathlib import Path

DEVICES = Path("/dev")
CPUINFO = Path("/proc/cpuinfo")
# x86: AVX-512 BF16 and AMX; Arm: BF16.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, as named in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        numbers = [path.name.removeprefix("nvidia") for path in DEVICES.glob("nvidia[0-9]*")]
        return sorted((number for number in numbers if number.isdecimal()), key=int)
    named = [part.strip() for part in visible.split(",")]
    # CUDA uses the names before the first invalid one, such as -1.
    return named[: next((place for place, name in enumerate(named) if name in ("", "-1")), len(named))]


def cpu_model() -> str:
    """Return the CPU's model name, empty if unknown."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")


def cpu_has_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 natively: emulated, it is slower than float32."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = {
        word for line in text.splitlines() if line.lower().startswith(("flags", "features")) for word in line.split()
    }
    return not flags.isdisjoint(_BFLOAT16_FLAGS)
