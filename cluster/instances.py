"""Which machine of a cloud has which GPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass

Offers = dict[int, str]
"""The machine type by its number of GPUs."""


@dataclass(frozen=True)
class Gpu:
    """A type of GPU: the machines that have it.

    Attributes:
        aws: EC2 instance types.
        gcp: Compute Engine machine types.
        accelerator: Google's name of the GPU, also the label of its Kubernetes nodes; empty where they have none.
    """

    aws: Offers
    gcp: Offers
    accelerator: str = ""


GPUS = {
    "T4": Gpu(
        {1: "g4dn.xlarge", 4: "g4dn.12xlarge", 8: "g4dn.metal"},
        {1: "n1-standard-8", 2: "n1-standard-16", 4: "n1-standard-32"},
        "nvidia-tesla-t4",
    ),
    "L4": Gpu(
        {1: "g6.xlarge", 4: "g6.12xlarge", 8: "g6.48xlarge"},
        {1: "g2-standard-8", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"},
        "nvidia-l4",
    ),
    "A10G": Gpu({1: "g5.xlarge", 4: "g5.12xlarge", 8: "g5.48xlarge"}, {}),
    "L40S": Gpu({1: "g6e.xlarge", 4: "g6e.12xlarge", 8: "g6e.48xlarge"}, {}),
    "A100": Gpu(
        {8: "p4d.24xlarge"},
        {1: "a2-highgpu-1g", 2: "a2-highgpu-2g", 4: "a2-highgpu-4g", 8: "a2-highgpu-8g"},
        "nvidia-tesla-a100",
    ),
    "A100-80GB": Gpu(
        {8: "p4de.24xlarge"},
        {1: "a2-ultragpu-1g", 2: "a2-ultragpu-2g", 4: "a2-ultragpu-4g", 8: "a2-ultragpu-8g"},
        "nvidia-a100-80gb",
    ),
    "H100": Gpu(
        {1: "p5.4xlarge", 8: "p5.48xlarge"},
        {1: "a3-highgpu-1g", 2: "a3-highgpu-2g", 4: "a3-highgpu-4g", 8: "a3-highgpu-8g"},
        "nvidia-h100-80gb",
    ),
    "H200": Gpu({8: "p5en.48xlarge"}, {8: "a3-ultragpu-8g"}, "nvidia-h200-141gb"),
}

_CORES_PER_GPU = {"a2": 12, "a3-highgpu": 26, "a3-ultragpu": 28}
"""Of Google's machine types that are named by their number of GPUs."""


def find_gpu(name: str) -> Gpu:
    """The GPU of a name, in any case.

    Raises:
        ValueError: there is none.
    """
    for known, gpu in GPUS.items():
        if known.lower() == name.lower():
            return gpu
    raise ValueError(
        f"--gpu-type {name}: known are {', '.join(GPUS)}; for another one name the machine itself with --worker-type"
    )


def machine_type(cloud: str, name: str, gpus: int) -> str:
    """The machine type of a cloud, ``aws`` or ``gcp``, with so many GPUs.

    Raises:
        ValueError: the cloud has none.
    """
    gpu = find_gpu(name)
    offers = gpu.aws if cloud == "aws" else gpu.gcp
    if gpus in offers:
        return offers[gpus]
    if not offers:
        raise ValueError(f"--gpu-type {name}: {cloud} has none; known there are {', '.join(_known(cloud))}")
    allowed = ", ".join(map(str, offers))
    raise ValueError(
        f"--gpus {gpus}: {cloud} has machines with {allowed} of {name}; name another machine with --worker-type"
    )


def _known(cloud: str) -> list[str]:
    return [name for name, gpu in GPUS.items() if (gpu.aws if cloud == "aws" else gpu.gcp)]


def cores(type_: str) -> int | None:
    """Cores of a machine type of Google's, as its name tells them; None where it does not."""
    if found := re.fullmatch(r"([a-z0-9]+-[a-z]+)-(\d+)g", type_):
        per_gpu = _CORES_PER_GPU.get(found[1]) or _CORES_PER_GPU.get(found[1].split("-")[0])
        return per_gpu * int(found[2]) if per_gpu else None
    found = re.fullmatch(r"[a-z0-9]+-[a-z]+-(\d+)", type_)
    return int(found[1]) if found else None
