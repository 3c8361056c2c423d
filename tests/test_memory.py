"""Memory as the user's number: what is needed is counted, and what is granted is enough or refused."""

import math
import platform
from bisect import bisect_left
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel

from tudsr import machine
from tudsr import memory as memory_module
from tudsr.backbones import Backbone, blueprint
from tudsr.config import ModelConfig, WindowRange
from tudsr.cost import (
    META,
    meta_model,
    pictures_bytes,
    rows_bytes,
    spooled_bytes,
    window_bytes,
    window_cost,
)
from tudsr.errors import InputError
from tudsr.folder import Model, load_model
from tudsr.machine import free_bytes, resident_bytes, sharing_memory
from tudsr.memory import Need, _window_bound, fit, has_room
from tudsr.planner import plan_passes
from tudsr.request import Request, until_it_fits

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


@pytest.mark.parametrize(
    ("budget", "said"), [(1, "1 B"), (999, "999 B"), (64_000, "64 kB"), (MB, "1 MB"), (20 * MB, "20 MB")]
)
def test_a_small_budget_is_said_in_small_units(need, budget, said):
    with pytest.raises(InputError, match=f"does not fit into {said} of memory; "):
        fit(need(20, 30, 4), Request(scale=4), budget)


def test_windows_by_hand_do_not_shrink(need):
    with pytest.raises(InputError, match="is the least"):
        fit(need(200, 200, 4), Request(scale=4, tile_px=64), 501 * MB)


def test_a_gpus_budget_is_about_windows_and_the_hosts_about_pictures(need):
    wish, request = need(2000, 3000, 4, batch=2), Request(scale=4)
    found = fit(wish, request, 10**12, host=10**12)
    assert set(found.parts) == {"base", "merged weights", "windows", "pictures", "rows"}
    assert (found.on_disk, found.on_host) == (False, False)
    for budget in (found.peak_bytes - 1, 10**12):  # on the host only where the GPU has no room for single windows more
        beside = fit(replace(wish, batch=1), request, budget, host=10**12)
        assert (beside.batch, beside.on_host) == (1, False)
    small = fit(replace(wish, batch=1), request, beside.peak_bytes - 1, host=10**12)
    assert (small.on_host, set(small.parts)) == (True, {"base", "merged weights", "windows"})
    assert small.applied(request).on_host
    assert fit(wish, request, 10**12, host=100 * MB).on_disk
    single = fit(need(2000, 3000, 4), request, 10**12, host=10**12)
    assert found.parts["windows"] == 2 * single.parts["windows"]


def test_on_a_gpu_weights_are_read_again_before_the_disk_and_windows_shrink_last(need):
    wish, request = need(2000, 3000, 4, batch=4, rereads=True), Request(scale=4)
    for host, on_disk in ((10**12, False), (100 * MB, True)):
        found, seen = fit(wish, request, 10**12, host=host), []
        while found.most_px is None:
            if found.on_host:
                seen.append((found.batch, found.low_memory, found.on_disk))
            found = fit(wish, request, found.peak_bytes - 1, host=host)
        assert seen == [(batch, low, on_disk) for batch, low in ((4, False), (2, False), (1, False), (1, True))]
        assert (found.batch, found.low_memory, found.on_disk, found.most_px) == (1, True, on_disk, 32)


def test_what_an_earlier_run_chose_is_kept_where_it_fits(need):
    request = Request(scale=4)
    begun = request.model_copy(update={"most_px": 32, "batch": 64})
    wish = need(2000, 3000, 4, batch=1, rereads=True, begun=begun)
    plenty = fit(wish, request, 10**12)
    assert (plenty.on_disk, plenty.batch, plenty.most_px, plenty.low_memory) == (True, 64, 32, False)
    near = fit(wish, request, plenty.peak_bytes - 5 * MB)  # a process holds more, or less, at each start
    assert (near.batch, near.most_px, near.peak_bytes) == (64, 32, plenty.peak_bytes)
    frugal = fit(wish, request, plenty.peak_bytes - 8 * MB - 1)
    assert (frugal.batch, frugal.most_px, frugal.low_memory) == (64, 32, True)
    too_little = frugal.peak_bytes - 8 * MB - 1
    assert fit(wish, request, too_little).batch == 1


