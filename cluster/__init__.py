"""Where packs run: any callable over any items, in this process or on Ray."""

from cluster.executor import ClusterError, Event, Executor, Failed, Finished, Progress, Started
from cluster.inline import InlineExecutor

__all__ = ["ClusterError", "Event", "Executor", "Failed", "Finished", "InlineExecutor", "Progress", "Started"]
