"""Two gloo processes against one process on the same batch, in float64."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

WORKER = Path(__file__).with_name("ddp_worker.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_two(settings: Path, out: Path) -> list[dict[str, dict[str, torch.Tensor]]]:
    """Start two processes as torchrun would, and return what each of them saved."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    processes, files = [], [out / f"{rank}.pt" for rank in (0, 1)]
    for rank, file in enumerate(files):
        environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, str(WORKER), str(settings), str(file)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr[-3000:]
    return [torch.load(file, weights_only=True) for file in files]


def one_process(config) -> dict[str, torch.Tensor]:
    spec = importlib.util.spec_from_file_location("ddp_worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    return worker.step_gradients(config)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_two_processes_have_the_gradients_of_one_on_the_same_batch(make_config, tmp_path, one_thread):
    changes = {"stage": 2, "crop_px": 128, "n": 2, "loop": "exact"}
    changes |= {"loss_crop_px": 72, "loss_crops": 2, "jitter_px": 8}
    settings = tmp_path / "settings.json"
    settings.write_text(make_config(**changes, accumulate=1, out=tmp_path / "two").to_json())
    wanted = one_process(make_config(**changes, accumulate=2, out=tmp_path / "one"))
    assert wanted["processes"] == 1
    for found in run_two(settings, tmp_path):
        synced, alone = found["synced"], found["alone"]
        assert synced["processes"] == alone["processes"] == 2
        for net in ("g", "d"):
            assert difference(synced[net], wanted[net]) <= 1e-10, net
            # Without the synchronisation this very comparison fails, by far.
            assert difference(alone[net], wanted[net]) > 1e-3