def test_reading_the_input_counts_where_the_work_takes_less(need):
    request = Request(scale=4)
    streams, decoded = (need(2000, 3000, 4, decode_bytes=count) for count in (0, 900 * MB))
    spooled, large = (fit(wish, request, 2000 * MB) for wish in (streams, decoded))
    assert spooled.on_disk
    assert large.on_disk
    work = sum(large.parts[name] for name in ("merged weights", "windows", "rows"))
    assert large.peak_bytes == large.parts["base"] + 900 * MB + large.parts["slack"]
    assert work < 900 * MB
    assert spooled.peak_bytes == large.peak_bytes - large.parts["pictures"]
    with pytest.raises(InputError, match="is the least"):
        fit(decoded, request, 1400 * MB)
    alone = fit(need(100, 100, 1, decode_bytes=900 * MB), Request(scale=1), 10**12)
    assert alone.parts["pictures"] == 900 * MB + 10_000 * 12


def test_fewer_windows_run_together_before_anything_else_changes(need):
    wish, request = need(2000, 3000, 4, batch=4), Request(scale=4)
    found, seen = fit(wish, request, 10**12), []
    while found.most_px is None:
        seen.append((found.batch, found.on_disk))
        found = fit(wish, request, found.peak_bytes - 1)
    assert seen == [(4, False), (2, False), (1, False), (1, True)]
    assert found.batch == 1
    assert found.applied(request).batch == 1


def test_batches_that_wait_for_rays_workers_take_memory_too(need, model_folder, monkeypatch):
    request = Request(scale=4)
    for batch in (1, 4):
        alone = fit(need(300, 300, 4, batch=batch), request, 10**12)
        waits = need(300, 300, 4, batch=batch, waiting=7)
        found = fit(waits, request, 10**12)
        largest = max(one.grid.window_h * one.grid.window_w for one in found.passes)
        assert found.parts == alone.parts | {"windows": alone.parts["windows"] + 7 * batch * largest * 3 * 4}
        assert not alone.on_disk
        assert fit(waits, request, alone.peak_bytes) != found
    monkeypatch.setattr(memory_module, "free_bytes", lambda where: 10**9)
    model, plan = load_model(model_folder, torch.device("cpu"), torch.float32), plan_passes(70, 70, scale=4)
    assert has_room(model, (70, 70), plan, request, 3)
    assert not has_room(model, (70, 70), plan, request, 3, waiting=10**5)


def test_without_a_disk_only_windows_shrink(need):
    wish, request = need(300, 300, 4, spool=False), Request(scale=4)
    whole = fit(wish, request, 10**12)
    less = fit(wish, request, whole.peak_bytes - 1)
    assert (less.on_disk, less.most_px) == (False, 32)


def test_a_window_that_overflows_in_float16_is_counted_in_float32(need, model_folder):
    """By itself, with the larger part's weights, where the batch takes less."""
    halves = {dtype: meta_model(model_folder, dtype) for dtype in (torch.bfloat16, torch.float16)}
    for batch in (1, 64):
        wish = need(2000, 3000, 4, batch=batch)
        plain, found = (fit(replace(wish, shapes=one), Request(scale=4), 10**12) for one in halves.values())
        live = max(one.window.live_bytes for one in found.passes)
        weights = 4 * sum(weight.numel() for weight in wish.shapes.backbone.unet.parameters())
        assert plain.parts["windows"] == batch * 2 * live
        assert found.parts["windows"] == max(batch * 2 * live, 3 * live + weights)
        assert (found.parts["windows"] > plain.parts["windows"]) == (batch == 1)


def test_pictures_and_rows_by_hand():
    plan = plan_passes(10, 20, scale=8)  # to 40x80, then 80x160
    assert pictures_bytes(10, 20, plan) == 12_800 * (12 + 4 + 3 + 4) + 200 * 12
    wide = plan_passes(4000, 4000, scale=1)
    assert pictures_bytes(4000, 4000, wide) == 16_000_000 * (12 + 23)
    assert pictures_bytes(4000, 4000, wide, color="adain") == 3 * 16_000_000 * 12
    assert spooled_bytes(10, 20, plan, 6) == (200 + 2 * 12_800) * 6 + 3200 * 12


def test_rows_grow_with_the_width_alone(need):
    one, two = (fit(need(h, 1000, 4), Request(scale=4), 10**12).passes[-1].grid for h in (1000, 2000))
    assert rows_bytes(two) == pytest.approx(rows_bytes(one), rel=0.01)
    assert rows_bytes(one) > 64 * 4000 * 12


