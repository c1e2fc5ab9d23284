"""Processes, calls and replies: what stands in for Ray, as far as the shipped code can see.

    handle.method.remote(args) ─ request ─▶ process runs it ─ reply ─▶ Ref, awaited by `cluster.remote.fetch`

A process can die, freeze (SIGSTOP) and thaw; a reply can be late, lost, or come from a call that ran
twice. Errors arrive as Ray raises them. `SimulatedRay` has the few functions of `ray` that the shipped
modules use. Methods of an implementation take the name of a fault (or None) before their arguments.
"""

import asyncio
import contextvars
import inspect
import random
from collections.abc import Callable, Generator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from ray.exceptions import (
    ActorDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
    TaskCancelledError,
)

REQUEST_S = (0.0002, 0.002)
DEATH_NOTICE_S = (0.05, 2.0)
LINGERING_S = (1.0, 40.0)
LATE_REPLY_S = (5.0, 90.0)

CURRENT: "contextvars.ContextVar[Process]" = contextvars.ContextVar("process")
"""The process whose code runs now."""


class ProcessKilled(BaseException):
    """Raised into the code of a process that is no more; not to be caught by what it runs."""


class TaskError(RayTaskError):
    """What a caller sees of an error raised by an actor's method."""

    def __init__(self, cause: Exception) -> None:
        Exception.__init__(self, str(cause))
        self.cause = cause

    def __str__(self) -> str:
        return f"{type(self.cause).__name__}: {self.cause}"


class Ref:
    """A reference to a value that is there or will come; may be awaited by many."""

    __slots__ = ("_error", "_value", "_waiters", "call", "is_done", "resolved_s")

    def __init__(self, call: "Call | None" = None) -> None:
        self.call = call
        self.is_done = False
        self.resolved_s = 0.0
        self._value: Any = None
        self._error: Exception | None = None
        self._waiters: list[asyncio.Future[None]] = []

    def lose(self) -> None:
        """The value is gone with the node that held it."""
        self._error = ObjectLostError("0" * 56, None, "")

    def resolve(self, value: Any = None, error: Exception | None = None) -> None:
        """Give the value or the error; only the first time counts."""
        if self.is_done:
            return
        self.is_done, self._value, self._error = True, value, error
        self.resolved_s = asyncio.get_running_loop().time()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    @property
    def value(self) -> Any:
        """The value, for the simulation's own eyes."""
        return self._value

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.is_done:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            if self.call is not None and self.call.process is not None:
                self.call.process.system.awaited.append(self)
            yield from waiter
        if self._error is not None:
            raise self._error
        return self._value


class Process:
    """The driver, or an actor's process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.was_killed_s: float | None = None
        """When the driver asked for its end."""

    def __repr__(self) -> str:
        return self.name


class Call:
    """One call of an actor's method."""

    def __init__(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], num_returns: int) -> None:
        self.method, self.args, self.kwargs = method, args, kwargs
        self.refs = [Ref(self) for _ in range(num_returns)]
        self.process: ActorProcess | None = None
        self.task: asyncio.Task[None] | None = None

    def fail(self, error: Exception) -> None:
        for ref in self.refs:
            ref.resolve(error=error)


