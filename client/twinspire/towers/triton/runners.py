"""What performs the steps of calls: threads, or an event loop."""

from __future__ import annotations

import asyncio
import threading
from queue import Empty, SimpleQueue
from typing import Any

from twinspire.errors import EngineError
from twinspire.towers.triton.channel import CLOSED
from twinspire.towers.triton.retries import DeadlinePassedError
from twinspire.towers.triton.steps import Background, Compute, NextDone, Result, Send, Sleep, Step, Steps

_THREAD = "twinspire-probe"


class ThreadRunner:
    """Performs steps in the thread that calls `run`, and those in the background in threads of their own."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def run(self, steps: Steps[Result]) -> Result:
        """Perform the steps of a call and return its result."""
        done: SimpleQueue[Any] = SimpleQueue()
        outcome: Any = None
        error: BaseException | None = None
        try:
            while True:
                step = steps.send(outcome) if error is None else steps.throw(error)
                outcome = error = None
                try:
                    outcome = self._perform(step, done)
                except BaseException as raised:  # an interrupt too: the steps cancel what is in flight
                    error = raised
        except StopIteration as stop:
            result: Result = stop.value
            return result
        finally:
            error = None  # a traceback that holds this frame would keep the call's arrays alive
            steps.close()

    def _perform(self, step: Step, done: SimpleQueue[Any]) -> Any:  # noqa: ANN401 - the kind of step says which
        match step:
            case Send():
                future = step.send()
                future.add_done_callback(done.put)
                return future
            case NextDone():
                try:
                    return done.get(timeout=step.timeout_s)
                except Empty as error:
                    raise DeadlinePassedError from error
            case Sleep():
                self.closed.wait(step.seconds)
                self.check_open()
            case Compute():
                return step.function()
            case Background():
                self._start(step.steps)
        return None

    def _start(self, steps: Steps[None]) -> None:
        def run() -> None:
            try:
                self.run(steps)
            finally:
                with self._lock:
                    self._threads.discard(thread)

        thread = threading.Thread(target=run, name=_THREAD, daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def check_open(self) -> None:
        """Raise EngineError where the towers were closed."""
        if self.closed.is_set():
            raise EngineError(CLOSED)

    def join(self) -> None:
        """Wait for what runs in the background, which ends once `closed` is set and the channels are closed."""
        with self._lock:
            threads = self._threads - {threading.current_thread()}
        for thread in threads:
            thread.join()


class AsyncRunner:
    """Performs steps in the running event loop, and those in the background in tasks."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, steps: Steps[Result]) -> Result:
        """Perform the steps of a call and return its result. Cancelling the task cancels its requests."""
        done: asyncio.Queue[Any] = asyncio.Queue()
        outcome: Any = None
        error: BaseException | None = None
        try:
            while True:
                step = steps.send(outcome) if error is None else steps.throw(error)
                outcome = error = None
                try:
                    outcome = await self._perform(step, done)
                except BaseException as raised:  # a cancellation too: the steps cancel what is in flight
                    error = raised
        except StopIteration as stop:
            result: Result = stop.value
            return result
        finally:
            error = None
            steps.close()

    async def _perform(self, step: Step, done: asyncio.Queue[Any]) -> Any:  # noqa: ANN401 - as above
        match step:
            case Send():
                future = step.send()
                future.add_done_callback(lambda ended: _put(ended, done))
                return future
            case NextDone():
                try:
                    async with asyncio.timeout(step.timeout_s):
                        return await done.get()
                except TimeoutError as error:
                    raise DeadlinePassedError from error
            case Sleep():
                try:
                    async with asyncio.timeout(step.seconds):
                        await self.closed.wait()
                except TimeoutError:
                    return None
                self.check_open()
            case Compute():
                return await asyncio.to_thread(step.function)
            case Background():
                task = asyncio.ensure_future(self.run(step.steps))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return None

    def check_open(self) -> None:
        """Raise EngineError where the towers were closed."""
        if self.closed.is_set():
            raise EngineError(CLOSED)

    async def join(self) -> None:
        """Cancel what runs in the background and wait for it."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _put(ended: asyncio.Task[Any], done: asyncio.Queue[Any]) -> None:
    if not ended.cancelled():
        ended.exception()  # asyncio logs errors that nobody read, as of a call that ended for another reason
    done.put_nowait(ended)
