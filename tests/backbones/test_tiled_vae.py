"""The autoencoder by strips against diffusers' own over the whole picture."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch.overrides import TorchFunctionMode

from tudsr.backbones.activations import reuse_maps
from tudsr.backbones.strips import RowMap, pooled
from tudsr.backbones.tiled_vae import TiledVAE
from tudsr.cost import LiveBytes
from tudsr.errors import InputError

WIDTHS = {"one": (16,), "two": (16, 32), "four": (8, 16, 16, 32)}


def small(kind: str = "two", **options) -> AutoencoderKL:
    torch.manual_seed(3)
    widths = WIDTHS[kind]
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths, layers_per_block=2, norm_num_groups=8, latent_channels=4, **options,
    )  # fmt: skip
    with torch.no_grad():  # norms that are not the identity
        for name, parameter in vae.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return vae.eval().requires_grad_(False)


def picture(height: int = 88, width: int = 56, batch: int = 1) -> torch.Tensor:
    """Return a picture whose parts differ in mean and contrast, as no tile's statistics are the whole's."""
    rng = torch.Generator().manual_seed(height)
    ramp = torch.linspace(-0.7, 0.7, height).view(-1, 1)
    return (torch.randn(batch, 3, height, width, generator=rng) * (ramp.abs() * 0.4) + ramp).clamp(-1, 1)


def both_ways(vae, x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        encoded = vae.encode(x)
        mode = encoded.latents if isinstance(vae, TiledVAE) else encoded.latent_dist.mode()
        return mode, vae.decode(z).sample


def latent(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vae.encode(x).latent_dist.mode()


@pytest.mark.parametrize("elements", [1, 1000, 13_001, 2**30], ids=["rows", "few", "odd", "whole"])
@pytest.mark.parametrize("kind", sorted(WIDTHS))
def test_it_is_the_untiled_one(kind, elements):
    vae, x = small(kind), picture()
    z = latent(vae, x)
    wanted = both_ways(vae, x, z)
    found = both_ways(TiledVAE(vae, elements), x, z)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-5 * max(1, other.abs().max())


class NoFloat64(TorchFunctionMode):
    """As on MPS, which has no float64: only what was brought to the CPU may become that."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.double:
            assert getattr(args[0], "brought", False)
        found = function(*args, **(kwargs or {}))
        if function is torch.Tensor.cpu:
            found.brought = True
        return found


def test_statistics_become_float64_on_the_cpu():
    vae, x = small(), picture()
    with NoFloat64(), torch.no_grad():
        TiledVAE(vae, 999).encode(x)


NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}


@pytest.mark.parametrize("options", [{"mid_block_add_attention": False}, NO_QUANT], ids=["attention", "quant_conv"])
def test_designs_with_parts_left_out(options):
    vae, x = small(**options), picture(batch=2)
    z = latent(vae, x)
    for one, other in zip(both_ways(TiledVAE(vae, 999), x, z), both_ways(vae, x, z), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_statistics_of_each_strip_alone_would_be_far_off():
    """What windows have: so that the tests above would notice."""
    vae, x = small(), picture()
    z = latent(vae, x)
    halves = torch.cat([latent(vae, half) for half in x.split(44, dim=2)], dim=2)
    assert (halves - z).abs().max() > 0.02


@pytest.mark.parametrize("elements", [3000, 13_001])
def test_in_bfloat16_it_is_no_further_from_float32_than_the_untiled_one(elements):
    vae, x = small("four"), picture(144, 96)
    z = latent(vae, x)
    truth = both_ways(vae, x, z)
    half = copy.deepcopy(vae).bfloat16()
    reuse_maps(half)
    plain = both_ways(half, x.bfloat16(), z.bfloat16())
    found = both_ways(TiledVAE(half, elements), x.bfloat16(), z.bfloat16())
    for ours, theirs, wanted in zip(found, plain, truth, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - wanted).norm() <= 1.1 * (theirs.float() - wanted).norm()


def test_memory_is_less_than_half_and_strips_come_out_of_it_soon():
    """Tensors alive at once while a picture is decoded and encoded, weights left out."""
    vae, x = small("four"), picture(256, 256)
    z = latent(vae, x)
    most = {}
    for name, net in (("whole", vae), ("strips", TiledVAE(vae, 2**12))):
        for way, run in (("encode", lambda net=net: net.encode(x)), ("decode", lambda net=net: net.decode(z))):
            with torch.no_grad(), LiveBytes(vae) as live:
                run()
            most[name, way] = live.most
    assert most["strips", "decode"] < 0.55 * most["whole", "decode"]
    assert most["strips", "encode"] < 0.75 * most["whole", "encode"]


def test_pooling_is_the_variance_of_all():
    x = torch.randn(3, 5, 40, 7, generator=torch.Generator().manual_seed(0)).double() * 3 + 2
    whole = RowMap()
    for strip in x.split([1, 20, 6, 13], dim=2):
        whole.append(strip, x.device)
    mean, var = whole.mean_and_var()
    torch.testing.assert_close(mean, x.mean((2, 3)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(var, x.var((2, 3), unbiased=False), rtol=1e-12, atol=1e-12)
    alone = torch.tensor([[1.0], [5.0]]), torch.tensor([[0.0], [0.0]]), torch.tensor([[0.75], [0.25]])
    assert [float(one) for one in pooled(*alone)] == [2.0, 3.0]


def test_what_it_cannot_do_is_said():
    with pytest.raises(InputError, match="this model has AutoencoderTiny"):
        TiledVAE(AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4))
    net = TiledVAE(small())
    with pytest.raises(InputError, match=r"2056x16 px; .* up to 2048 px"):
        net.encode(torch.zeros(1, 3, 16, 2056))
    with pytest.raises(InputError, match="16x2056"):
        net.decode(torch.zeros(1, 4, 1028, 8))