class ActorProcess(Process):
    """An actor's process. `is_ordered`: one call at a time, in order; otherwise all at once."""

    def __init__(
        self, system: "ActorSystem", name: str, is_ordered: bool, node: str, may_linger: bool
    ) -> None:
        super().__init__(name)
        self.system = system
        self.node, self.may_linger = node, may_linger
        self.chance = system.chance
        self._turn = asyncio.Lock() if is_ordered else None
        self._running: dict[Call, None] = {}
        self._unanswered: list[Call] = []
        """Calls that have run and whose reply was lost: the caller learns of the death only."""
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._fault_of: Callable[[str, tuple[Any, ...]], str | None] = lambda method, args: None
        self._context = contextvars.copy_context()
        self._context.run(CURRENT.set, self)
        self.implementation: Any = None
        self.args: tuple[Any, ...] = ()
        self.on_death: list[Callable[[], None]] = []

    def host(self, implementation: Any, fault_of: Callable[[str, tuple[Any, ...]], str | None]) -> None:
        """Run an actor in this process."""
        self.implementation, self._fault_of = implementation, fault_of

    @property
    def is_frozen(self) -> bool:
        return not self._thawed.is_set()

    def receive(self, call: Call) -> None:
        """Take a call, or say that the process is gone."""
        if not self.is_alive:
            self._notice([call])
            return
        self._running[call] = None
        loop = asyncio.get_running_loop()
        call.task = loop.create_task(
            self._serve(call), name=f"{self.name}.{call.method}", context=self._context
        )

    async def sleep(self, seconds: float) -> None:
        """Work for a while; longer if the process is frozen meanwhile."""
        await asyncio.sleep(seconds)
        await self._thawed.wait()

    def freeze(self) -> None:
        """SIGSTOP."""
        self.system.say(f"{self.name} is frozen")
        self._thawed.clear()

    def thaw(self) -> None:
        """SIGCONT."""
        if self.is_alive:
            self.system.say(f"{self.name} goes on")
        self._thawed.set()

    def die(self, reason: str) -> None:
        """The process is gone; callers learn of it a little later."""
        if not self.is_alive:
            return
        self.system.say(f"{self.name} dies: {reason}")
        self.is_alive = False
        calls, self._running = [*self._running, *self._unanswered], {}
        for call in calls:
            if call.task is not None:
                call.task.cancel()
        self._notice(calls)
        for tell in self.on_death:
            tell()

    async def crash(self, reason: str) -> None:
        """Die in the middle of a call; does not come back."""
        self.die(reason)
        await asyncio.get_running_loop().create_future()

    def cancel(self, call: Call) -> None:
        """`ray.cancel`: an asyncio call that has not ended is cancelled."""
        if call in self._running and call.task is not None and not self.is_frozen:
            del self._running[call]
            call.task.cancel()
            call.fail(TaskCancelledError())

    async def _serve(self, call: Call) -> None:
        async with self._turn or nullcontext():
            await asyncio.sleep(self.chance.uniform(*REQUEST_S))
            await self._run(call)

    async def _run(self, call: Call) -> None:
        await self._thawed.wait()
        try:
            args = [await arg if isinstance(arg, Ref) else arg for arg in call.args]
        except ObjectLostError as error:
            self._running.pop(call, None)
            call.fail(TaskError(error))
            return
        fault = self._fault_of(call.method, tuple(args))
        method = getattr(self.implementation, call.method)
        try:
            value = await method(fault, *args, **call.kwargs)
            if fault == "call runs twice":
                value = await method(None, *args, **call.kwargs)
        except Exception as error:
            reply, failure = None, TaskError(error)
        else:
            reply, failure = value, None
        if fault == "reply is late":
            await asyncio.sleep(self.chance.uniform(*LATE_REPLY_S))
        await self._thawed.wait()
        self._running.pop(call, None)
        if fault == "reply is lost":
            self._unanswered.append(call)
            return
        if failure is not None:
            call.fail(failure)
        elif len(call.refs) == 1:
            call.refs[0].resolve(reply)
        else:
            for ref, part in zip(call.refs, reply, strict=True):
                ref.resolve(part)
                if ref is not call.refs[0]:
                    self.system.hold(self.node, ref)

    def _notice(self, calls: list[Call]) -> None:
        error = self.chance.choice((ActorDiedError(), OutOfMemoryError("the memory monitor killed it")))

        def tell() -> None:
            for call in calls:
                call.fail(error)

        asyncio.get_running_loop().call_later(self.chance.uniform(*DEATH_NOTICE_S), tell)


class Handle:
    """What `.remote()` of an actor class gives: methods by name."""

    def __init__(self, process: ActorProcess) -> None:
        self.process = process

    def __getattr__(self, method: str) -> "Method":
        if method.startswith("__"):
            raise AttributeError(method)
        return Method(self.process, method)


class Method:
    """`handle.method`, with `.remote` and `.options`."""

    def __init__(self, process: ActorProcess, method: str, num_returns: int = 1) -> None:
        self._process, self._method, self._num_returns = process, method, num_returns

    def options(self, *, num_returns: int = 1, **ignored: Any) -> "Method":
        return Method(self._process, self._method, num_returns)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        call = Call(self._method, args, kwargs, self._num_returns)
        self._process.system.submit(self._process, call)
        return call.refs[0] if self._num_returns == 1 else call.refs


