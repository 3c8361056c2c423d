"""A crew of workers, with actors that answer when the test lets them: order, bounds, deaths."""

import random
from collections import deque
from itertools import count, islice

import pytest

from tudsr.apps.ray_crew import LOST, Crew, in_order
from tudsr.errors import InputError

exceptions = pytest.importorskip("ray.exceptions", reason="needs the extra [ray]")


class Remote:
    def __init__(self, call):
        self.remote = call


class Actor:
    """Holds calls in a queue, as Ray's actors do; dies at the calls that the test names."""

    def __init__(self, ray, name):
        self.ray, self.name, self.calls, self.alive = ray, name, deque(), True
        self.load = Remote(lambda: self._ask("load", None))
        self.work = Remote(lambda item: self._ask("work", item))

    def _ask(self, what, item):
        ref = object()
        self.calls.append((ref, what, item))
        self.ray.pending[ref] = self
        return ref


class FakeRay:
    """Answers the calls of all actors in a random order, but each actor's own in theirs."""

    def __init__(self, seed, dies=lambda item, times: False):
        self.random, self.dies = random.Random(seed), dies
        self.pending, self.answers, self.actors, self.asked = {}, {}, [], {}

    def hire(self):
        self.actors.append(Actor(self, f"worker-{len(self.actors)}"))
        return self.actors[-1]

    def wait(self, refs, num_returns):
        while not any(ref in self.answers for ref in refs):
            self._work(self.random.choice([actor for actor in self.actors if actor.calls]))
        return [next(ref for ref in refs if ref in self.answers)], []

    def _work(self, actor):
        ref, what, item = actor.calls.popleft()
        if what == "load":
            self.answers[ref] = actor.name
            return
        self.asked[item] = self.asked.get(item, 0) + 1
        if self.dies(item, self.asked[item]):
            actor.alive = False
            for lost in (ref, *(other for other, *_ in actor.calls)):
                self.answers[lost] = exceptions.RayActorError()
            actor.calls.clear()
        else:
            self.answers[ref] = item * item

    def get(self, ref):
        answer = self.answers.pop(ref)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor, no_restart):
        assert no_restart
        actor.alive = False
        actor.calls.clear()


def start(member, item):
    return member.actor.work.remote(item)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("depth", [1, 2])
def test_results_come_in_order_and_deaths_lose_nothing(seed, depth):
    ray = FakeRay(seed, dies=lambda item, times: item % 7 == 3 and times == 1)
    with Crew(ray, ray.hire, 3, depth) as crew:
        found = list(in_order(crew, start, iter(range(40)), 2, "a.png"))
    assert found == [n * n for n in range(40)]
    assert all(times == 1 + (item % 7 == 3) for item, times in ray.asked.items())  # nothing else was done twice
    assert not any(actor.alive for actor in ray.actors)


def test_items_are_taken_as_they_are_needed():
    ray, taken = FakeRay(0), []
    items = (taken.append(n) or n for n in count())
    with Crew(ray, ray.hire, 2, 2) as crew:
        results = in_order(crew, start, items, 2, "a.png")
        for given in range(1, 30):
            next(results)
            assert len(taken) - given <= 2 * 2 * 2
        results.close()


def test_two_deaths_of_one_item_end_the_picture():
    ray = FakeRay(1, dies=lambda item, times: item == 5)
    with Crew(ray, ray.hire, 2, 2) as crew:
        results = in_order(crew, start, iter(range(9)), 2, "a.png")
        assert list(islice(results, 5)) == [0, 1, 4, 9, 16]
        with pytest.raises(InputError, match=r"a\.png: 2 workers died of the same windows of it"):
            next(results)
    assert ray.asked[5] == 2


def test_after_a_picture_that_was_given_up_the_crew_works_on():
    ray = FakeRay(2)
    with Crew(ray, ray.hire, 2, 2) as crew:
        results = in_order(crew, start, iter(range(9)), 2, "a.png")
        next(results)
        results.close()
        assert list(in_order(crew, start, iter(range(9)), 2, "b.png")) == [n * n for n in range(9)]


def test_a_queue_may_be_refilled_and_tells_who_died():
    ray = FakeRay(3, dies=lambda item, times: item == 2 and times < 3)
    queue, seen = deque([1, 2]), []
    with Crew(ray, ray.hire, 1) as crew:
        for item, member, result in crew.work_off(queue, start):
            seen.append((item, "lost" if result is LOST else result))
            assert member.name.startswith("worker-")
            if result is LOST:
                queue.append(item)
    assert seen == [(1, 1), (2, "lost"), (2, "lost"), (2, 4)]
    assert len(ray.actors) == 3
