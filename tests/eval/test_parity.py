"""The metrics against values that others published of pictures that they published.

The pictures are not ours to ship: TUDSR_PARITY names a folder (else ../shared/data/parity beside the checkout) with
clones of their repositories on GitHub, dingkeyan93/DISTS, chaofengc/IQA-PyTorch and cswry/OSEDiff; what is not there is
skipped. Our copies of VGG16 and AlexNet are of half precision, which moves LPIPS and DISTS by up to 1e-4.
"""

import os
from pathlib import Path

import pytest
from torch import Tensor

from tudsr.eval.metrics import METRICS
from tudsr.image import read_picture
from tudsr.perceptual.weights import find_weights

SHARED = Path(__file__).parents[3] / "shared"
PARITY = Path(os.environ.get("TUDSR_PARITY", SHARED / "data" / "parity"))
pytestmark = pytest.mark.weights


def published(*parts: str) -> Path:
    """Return a folder of published pictures, or skip."""
    folder = PARITY.joinpath(*parts)
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    if find_weights("vgg16") is None or find_weights("alexnet") is None:
        pytest.skip("VGG16's and AlexNet's weights are not on this machine")
    return folder


def pixels(path: Path) -> Tensor:
    return read_picture(path).pixels


def test_dists_of_its_authors_pair():
    """Their DISTS_pt.py ends in this figure; no rounding of ours: half of its last digit, and 1e-4."""
    pair = published("DISTS", "images")
    value = METRICS["dists"].load(None)(pixels(pair / "r1.png"), pixels(pair / "r0.png"))
    assert value == pytest.approx(0.3347, abs=1.5e-4)


# ResultsCalibra/results_official.csv of IQA-PyTorch: values of the metric authors' own code on five pairs of TID2013
OFFICIAL = {
    "I03": {"dists": 0.4742, "lpips": 0.7237, "niqe": 15.7536},
    "I04": {"dists": 0.1424, "lpips": 0.2572, "niqe": 3.6549},
    "I06": {"dists": 0.06825, "lpips": 0.05079, "niqe": 3.2355},
    "I08": {"dists": 0.02867, "lpips": 0.05205, "niqe": 3.1840},
    "I19": {"dists": 0.3123, "lpips": 0.4253, "niqe": 8.6352},
}
# NIQE: MATLAB's own resizing; on I19 every port that the table lists is 5 % off MATLAB too (pyiqa's gives 9.07)
TOLERANCES = {
    "dists": lambda name: {"abs": 1.5e-4},
    "lpips": lambda name: {"abs": 1.5e-4},
    "niqe": lambda name: {"rel": 0.05 if name == "I19" else 0.006},
}


@pytest.mark.slow
@pytest.mark.parametrize("metric", TOLERANCES)
def test_the_metric_authors_own_values_come_out(metric):
    folder = published("IQA-PyTorch", "ResultsCalibra")
    fn = METRICS[metric].load(None)
    for name, values in OFFICIAL.items():
        sr, gt = (pixels(folder / part / f"{name}.bmp") for part in ("dist_dir", "ref_dir"))
        assert fn(sr, gt) == pytest.approx(values[metric], **TOLERANCES[metric](name)), name


# Wu et al. 2024, «One-Step Effective Diffusion Network», table 1, RealSR; NIQE within half a percent
OSEDIFF = {
    "psnr": (25.15, 0.005),
    "ssim_pyiqa": (0.7341, 1e-4),
    "lpips": (0.2921, 1e-4),
    "dists": (0.2128, 1e-4),
    "niqe": (5.6476, 0.03),
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("metric", OSEDIFF)
def test_the_means_of_a_papers_row_come_out(metric):
    folder = published("OSEDiff", "preset", "datasets", "benchmark_realsr")
    outputs = sorted((folder / "results_osediff").glob("*.png"))
    assert len(outputs) == 100
    fn = METRICS[metric].load(None)
    values = [fn(pixels(path), pixels(folder / "test_HR" / path.name)) for path in outputs]
    mean, tolerance = OSEDIFF[metric]
    assert sum(values) / len(values) == pytest.approx(mean, abs=tolerance)
