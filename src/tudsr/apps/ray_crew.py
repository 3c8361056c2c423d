"""Ray actors that work off a queue: hired as they are needed, replaced when they die."""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from types import ModuleType
from typing import Any, Self, TypeVar

from tudsr.errors import InputError, TudsrError

T = TypeVar("T")

_MOST_FALSE_STARTS = 3

LOST = object()
"""What comes instead of a result when the worker died."""


@dataclass(frozen=True, eq=False)
class Member:
    """A worker: its actor, and its machine and process once it has loaded the model."""

    actor: Any
    name: str | None = None


class Crew:
    """Workers of one kind; a context manager, at whose end all are gone.

    Args:
        ray: the package.
        hire: starts an actor with a method `load`, which returns its name.
        size: actors at a time, at most.
        depth: calls that one actor may hold, one of them in work.
    """

    def __init__(self, ray: ModuleType, hire: Callable[[], Any], size: int, depth: int = 1) -> None:
        from ray import exceptions

        self.size, self.depth = size, depth
        self._ray, self._hire = ray, hire
        self._deaths = (
            exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.OutOfMemoryError,
            exceptions.NodeDiedError, exceptions.ObjectLostError,
        )  # fmt: skip
        self._task_error = exceptions.RayTaskError
        self._there: list[Member] = []
        self._loading: dict[Any, Member] = {}
        self._false_starts = 0

    @property
    def most_waiting(self) -> int:
        """Items that are taken and not given back yet, at most, where results come in order (`in_order`)."""
        return 2 * self.size * self.depth

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in (*self._there, *self._loading.values()):
            self._dismiss(member)

    def work_off(self, queue: deque[T], start: Callable[[Member, T], Any]) -> Iterator[tuple[T, Member, Any]]:
        """Have a queue worked off; between two results, more may be put on it.

        Args:
            queue: emptied from its left end.
            start: calls a method of the member's actor and returns what `remote` returned.

        Yields:
            An item, who had it, and the result: LOST when that worker died of it, or during it. Other items that it
            held go back on the queue.

        Raises:
            TudsrError: what a worker raised, or when workers die again and again before they are ready.
        """
        working: dict[Any, tuple[Member, T]] = {}
        try:
            while queue or working:
                self._assign(queue, working, start)
                (ready,), _ = self._ray.wait([*self._loading, *working], num_returns=1)
                if ready in self._loading:
                    self._welcome(self._loading.pop(ready), ready)
                    continue
                member, item = working[ready]
                try:
                    result = self._get(ready)
                except self._deaths:
                    member, item = self._bury(member, working, queue)
                    yield item, member, LOST
                else:
                    del working[ready]
                    yield item, member, result
        finally:
            for member in {id(member): member for member, _ in working.values()}.values():
                self._dismiss(member)  # what it holds, nobody waits for any more
                self._there.remove(member)

    def _assign(self, queue: deque[T], working: dict[Any, tuple[Member, T]], start: Callable[[Member, T], Any]) -> None:
        """Give work to those who hold least, and hire as many as the rest needs."""
        held = {id(member): 0 for member in self._there}
        for member, _ in working.values():
            held[id(member)] += 1
        while queue and self._there:
            member = min(self._there, key=lambda one: held[id(one)])
            if held[id(member)] == self.depth:
                break
            held[id(member)] += 1
            item = queue.popleft()
            working[start(member, item)] = member, item
        while len(self._loading) < len(queue) and len(self._loading) + len(self._there) < self.size:
            hired = Member(self._hire())
            self._loading[hired.actor.load.remote()] = hired

    def _welcome(self, member: Member, ready: Any) -> None:
        try:
            name = self._get(ready)
        except self._deaths as error:
            self._dismiss(member)
            self._false_starts += 1
            if self._false_starts == _MOST_FALSE_STARTS:
                reason = str(error).strip().splitlines()[-1].rstrip(".")
                raise InputError(
                    f"{_MOST_FALSE_STARTS} Ray workers died before they had loaded the model ({reason})."
                ) from error
        else:
            self._false_starts = 0
            self._there.append(replace(member, name=name))

    def _bury(self, dead: Member, working: dict[Any, tuple[Member, T]], queue: deque[T]) -> tuple[Member, T]:
        """Strike a dead member off; return what it died of, its oldest call, and put its others back."""
        self._dismiss(dead)
        self._there.remove(dead)
        refs = [ref for ref, (member, _) in working.items() if member is dead]
        first, *others = [working.pop(ref)[1] for ref in refs]
        queue.extendleft(reversed(others))
        return dead, first

    def _get(self, ready: Any) -> Any:
        try:
            return self._ray.get(ready)
        except self._task_error as error:
            if isinstance(error.cause, TudsrError):
                raise error.cause from error
            raise

    def _dismiss(self, member: Member) -> None:
        """Make sure that a worker is gone: one that is only out of reach must not go on beside its successor."""
        self._ray.kill(member.actor, no_restart=True)


def in_order(
    crew: Crew, start: Callable[[Member, T], Any], items: Iterator[T], attempts: int, of: str
) -> Iterator[Any]:
    """Have items worked off and yield their results in the items' order.

    No more items are taken, nor results held, than keep the crew busy twice over.

    Args:
        crew: the workers.
        start: as in `Crew.work_off`.
        items: taken as they are needed.
        attempts: workers that may die of one item.
        of: the picture that the items belong to.

    Raises:
        InputError: when as many have.
    """
    numbered = enumerate(items)
    queue: deque[tuple[int, T]] = deque()
    results: dict[int, Any] = {}
    deaths: Counter[int] = Counter()
    taken = given = 0

    def refill() -> None:
        nonlocal taken
        for one in islice(numbered, crew.most_waiting - (taken - given)):
            queue.append(one)
            taken += 1

    refill()
    for (number, item), _, result in crew.work_off(queue, lambda member, one: start(member, one[1])):
        if result is LOST:
            deaths[number] += 1
            if deaths[number] == attempts:
                raise InputError(f"{of}: {attempts} workers died of the same windows of it.")
            queue.appendleft((number, item))
            continue
        results[number] = result
        while given in results:
            yield results.pop(given)
            given += 1
        refill()