class ActorSystem:
    """All actor processes of one driver. `make(class, process, args)` gives the implementation that
    stands for a shipped actor class."""

    def __init__(
        self,
        chance: random.Random,
        driver: Process,
        make: Callable[[type, "ActorSystem", tuple[Any, ...]], ActorProcess],
        say: Callable[[str], None],
        on_submit: Callable[[ActorProcess, Call], None],
        fault_at: Callable[[str], str | None],
    ) -> None:
        self.chance, self.driver, self.say = chance, driver, say
        self.processes: list[ActorProcess] = []
        self.draining_ms: dict[str, float] = {}
        """Nodes that go away, and when."""
        self.awaited: list[Ref] = []
        """Ray itself holds what somebody waits for."""
        self._values: list[tuple[str, Ref]] = []
        self._make, self._on_submit, self._fault_at = make, on_submit, fault_at

    def spawn(self, actor_class: type, args: tuple[Any, ...]) -> Handle:
        if not self.driver.is_alive:
            raise ProcessKilled
        process = self._make(actor_class, self, args)
        self.processes.append(process)
        return Handle(process)

    def submit(self, process: ActorProcess, call: Call) -> None:
        """Send a call; from a driver that is gone nothing goes out."""
        call.process = process
        if not self.driver.is_alive:
            call.fail(ActorDiedError())
            return
        self._on_submit(process, call)
        process.receive(call)

    def lose_node(self, node: str) -> None:
        """All that runs on a node dies, and the large values that it holds are gone."""
        for process in self.processes:
            if process.node == node:
                process.die(f"{node} is gone")
        for home, ref in self._values:
            if home == node:
                ref.lose()

    def hold(self, node: str, ref: Ref) -> None:
        """A large value lies on a node."""
        self._values.append((node, ref))

    def kill(self, handle: Handle) -> None:
        """`ray.kill`: at once, or after a while in which late replies may still come."""
        process = handle.process
        if not self.driver.is_alive or not process.is_alive or process.was_killed_s is not None:
            return
        process.was_killed_s = asyncio.get_running_loop().time()
        is_slow = process.may_linger and self._fault_at("kill") == "kill is slow"
        if is_slow and not process.is_frozen:
            delay_s = self.chance.uniform(*LINGERING_S)
            self.say(f"{process.name} is killed, and lives on for {delay_s:.1f} s")
            asyncio.get_running_loop().call_later(delay_s, process.die, "killed by the driver, at last")
        else:
            process.die("killed by the driver")

    def end(self) -> None:
        """The driver is gone: so are its actors."""
        for process in self.processes:
            process.die("the driver is gone")


class ActorClass:
    """What `ray.remote(cls)` gives."""

    def __init__(self, system: ActorSystem, actor_class: type) -> None:
        self._system, self._class = system, actor_class

    def options(self, **ignored: Any) -> "ActorClass":
        return self

    def remote(self, *args: Any) -> Handle:
        return self._system.spawn(self._class, args)


class SimulatedRay:
    """Stands in for the module `ray` in the shipped modules."""

    def __init__(self, system: ActorSystem) -> None:
        self._system = system

    def remote(self, *args: Any, **options: Any) -> Any:
        if args and inspect.isclass(args[0]):
            return ActorClass(self._system, args[0])
        return lambda actor_class: ActorClass(self._system, actor_class)

    def kill(self, actor: Handle, no_restart: bool = True) -> None:
        self._system.kill(actor)

    @property
    def _private(self) -> Any:
        """`ray._private.state.state.get_draining_nodes()`: deadlines in ms of Unix time."""
        state = SimpleNamespace(get_draining_nodes=lambda: dict(self._system.draining_ms))
        return SimpleNamespace(state=SimpleNamespace(state=state))

    def cancel(self, ref: Ref) -> None:
        if ref.call is not None and ref.call.process is not None:
            ref.call.process.cancel(ref.call)

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(
            get_node_id=lambda: "node-0", gcs_address="", namespace="", get_job_id=lambda: ""
        )

    def available_resources(self) -> dict[str, float]:
        return {}
