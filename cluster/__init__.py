"""Where packs run: any callable over any items, in this process or on Ray; and files that start a cluster."""

from cluster.checking import Finding, check
from cluster.executor import Cause, ClusterError, Event, Executor, Failed, Finished, Progress, Started
from cluster.inline import InlineExecutor
from cluster.options import ClusterOptions, Kind
from cluster.rendering import render

__all__ = [
    "Cause",
    "ClusterError",
    "ClusterOptions",
    "Event",
    "Executor",
    "Failed",
    "Finding",
    "Finished",
    "InlineExecutor",
    "Kind",
    "Progress",
    "Started",
    "check",
    "render",
]
