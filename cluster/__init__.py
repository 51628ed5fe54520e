"""Where packs run: any callable over any items, in this process or on Ray."""

from cluster.executor import Cause, ClusterError, Event, Executor, Failed, Finished, Progress, Started
from cluster.inline import InlineExecutor

__all__ = ["Cause", "ClusterError", "Event", "Executor", "Failed", "Finished", "InlineExecutor", "Progress", "Started"]
