"""The process that holds the connection to Ray.

When a part of Ray dies, Ray ends the process that is connected to it, at once and without an exception. So that is this
process, and the launching one tells what has happened and cleans up. This one leads a session of its own and blocks
SIGTERM and its like, and so does all of a Ray that it starts: a signal to the process group of a launch, or to every
process of a job, leaves Ray alive under the workers, which hear SIGTERM and save what they have.
"""

from __future__ import annotations

import itertools
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from cluster.executor import ClusterError
from cluster.messages import Asked, Ended, Job, Message


def main() -> None:
    """Arguments: the descriptor of a channel to the launching process, a directory, perhaps the address of a Ray."""
    channel, directory, *address = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    import ray  # takes seconds, in which a signal may come

    from cluster.connection import connect

    with Connection(int(channel)) as connection:
        try:
            connect(address[0] if address else None, Path(directory))
            serve(connection, Path(directory))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass  # nobody listens any more
        except ClusterError as error:
            connection.send(error)
        except Exception:
            connection.send(ClusterError(f"the run on Ray broke down:\n{traceback.format_exc()}"))
        finally:
            ray.shutdown()


def serve(channel: Connection[Message, Job | bool], directory: Path) -> None:
    """Runs one job after the other, until the channel closes."""
    from cluster.dispatcher import run_job

    def stop() -> bool:
        channel.send(Asked())
        return bool(channel.recv())

    for number in itertools.count():
        job = channel.recv()
        assert isinstance(job, Job)
        run_job(job, directory / f"tune-{number}", channel.send, stop)
        channel.send(Ended())
