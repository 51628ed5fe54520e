"""Groups of trials, and in each the cells, iso-ratio lines and seeds, as index arrays.

A cell is one (lr, batch size); a line holds the cells of equal lr / batch_size; a point is one seed in one cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.scales import BoolArray, FloatArray, IntArray
from trainables.schema import Status
from trainables.trial import FIELDS

WITHIN_GROUP = ("lr", "batch_size", "seed", "order_seed")
"""Scientific fields that vary within a group; every other one that varies makes groups."""

EQUAL = 1e-6
"""Learning rates, and ratios, that differ by less than this factor are one."""


@dataclass(frozen=True)
class Grid:
    """Cells sorted by line and then by batch size, and where each trial falls.

    Attributes:
        lr: learning rate, shape (cells,).
        batch_size: shape (cells,).
        line: rank of lr / batch_size, shape (cells,).
        reference: the cell with the smallest batch size on the same line, shape (cells,).
        cell: shape (trials,).
        point: shape (trials,).
        point_cell: shape (points,).
        point_seed: shape (points,).
        partner: the point with the same seed in the reference cell, -1 where there is none, shape (points,).
    """

    lr: FloatArray
    batch_size: FloatArray
    line: IntArray
    reference: IntArray
    cell: IntArray
    point: IntArray
    point_cell: IntArray
    point_seed: IntArray
    partner: IntArray

    @classmethod
    def of(cls, lr: FloatArray, batch_size: FloatArray, seed: IntArray) -> Grid:
        """The grid of trials given by three arrays of shape (trials,)."""
        line = levels(np.log(lr / batch_size))
        sizes, size = np.unique(batch_size, return_inverse=True)
        keys, first, cell = np.unique(line * len(sizes) + size, return_index=True, return_inverse=True)
        cell_line = keys // max(len(sizes), 1)
        reference = np.searchsorted(cell_line, cell_line)
        seeds, seed = np.unique(seed, return_inverse=True)
        points, point = np.unique(cell * len(seeds) + seed, return_inverse=True)
        point_cell, point_seed = np.divmod(points, max(len(seeds), 1))
        wanted = reference[point_cell] * len(seeds) + point_seed
        partner = np.searchsorted(points, wanted)  # the reference comes first, so this never runs past the end
        partner[points[partner] != wanted] = -1
        return cls(lr[first], batch_size[first], cell_line, reference, cell, point, point_cell, point_seed, partner)

    @property
    def ratio(self) -> FloatArray:
        """Learning rate / batch size, shape (cells,)."""
        return self.lr / self.batch_size

    @property
    def contrasted(self) -> IntArray:
        """The cells that are compared with another one, the reference of their line."""
        return np.flatnonzero(self.reference != np.arange(len(self.reference)))

    def point_means(self, values: FloatArray) -> FloatArray:
        """Mean over the trials of each point (several only where `order_seed` varies), NaN where none is finite."""
        if len(values) > len(self.point_cell):
            return moments(self.point, values, len(self.point_cell)).mean
        means = np.empty(len(values))
        means[self.point] = np.where(np.isfinite(values), values, np.nan)
        return means

    def count(self, trials: BoolArray) -> IntArray:
        """How many of the marked trials each cell has."""
        return np.bincount(self.cell[trials], minlength=len(self.lr))


@dataclass(frozen=True)
class Group:
    """Trials that differ in nothing but lr, batch size and seeds.

    Attributes:
        fields: the scientific fields that tell groups of this sweep apart, with their values here.
        rows: rows of the table, failed ones left out, shape (trials,).
        diverged: shape (trials,).
        failed: how many were left out.
        seeds: how many independent seeds there are.
        grid: the cells of those rows.
    """

    fields: dict[str, Any]
    rows: IntArray
    diverged: BoolArray
    failed: int
    seeds: int
    grid: Grid


@dataclass(frozen=True)
class Moments:
    """Count, mean and unbiased variance of the finite values under each index."""

    n: IntArray
    mean: FloatArray
    variance: FloatArray


def moments(index: IntArray, values: FloatArray, size: int) -> Moments:
    """Moments of ``values`` by ``index`` in range(size); NaN where there are too few of them."""
    finite = np.isfinite(values)
    index, values = index[finite], values[finite]
    n = np.bincount(index, minlength=size)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(index, weights=values, minlength=size) / n
        squares = np.bincount(index, weights=(values - mean[index]) ** 2, minlength=size)
        variance = np.where(n > 1, squares / (n - 1), np.nan)
    return Moments(n, mean, variance)


def floats(trials: pa.Table, column: str, rows: IntArray) -> FloatArray:
    """Some rows of a column, NaN where missing."""
    return np.asarray(trials[column].take(rows).to_numpy(), dtype=np.float64)


def given(trials: pa.Table, column: str, rows: IntArray) -> FloatArray:
    """Some rows of a column that may be missing as a whole, NaN where it is."""
    return floats(trials, column, rows) if column in trials.column_names else np.full(len(rows), np.nan)


def levels(values: FloatArray) -> IntArray:
    """Rank of each value among the distinct ones; neighbours within 1e-6 count as equal."""
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.cumsum(np.diff(values[order], prepend=values[order[:1]]) > EQUAL)
    return ranks


def groups(trials: pa.Table) -> list[Group]:
    """The groups of one sweep's trials, in the order of their fields."""
    names = [name for name in FIELDS if name in trials.column_names and name not in WITHIN_GROUP]
    fields = {name: coded for name in names if len((coded := codes(trials[name]))[1]) > 1}
    key = np.zeros(len(trials), dtype=np.int64)
    for found, values in fields.values():
        key = np.unique(key * len(values) + found, return_inverse=True)[1]
    order = np.argsort(key, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(key[order])) + 1) if len(order) else []
    lr, batch_size = (trials[name].to_numpy().astype(np.float64) for name in ("lr", "batch_size"))
    failed, diverged = (np.asarray(pc.equal(trials["status"], each)) for each in (Status.FAILED, Status.DIVERGED))
    seed = _seeds(trials)
    return [
        _group(
            {name: values[found[rows[0]]] for name, (found, values) in fields.items()},
            rows, failed, diverged, lr, batch_size, seed,
        )
        for rows in parts
    ]  # fmt: skip


def _group(
    fields: dict[str, Any],
    rows: IntArray,
    failed: BoolArray,
    diverged: BoolArray,
    lr: FloatArray,
    batch_size: FloatArray,
    seed: IntArray,
) -> Group:
    kept = rows[~failed[rows]]
    grid = Grid.of(lr[kept], batch_size[kept], seed[kept])
    seeds = len(np.unique(seed[kept]))
    return Group(fields, kept, diverged[kept], len(rows) - len(kept), seeds, grid)


def codes(column: pa.ChunkedArray) -> tuple[IntArray, list[Any]]:
    """Each row's rank among the distinct values, missing ones first, and those values."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    found = encoded.dictionary.to_pylist()
    order = sorted(range(len(found)), key=lambda k: (found[k] is not None, found[k]))
    rank = np.argsort(np.array(order, dtype=np.int64))
    return rank[encoded.indices.to_numpy()], [found[k] for k in order]


def _seeds(trials: pa.Table) -> IntArray:
    """Rank of each trial's seed; a trial without one is a seed of its own."""
    found, values = codes(trials["seed"])
    alone = np.array([value is None for value in values])[found]
    return np.where(alone, len(values) + np.arange(len(found)), found)
