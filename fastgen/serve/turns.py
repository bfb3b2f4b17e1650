"""One engine for all clients: who is next."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Turns"]

T = TypeVar("T")


class Turns:
    """Runs one piece of work after another in a thread, taking the clients in turn.

    One network uses all cores, so two at a time would only make both late. A client that has more
    waiting than others does not get more: the turns go round the clients that have something to
    do, and each has its own line. How much may wait is for the callers to limit. All methods are
    called in the event loop.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()
        self._running = False
        self._thread = ThreadPoolExecutor(1, "fastgen engine")

    @property
    def waiting(self) -> int:
        """Pieces of work that wait."""
        return sum(len(line) for line in self._lines.values())

    async def run(self, client: Hashable, choose: Callable[[], Callable[[], T]]) -> T:
        """Waits for the client's turn and runs something in the engine's thread.

        Args:
            client: whose turn it must be.
            choose: called in the event loop when the turn has come; what it returns is run. A
                stream decides only then which of its frames is the newest.
        """
        await self._turn(client)
        loop = asyncio.get_running_loop()
        try:
            work: Future[T] = self._thread.submit(choose())
        except BaseException:
            self._done()
            raise
        # Also when nobody waits for the result any more the turn lasts as long as the thread works.
        work.add_done_callback(lambda _: _call(loop, self._done))
        return await asyncio.wrap_future(work)

    async def _turn(self, client: Hashable) -> None:
        if not self._running:
            self._running = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(client, turn)
            else:
                self._done()  # the turn came in the same moment
            raise

    def _leave(self, client: Hashable, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(client)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._lines[client]

    def _done(self) -> None:
        """The engine is free: the first line's next has its turn, and the line goes to the end."""
        self._running = False
        while self._lines and not self._running:
            client, line = self._lines.popitem(last=False)
            turn = line.popleft()
            if line:
                self._lines[client] = line
            if not turn.cancelled():
                self._running = True
                turn.set_result(None)

    def close(self) -> None:
        """Takes no more work; what runs is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        pass  # the loop has ended, and with it all lines