def test_the_machine_is_asked(monkeypatch):
    assert 0 < resident_bytes() < 10**12
    monkeypatch.setattr(machine, "_container_bytes", lambda: 1000)
    assert free_bytes(torch.device("cpu")) == 850


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of its way to keep freed memory")
def test_what_the_c_library_keeps_of_earlier_pictures_is_not_held():
    """Else the second picture of a folder would be counted on top of the first one's leavings, and refused."""
    blocks = [torch.ones(16_000) for _ in range(3000)]  # 192 MB in pieces that are not mapped one by one
    last = blocks[-1]
    del blocks
    kept = resident_bytes()
    assert machine.held_bytes(torch.device("cpu")) < kept - 100 * MB
    assert last.sum() == 16_000


def test_what_earlier_pictures_left_is_of_the_slack_and_more_is_held(monkeypatch):
    now = iter((500, 560, 520, 700, 640))
    monkeypatch.setattr(machine, "held_bytes", lambda _: next(now))
    held = machine.Held(slack=96)
    assert [held.now(torch.device("cpu")) for _ in range(5)] == [500, 500, 500, 604, 544]
    now = iter((500, 560))
    held = machine.Held(slack=96)
    assert [held.now(torch.device("cuda")) for _ in range(2)] == [500, 560]


def test_processes_that_share_a_machine_get_equal_parts_whenever_they_ask(monkeypatch):
    """Of 1000 bytes in all, 850 are for four; what the others hold already is of their parts, not gone."""
    held = {"own": 0, "a": 0, "b": 0}
    monkeypatch.setattr(machine, "_private_bytes", lambda process: held.get(process, held["own"]))
    monkeypatch.setattr(machine, "_container_bytes", lambda: 1000 - sum(held.values()))
    with sharing_memory(4, lambda: ["a", "b"]):
        assert free_bytes(torch.device("cpu")) == 212
        held.update(a=212, b=212)
        assert free_bytes(torch.device("cpu")) == 212
        held.update(own=100)
        assert free_bytes(torch.device("cpu")) == 112
        held.update(own=500)
        assert free_bytes(torch.device("cpu")) == 0
    assert free_bytes(torch.device("cpu")) == int(76 * 0.85)


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"memory.max": "9000", "memory.current": "8000", "memory.stat": "anon 900\ninactive_file 7000"}, 8000),
        ({"memory.max": "9000", "memory.current": "9500", "memory.stat": "anon 900"}, 0),
        ({"memory.max": "max", "memory.current": "8000", "memory.stat": "inactive_file 7000"}, math.inf),
        (
            {
                "memory/memory.limit_in_bytes": "9000", "memory/memory.usage_in_bytes": "8000",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 500",
            },
            1500,
        ),
        ({}, math.inf),
    ],
)  # fmt: skip
def test_a_containers_limit_is_known_and_cached_files_count_as_free(tmp_path, monkeypatch, files, free):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine._container_bytes() == free


