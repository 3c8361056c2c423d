"""Memory as the user's number: what is needed is counted, and what is granted is enough or refused."""

import pytest
import torch

from tudsr.config import WindowRange
from tudsr.cost import meta_model
from tudsr.errors import InputError
from tudsr.machine import free_bytes, resident_bytes
from tudsr.memory import Need, fit, pictures_bytes, rows_bytes, spooled_bytes, until_it_fits
from tudsr.planner import plan_passes
from tudsr.request import Request

MB = 10**6


@pytest.fixture
def need(model_folder):
    def make(height, width, scale, **more):
        plan = plan_passes(height, width, scale=scale)
        shapes = meta_model(model_folder, torch.float32)
        return Need(shapes=shapes, size=(height, width), plan=plan, base=500 * MB, **more)

    return make


def test_a_large_budget_changes_nothing(need):
    found = fit(need(100, 100, 4), Request(scale=4), 10**12)
    assert (found.on_disk, found.most_px, found.disk_bytes) == (False, None, 0)
    assert found.parts["pictures"] == pictures_bytes(100, 100, plan_passes(100, 100, scale=4))
    assert found.peak_bytes == sum(found.parts.values())


def test_first_the_pictures_go_to_disk_then_windows_shrink_then_it_is_refused(need):
    wish, request = need(2000, 3000, 4), Request(scale=4)
    whole = fit(wish, request, 10**12)
    spooled = fit(wish, request, whole.peak_bytes - 1)
    assert (spooled.on_disk, spooled.most_px, spooled.parts["pictures"]) == (True, None, 0)
    assert spooled.disk_bytes == spooled_bytes(2000, 3000, wish.plan, 3)
    shrunk = fit(wish, request, spooled.peak_bytes - 1)
    assert shrunk.on_disk
    assert shrunk.most_px == 32
    assert max(one.grid.window_h for one in shrunk.passes) == 32
    assert shrunk.peak_bytes < spooled.peak_bytes
    with pytest.raises(InputError, match=r"3000x2000 → 12000x8000 px .* (\d+) MB is the least") as refused:
        fit(wish, request, shrunk.peak_bytes - 1)
    least = int(str(refused.value).split(" MB is the least")[0].split()[-1])
    assert least == -(-int(1.02 * shrunk.peak_bytes) // MB)
    assert fit(wish, request, least * MB).peak_bytes <= least * MB


def test_windows_by_hand_do_not_shrink(need):
    with pytest.raises(InputError, match="is the least"):
        fit(need(200, 200, 4), Request(scale=4, tile_px=64), 501 * MB)


def test_a_gpus_budget_is_about_windows_and_the_hosts_about_pictures(need):
    wish, request = need(2000, 3000, 4, batch=2), Request(scale=4)
    found = fit(wish, request, 10**12, host=10**12)
    assert set(found.parts) == {"base", "merged weights", "windows"}
    assert not found.on_disk
    assert fit(wish, request, 10**12, host=100 * MB).on_disk
    single = fit(need(2000, 3000, 4), request, 10**12, host=10**12)
    assert found.parts["windows"] == 2 * single.parts["windows"]


def test_fewer_windows_run_together_before_anything_else_changes(need):
    wish, request = need(2000, 3000, 4, batch=4), Request(scale=4)
    found, seen = fit(wish, request, 10**12), []
    while found.most_px is None:
        seen.append((found.batch, found.on_disk))
        found = fit(wish, request, found.peak_bytes - 1)
    assert seen == [(4, False), (2, False), (1, False), (1, True)]
    assert found.batch == 1
    assert found.applied(request).batch == 1


def test_without_a_disk_only_windows_shrink(need):
    wish, request = need(300, 300, 4), Request(scale=4)
    whole = fit(wish, request, 10**12, spool=False)
    less = fit(wish, request, whole.peak_bytes - 1, spool=False)
    assert (less.on_disk, less.most_px) == (False, 32)


def test_pictures_and_rows_by_hand():
    plan = plan_passes(10, 20, scale=8)  # to 40x80, then 80x160
    assert pictures_bytes(10, 20, plan) == 12_800 * (12 + 4 + 3 + 4) + 200 * 12
    wide = plan_passes(4000, 4000, scale=1)
    assert pictures_bytes(4000, 4000, wide) == 16_000_000 * (12 + 23)
    assert pictures_bytes(4000, 4000, wide, color="adain") == 3 * 16_000_000 * 12
    assert spooled_bytes(10, 20, plan, 6) == (200 + 12_800) * 6 + 3200 * 12


def test_rows_grow_with_the_width_alone(need):
    one, two = (fit(need(h, 1000, 4), Request(scale=4), 10**12).passes[-1].grid for h in (1000, 2000))
    assert rows_bytes(two) == pytest.approx(rows_bytes(one), rel=0.01)
    assert rows_bytes(one) > 64 * 4000 * 12


def test_the_machine_is_asked(monkeypatch):
    assert 0 < resident_bytes() < 10**12
    assert 0 < free_bytes(torch.device("cpu")) < 10**14


def test_when_memory_runs_out_less_is_done_at_once_and_that_is_said_once():
    own = WindowRange(min_px=64, max_px=1024, stride_px=16, overlap_px=32)
    tried, said = [], []

    def run(request):
        tried.append((request.batch, request.most_px))
        if len(tried) < 5:
            raise (MemoryError() if len(tried) % 2 else RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        return "done"

    assert until_it_fits(run, Request(scale=2, batch=4), own, said.append) == "done"
    assert tried == [(4, None), (2, None), (1, None), (1, 512), (1, 256)]
    assert len(said) == 1

    def never(request):
        tried.append(request.most_px)
        raise torch.OutOfMemoryError("CUDA out of memory")

    tried.clear()
    with pytest.raises(torch.OutOfMemoryError):
        until_it_fits(never, Request(scale=2), own, said.append)
    assert tried == [None, 512, 256, 128, 64]
    with pytest.raises(RuntimeError, match="shapes"):
        until_it_fits(lambda _: (_ for _ in ()).throw(RuntimeError("shapes")), Request(scale=2), own, said.append)
