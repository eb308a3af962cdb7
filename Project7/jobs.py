"""Jobs that take seconds, run one at a time: a bounded queue, progress, and cancelling within one denoising step.

A server has one `Worker` for each device. A job ends early only where it checks for it itself (`Job.check`, at each
denoising step), so that no write is ever interrupted half-way.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from Project7.errors import ProjectError


class QueueFull(ProjectError):
    """The queue holds as many jobs as it may; the caller should try again later."""


class JobEnded(ProjectError):
    """The job was cancelled, or took longer than allowed."""


class Job:
    """One piece of work. `work(job)` runs in the worker's thread; what it reports with `say` arrives in `events`."""

    def __init__(self, work: Callable[["Job"], Any], seconds: float):
        self.work, self.seconds = work, seconds
        self.deadline = float("inf")  # set when the job begins
        self.future: Future[None] | None = None
        self._cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def check(self) -> None:
        """Raises JobEnded if the job was cancelled or its time is up."""
        if self._cancelled.is_set():
            raise JobEnded("the job was cancelled.")
        if time.monotonic() > self.deadline:
            raise JobEnded(f"the job took longer than {self.seconds:g} seconds; ask for fewer steps or variants.")

    def say(self, kind: str, value: Any) -> None:
        """Sends an event from the worker's thread to the reader of `events`. Raises JobEnded as `check` does."""
        self.check()
        self._post(kind, value)

    def cancel(self) -> None:
        self._cancelled.set()
        if self.future is not None:
            self.future.cancel()  # has an effect only if the job has not begun

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
        """The next (kind, value); None if nothing happens for `seconds`. Raises the exception that the work raised."""
        try:
            kind, value = await asyncio.wait_for(self._events.get(), seconds)
        except TimeoutError:
            return None
        if kind == "failed":
            raise value
        return kind, value

    async def events(self) -> AsyncGenerator[tuple[str, Any]]:
        """Yields what the job reports, and finally ("done", its result). Leaving the loop cancels the job."""
        try:
            while True:
                if (event := await self.next(3600)) is not None:
                    yield event
                    if event[0] == "done":
                        return
        finally:
            self.cancel()


class Worker:
    """One thread, and a queue of at most `waiting` jobs."""

    def __init__(self, *, waiting: int, seconds: float):
        self.waiting, self.seconds = waiting, seconds
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="project7")
        self._lock, self._count = threading.Lock(), 0

    @property
    def count(self) -> int:
        """Number of jobs that are running or waiting."""
        return self._count

    def submit(self, work: Callable[[Job], Any]) -> Job:
        """Queues a job. Raises QueueFull if too many are waiting already."""
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
        """Waits for the running job to end, and lets no other begin."""
        self._pool.shutdown(wait=True, cancel_futures=True)