@pytest.mark.parametrize(
    ("own", "folder", "names"),
    [
        ("0::/slice/job/step", "", ("memory.max", "memory.current", "inactive_file")),
        (
            "9:cpu,memory:/slice/job/step\n0::/other",
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_the_least_of_all_groups_that_a_process_lies_in_counts(own, folder, names, tmp_path, monkeypatch):
    """A cluster's job has its limit above the step's own group and below the machine's."""
    (tmp_path / "own").write_text(own + "\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")
    for group, limit in ((".", "9000"), ("slice/job", "4000"), ("slice/job/step", "7000")):
        (tmp_path / folder / group).mkdir(parents=True, exist_ok=True)
        for name, text in zip((*names[:2], "memory.stat"), (limit, "1500", f"{names[2]} 300"), strict=True):
            (tmp_path / folder / group / name).write_text(text + "\n")
    assert machine._container_bytes() == 4000 - 1500 + 300


def test_when_memory_runs_out_less_is_done_at_once_and_that_is_said_once():
    own = WindowRange(min_px=64, max_px=1024, stride_px=16, overlap_px=32)
    tried, said = [], []

    def run(request):
        tried.append((request.batch, request.most_px))
        if len(tried) < 5:
            raise (MemoryError() if len(tried) % 2 else RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        return "done"

    def lessened(request):
        return request.lessened(own, request.most_px or own.max_px, on_gpu=False)

    assert until_it_fits(run, Request(scale=2, batch=4), lessened, said.append) == "done"
    assert tried == [(4, None), (2, None), (1, None), (1, 512), (1, 256)]
    assert len(said) == 1

    def never(request):
        tried.append(request.most_px)
        raise torch.OutOfMemoryError("CUDA out of memory")

    tried.clear()
    with pytest.raises(torch.OutOfMemoryError):
        until_it_fits(never, Request(scale=2), lessened, said.append)
    assert tried == [None, 512, 256, 128, 64]
    tried.clear()
    own = WindowRange(min_px=512, max_px=640, stride_px=16, overlap_px=64)  # half is too small: the smallest then
    with pytest.raises(torch.OutOfMemoryError):
        until_it_fits(never, Request(scale=2), lessened, said.append)
    assert tried == [None, 512]
    with pytest.raises(RuntimeError, match="shapes"):
        until_it_fits(lambda _: (_ for _ in ()).throw(RuntimeError("shapes")), Request(scale=2), lessened, said.append)


def test_pictures_leave_the_gpu_before_windows_shrink_from_those_in_use():
    own = WindowRange(min_px=64, max_px=1024, stride_px=16, overlap_px=32)
    host = Request(scale=2, batch=1).lessened(own, 256, on_gpu=True)
    assert (host.on_host, host.most_px) == (True, None)
    assert host.lessened(own, 256, on_gpu=True).most_px == 128
    assert host.lessened(own, 64, on_gpu=True) is None


@pytest.mark.parametrize(
    ("row", "kept"),
    [({"within": True}, True), ({"within": False, "peak_gpu_mb": 5000.0}, False), ({"refused": "… least"}, False)],
)
def test_the_benchmark_tells_a_budget_that_was_not_kept_to(monkeypatch, row, kept):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import memory

    assert (memory.broken([{"within": True}, row]) == []) is kept
    script = (Path(__file__).parents[1] / "scripts" / "gpu" / "bench_memory.sh").read_text()
    assert "memory.py --strict" in script
    assert script.rstrip().endswith('exit "$failed"')


@pytest.mark.parametrize("name", ["small", "tiny", "sd21", "taesd"])
def test_a_windows_bound_is_above_what_is_counted_and_near_it(model_folder, name):
    if name in ("sd21", "taesd"):
        plan = blueprint("sd21")
        with META:
            vae = AutoencoderTiny() if name == "taesd" else plan.vae()
            unet, vae = (net.to(torch.bfloat16) for net in (UNet2DConditionModel(**plan.unet), vae))
            prompt = torch.empty(1, 77, 1024, dtype=torch.bfloat16)
            net = Backbone(unet, vae, torch.empty(1000), "epsilon", prompt).eval()
        shapes = Model(ModelConfig.parse(plan.settings, name), net, scheduler=None)
    else:
        shapes = meta_model(model_folder if name == "small" else name, torch.bfloat16)
    side = shapes.config.windows.min_px
    counted = window_bytes(window_cost(shapes, side, side), torch.bfloat16)
    bound = _window_bound(shapes.backbone) * side**2
    assert counted < bound < 8 * counted
    if name == "small":  # a loaded model has adapters too, which run merged
        loaded = load_model(model_folder, torch.device("cpu"), torch.bfloat16)
        assert _window_bound(loaded.backbone) * side**2 == bound


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_room_is_asked_for_pictures_windows_and_weights(model_folder, monkeypatch, device):
    model = load_model(model_folder, torch.device("cpu"), torch.float32)
    free = {"cpu": 10**9, "cuda": 10**9}
    monkeypatch.setattr(memory_module, "free_bytes", lambda where: free[where.type])
    monkeypatch.setattr(type(model.backbone), "device", torch.device(device))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    request = Request(scale=4)
    plan = plan_passes(70, 70, scale=4)
    assert has_room(model, (70, 70), plan, request, 3)
    assert not has_room(model, (70, 70), plan, request.model_copy(update={"batch": 1000}), 3)
    free[device] = 3 * MB
    assert not has_room(model, (70, 70), plan, request, 3)
    free["cuda"], free["cpu"] = 10**9, 3 * MB
    assert not has_room(model, (70, 70), plan, request, 3)


def test_room_is_asked_for_what_overflows_in_float16(model_folder, monkeypatch):
    def least(dtype):
        model = load_model(model_folder, torch.device("cpu"), dtype)

        def roomy(free):
            monkeypatch.setattr(memory_module, "free_bytes", lambda where: free)
            return has_room(model, (70, 70), plan_passes(70, 70, scale=4), Request(scale=4), 3)

        return bisect_left(range(10**9), True, key=roomy), sum(4 * p.numel() for p in model.backbone.unet.parameters())

    (half, weights), (plain, _) = map(least, (torch.float16, torch.bfloat16))
    assert half > plain + 2 * weights
