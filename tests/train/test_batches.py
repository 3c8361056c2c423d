"""What a step's batches hold: each sample once, or with echoes some more times, the same after a resume."""

from types import SimpleNamespace

import pytest
import torch

from tudsr.train import batches as module
from tudsr.train.batches import Batches
from tudsr.train.loop import Trainer, train


def of(config, process=0, processes=1):
    place = SimpleNamespace(process_index=process, num_processes=processes, device=torch.device("cpu"))
    paths = sorted(config.data.iterdir())
    return Batches(paths, config, place)


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(module, "_ECHO_AFTER", 2)


def firsts(found):
    return [int(batch["index"][0]) for batch in found]


def test_without_echoes_every_batch_is_new(make_config):
    found = list(of(make_config(steps=4, batch=2)).from_step(1))
    assert firsts(found) == [2, 4, 6]
    assert [batch["number"] for batch in found] == [1, 2, 3]


def test_an_echo_comes_some_batches_later(make_config, soon):
    config = make_config(steps=10, echoes=2)
    batches = of(config)
    found = list(batches.from_step(0))
    assert firsts(found) == [0, 0, 1, 1, 2, 0, 3, 1, 4, 2]  # until there is an earlier one, the same again
    assert firsts(batches.from_step(5)) == firsts(found)[5:]
    assert sum(int(batch["skipped"].sum()) for batch in found) == 0


def test_each_process_echoes_its_own(make_config, soon):
    config = make_config(steps=5, echoes=2)
    mine, theirs = (firsts(of(config, process, 2).from_step(0)) for process in range(2))
    assert mine == [0, 0, 2, 2, 4]
    assert theirs == [1, 1, 3, 3, 5]


def test_broken_photos_count_once(make_config, soon, monkeypatch):
    batches = of(make_config(steps=10, echoes=2))
    plain = batches.dataset._choose
    monkeypatch.setattr(batches.dataset, "_choose", lambda index: (*plain(index)[:2], 1))
    assert sum(int(batch["skipped"].sum()) for batch in batches.from_step(0)) == 5


def test_an_echo_is_the_same_crop_turned_or_mirrored_with_its_degraded_version(make_config, soon):
    batches = of(make_config(steps=30, echoes=2))
    same, differ = [], 0
    for batch in batches.from_step(0):
        shown = batches.on_device(batch)
        ways = [(turns, mirror) for turns in range(4) for mirror in (False, True)]
        fits = [
            way for way in ways
            if all(torch.equal(module._turned(batch[key], *way), shown[key]) for key in ("gt", "lq"))
        ]  # fmt: skip
        same.append(len(fits))
        differ += fits != [(0, False)]
    assert same == [1] * 30
    assert differ > 15


def test_a_run_with_echoes_that_stops_and_resumes_ends_the_same(make_config, tmp_path, one_thread, soon):
    ends = []
    for name, stops in (("whole", ()), ("halted", (2, 5))):
        changes = {"steps": 7, "checkpoint_every": 1, "echoes": 3, "out": tmp_path / name}
        for stop in stops:
            with pytest.raises(InterruptedError):
                train(make_config(**changes), resume=True, progress=lambda step, *_, stop=stop: _halt(step, stop))
        trainer = Trainer(make_config(**changes), resume=bool(stops))
        trainer.run(lambda *_: None)
        ends.append(trainer.model.backbone.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def _halt(step, at):
    if step == at:
        raise InterruptedError
