"""Option sets of every kind, with what they render."""

from __future__ import annotations

from pathlib import Path

from cluster.options import ClusterOptions, Kind
from cluster.rendering import Versions, render

GOLDEN = Path(__file__).with_name("golden")
VERSIONS = Versions("2.60.0", "3.11", ("duckdb==2.0.0", "ray[default,tune]==2.60.0", "torch==2.13.0"))

CASES = {
    "slurm-one-node": (Kind.SLURM, ClusterOptions(venv="/opt/venv", cpus=8, gpus=1)),
    "slurm-four-nodes": (
        Kind.SLURM,
        ClusterOptions(
            workers=(4, 4),
            gpu_type="a100",
            gpus=8,
            partition="gpu,long",
            account="physics",
            time_limit="2-00:00:00",
            setup=("module load cuda/12.4", 'source "$HOME/my env/bin/activate"'),
            store="~/my results",
            sweep="it's a sweep.yaml",
        ),
    ),
    "kuberay-cpu": (Kind.KUBERAY, ClusterOptions(store="s3://bucket/results")),
    "kuberay-spot": (
        Kind.KUBERAY,
        ClusterOptions(
            gpu_type="L4", gpus=2, spot=True, workers=(1, 8), store="/results", claim="shared", identity="writer"
        ),
    ),
    "kuberay-spot-cpu": (
        Kind.KUBERAY,
        ClusterOptions(spot=True, spot_label="karpenter.sh/capacity-type=spot", cpus=16, memory=64, store="s3://b/r"),
    ),
    "kuberay-own-image": (
        Kind.KUBERAY,
        ClusterOptions(image="me/isoratio:1", gpus=1, labels=("gpu=big",), namespace="lab", setup=("echo 'ready'",)),
    ),
    "aws-spot": (
        Kind.AWS,
        ClusterOptions(region="us-west-2", machine_image="ami-0123456789", gpu_type="L4", spot=True, store="s3://b/r"),
    ),
    "aws-on-demand": (
        Kind.AWS,
        ClusterOptions(
            name="lab",
            region="eu-central-1",
            zone="eu-central-1a",
            machine_image="ami-0123456789",
            worker_type="g6e.4xlarge",
            workers=(2, 2),
            identity="arn:aws:iam::123456789012:instance-profile/writer",
            image="me/isoratio:1",
            token_file="~/keys/lab token",
            idle_minutes=30,
        ),
    ),
    "gcp-cpu": (Kind.GCP, ClusterOptions(project="p", region="us-central1", zone="us-central1-a", machine_image="i")),
    "gcp-attached-gpus": (
        Kind.GCP,
        ClusterOptions(
            project="p",
            region="us-central1",
            zone="us-central1-a",
            machine_image="projects/images/global/images/family/gpus",
            gpu_type="t4",
            gpus=2,
            spot=True,
            identity="writer@p.iam.gserviceaccount.com",
        ),
    ),
    "gcp-a100": (
        Kind.GCP,
        ClusterOptions(
            project="p",
            region="us-central1",
            zone="us-central1-a",
            machine_image="i",
            gpu_type="A100",
            gpus=8,
            workers=(1, 3),
        ),
    ),
    "onprem": (
        Kind.ONPREM,
        ClusterOptions(hosts=("gpu1", "10.0.0.2", "gpu3.lab"), user="me", ssh_key="~/.ssh/lab", store="/mnt/results"),
    ),
    "onprem-alone": (Kind.ONPREM, ClusterOptions(hosts=("gpu1",), user="me", venv="/opt/a b", setup=())),
}


def text_of(case: str) -> str:
    """What a case renders."""
    return render(*CASES[case], VERSIONS)


def golden(case: str) -> Path:
    """Where it is kept."""
    return GOLDEN / f"{case}{'.sh' if CASES[case][0] is Kind.SLURM else '.yaml'}"
