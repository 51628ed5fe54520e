"""Tests of the plug-ins: what Isoratio asks of each kind, inherited; run from this directory: pytest."""

from trainables.contract import ArchContract, CallContract, DatasetContract, LossContract, MetricContract

NARROW = {"name": "mine:bottleneck", "rank": 2}
QUADRATIC = {"name": "mine:whole_trial", "curvature": 2.0}


class TestBottleneck(ArchContract):
    """With the data and the loss that it will meet."""

    arch = "mine:bottleneck"
    dataset = "mine:rings"
    loss = "mine:smoothed"


class TestNarrowBottleneck(ArchContract):
    """Parameters are given as in a sweep file."""

    arch = NARROW


class TestRings(DatasetContract):
    """A data set."""

    dataset = "mine:rings"


class TestSmoothed(LossContract):
    """A loss, by default of a small net on a small data set."""

    loss = "mine:smoothed"


class TestConfidence(MetricContract):
    """A metric; the trials that it measures can be changed."""

    metric = "mine:confidence"
    arch = "mine:bottleneck"
    dataset = "mine:rings"


class TestWholeTrial(CallContract):
    """A trial of one's own."""

    call = QUADRATIC
