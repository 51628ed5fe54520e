"""Items that do as they are told, for the tests of the executors. Imported in worker processes too."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Order(NamedTuple):
    directory: str
    number: int
    behaviour: str = "write"


def obey(order: Order) -> Iterator[float]:
    if order.behaviour == "refuse":
        raise TypeError(f"item {order.number} cannot even begin")
    return _steps(order)


def _steps(order: Order) -> Iterator[float]:
    yield 0.0
    match order.behaviour:
        case "raise":
            raise ValueError(f"item {order.number} is bad")
        case "interrupt":
            raise InterruptedError(f"item {order.number} may go on later")
        case "exit":
            sys.exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
            yield from _until_interrupted(order)
        case "patient":
            yield from _until_interrupted(order)
        case "slow":
            time.sleep(0.7)
            yield 0.25
            yield 0.5
        case "uneven":
            time.sleep(order.number * 7 % 11 / 500)
        case "endless":
            time.sleep(600)
    threads = os.environ.get("OMP_NUM_THREADS")
    Path(order.directory, str(order.number)).write_text(f"{os.getpid()} {os.getppid()} {threads}")
    yield 1.0


def _until_interrupted(order: Order) -> Iterator[float]:
    file = Path(order.directory, str(order.number))
    file.write_text("begun")
    try:
        while True:
            time.sleep(0.05)
            yield 0.5
    except InterruptedError:
        file.write_text("saved")
        raise


def orders(directory: Path, *behaviours: str) -> list[Order]:
    return [Order(str(directory), number, behaviour) for number, behaviour in enumerate(behaviours)]


def written(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in directory.iterdir())
