"""The GPUs that the installed llama.cpp can use here.

Owns the question alone. The wheel on PyPI is built for the CPU (and for Metal on a Mac); builds
for CUDA, ROCm or Vulkan come from the project's own index, under the same name.
"""

from __future__ import annotations

from typing import Any

from insula.engine.backends.base import backend

_GPU_TYPES = ("GGML_BACKEND_DEVICE_TYPE_GPU", "GGML_BACKEND_DEVICE_TYPE_IGPU")


def gpus() -> tuple[str, ...]:
    """Names of the GPUs that the installed wheel can use; none without the wheel."""
    if not backend("llamacpp").installed:
        return ()
    import xllamacpp

    devices: list[dict[str, Any]] = xllamacpp.get_device_info()
    return tuple(
        f"{device['name']} ({device['description']})"
        for device in devices
        if getattr(device["type"], "name", "") in _GPU_TYPES
    )


def gpu_obstacle() -> str | None:
    """Why nothing can run on a GPU; None: it can."""
    info = backend("llamacpp")
    if not info.installed:
        return f"the native backend runs on the CPU, and {info.why_not}"
    if not gpus():
        return (
            "the installed llama.cpp sees no GPU; on one, install an xllamacpp wheel built for it "
            "(CUDA, ROCm, Vulkan)"
        )
    return None
