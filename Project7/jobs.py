"""Work that takes seconds, one at a time: a bounded queue, progress, cancelling within a step.

A server has one `Worker` for each device. A job hears of its end only where it asks (`Job.check`, at each denoising
step), so nothing is ever stopped half-way through a write.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from Project7.errors import ProjectError


class QueueFull(ProjectError):
    """As many jobs wait as may; the caller should come back later."""


class JobEnded(ProjectError):
    """A job that was cancelled, or took longer than it may."""


class Job:
    """One piece of work. `work(job)` runs in the worker's thread; what it says arrives in `events`."""

    def __init__(self, work: Callable[["Job"], Any], seconds: float):
        self.work, self.seconds = work, seconds
        self.deadline = float("inf")  # until it begins
        self.future: Future[None] | None = None
        self._cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def check(self) -> None:
        """Raises JobEnded where nobody waits for the result any longer."""
        if self._cancelled.is_set():
            raise JobEnded("the job was cancelled.")
        if time.monotonic() > self.deadline:
            raise JobEnded(f"the job took longer than {self.seconds:g} seconds; ask for fewer steps or variants.")

    def say(self, kind: str, value: Any) -> None:
        """From the worker's thread to whoever reads the events."""
        self.check()
        self._post(kind, value)

    def cancel(self) -> None:
        self._cancelled.set()
        if self.future is not None:
            self.future.cancel()  # where it has not begun

    def run(self) -> None:
        self.deadline = time.monotonic() + self.seconds
        try:
            self.check()
            self._post("done", self.work(self))
        except Exception as error:
            self._post("failed", error)

    def _post(self, kind: str, value: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, (kind, value))

    async def next(self, seconds: float) -> tuple[str, Any] | None:
        """The next (kind, value); None where nothing happens for so long. Raises what the work raised."""
        try:
            kind, value = await asyncio.wait_for(self._events.get(), seconds)
        except TimeoutError:
            return None
        if kind == "failed":
            raise value
        return kind, value

    async def events(self) -> AsyncGenerator[tuple[str, Any]]:
        """What the job says, and at last ("done", its result). Leaving the loop cancels the job."""
        try:
            while True:
                if (event := await self.next(3600)) is not None:
                    yield event
                    if event[0] == "done":
                        return
        finally:
            self.cancel()


class Worker:
    """One thread, and at most `waiting` jobs before it."""

    def __init__(self, *, waiting: int, seconds: float):
        self.waiting, self.seconds = waiting, seconds
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="project7")
        self._lock, self._count = threading.Lock(), 0

    @property
    def count(self) -> int:
        """Jobs that run or wait."""
        return self._count

    def submit(self, work: Callable[[Job], Any]) -> Job:
        """Raises QueueFull where too many wait already."""
        job = Job(work, self.seconds)
        with self._lock:
            if self._count > self.waiting:
                raise QueueFull(f"{self._count} jobs are waiting already; try again in a few seconds.")
            self._count += 1
        job.future = self._pool.submit(job.run)
        job.future.add_done_callback(self._done)
        return job

    def _done(self, _: Future) -> None:
        with self._lock:
            self._count -= 1

    def close(self) -> None:
        """Lets what runs come to its end, and nothing new begin."""
        self._pool.shutdown(wait=True, cancel_futures=True)
