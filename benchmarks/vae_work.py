"""The tables of docs/benchmarks/vae-work.md: work and memory of sd21's parts, counted without a single number.

python benchmarks/vae_work.py
"""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from tudsr.backbones import Backbone, blueprint
from tudsr.backbones.tiled_vae import TiledVAE
from tudsr.config import ModelConfig
from tudsr.cost import META, LiveBytes, window_cost
from tudsr.folder import Model
from tudsr.windows import plan_windows

SIDE_PX, PICTURE_PX = 512, 2048
HALOS_PX = (24, 16, 8)
_TERA = 1e12
_T = 200


def shapes(small_vae: bool = False) -> Model:
    """Return sd21 on the meta device, with its own autoencoder or with the shapes of madebyollin/taesd."""
    plan = blueprint("sd21")
    with META:
        backbone, _ = plan.build()
        if small_vae:
            backbone.vae = AutoencoderTiny()  # its defaults are taesd's
    return Model(ModelConfig.parse(plan.settings, "sd21"), backbone.eval(), scheduler=None)


@torch.no_grad()
def flop(run: Callable[[Tensor], object], *shape: int) -> int:
    """Return the FLOPs of a function of one tensor."""
    with FlopCounterMode(display=False) as counter:
        run(torch.empty(1, *shape, device=META))
    return counter.get_total_flops()


def parts(net: Backbone, side: int) -> dict[str, int]:
    """Return the FLOPs of a window's three parts."""
    f = side // 8
    return {
        "encoder": flop(net.encode, 3, side, side),
        "UNet": flop(lambda z: net.predict(z, _T), 4, f, f),
        "decoder": flop(net.decode, 4, f, f),
    }


def attention_flop(vae: AutoencoderKL, side: int) -> int:
    """Return the FLOPs of one attention in the autoencoder's middle that grow with the square of the area."""
    return 2 * 2 * (side // 8) ** 4 * vae.config.block_out_channels[-1]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return a table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]


def parts_table() -> list[str]:
    """Return the work of one window, by part, with both autoencoders."""
    rows = []
    for name, small in (("AutoencoderKL (sd21's own)", False), ("AutoencoderTiny (taesd)", True)):
        model = shapes(small)
        found = parts(model.backbone, SIDE_PX)
        total = window_cost(model, SIDE_PX, SIDE_PX).flop
        assert total == sum(found.values())
        rows.append((name, *(f"{one / _TERA:.3f}" for one in (*found.values(), total))))
    return table(("autoencoder", "encoder", "UNet", "decoder", "window"), rows)


def halo_table() -> list[str]:
    """Return what decoding only a window's own cell with a halo would save at 2048²."""
    model = shapes()
    grid = plan_windows(PICTURE_PX, PICTURE_PX, model.config.windows)
    count, found = len(grid.ys), parts(model.backbone, grid.window_h)
    total, cell = sum(found.values()), PICTURE_PX // count
    rows = []
    for halo in HALOS_PX:
        sides = [cell + halo * (2 if 0 < i < count - 1 else 1) for i in range(count)]
        area = sum(sides) ** 2 / (count * grid.window_h) ** 2  # of what is decoded now
        saved = (1 - area) * found["decoder"] / total
        rows.append((f"{halo} px", f"{sides[1]}", f"{area:.1%}", f"{saved:.1%}"))
    head = ("halo", f"side decoded, of {grid.window_h} px ({count} × {count})", "decoder's work", "saved of all")
    return table(head, rows)


def whole_table() -> list[str]:
    """Return the work of the autoencoder over the whole picture beside that by windows, the UNet left out."""
    model = shapes()
    net, rows = model.backbone, []
    for side in (PICTURE_PX // 4, PICTURE_PX // 2, PICTURE_PX):
        grid = plan_windows(side, side, model.config.windows)
        count = len(grid.windows)
        by_windows = count * sum(n for part, n in parts(net, grid.window_h).items() if part != "UNet")
        # Convolutions take the same for every pixel; the rest is attention, once in each half.
        one = parts(net, SIDE_PX)
        convolutions = one["encoder"] + one["decoder"] - 2 * attention_flop(net.vae, SIDE_PX)
        attention = 2 * attention_flop(net.vae, side)
        whole = convolutions * (side / SIDE_PX) ** 2 + attention
        figures = (by_windows, whole, attention)
        rows.append((f"{side}²", f"{count} of {grid.window_h}²", *(f"{one / _TERA:.1f}" for one in figures)))
    return table(("picture", "windows", "by windows", "whole", "of which attention"), rows)


@torch.no_grad()
def whole_memory_table() -> list[str]:
    """Return the bytes of tensors alive at once while the autoencoder sees the whole picture, weights left out."""
    rows = []
    for side in (PICTURE_PX // 4, PICTURE_PX // 2, PICTURE_PX):
        figures = []
        for dtype in (torch.float32, torch.bfloat16):
            net = TiledVAE(nn.Module.to(shapes().backbone.vae, dtype))
            runs = (net.encode, (3, side, side)), (net.decode, (4, side // 8, side // 8))
            for run, shape in runs:  # on meta alone nothing could go from one device to another
                with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes(net) as live:
                    run(torch.empty(1, *shape, device=META, dtype=dtype))
                figures.append(f"{live.most / 1e6:,.0f}")
        rows.append((f"{side}²", *figures))
    return table(("picture", "float32: encode", "decode", "bfloat16: encode", "decode"), rows)


def tables() -> list[list[str]]:
    """Return all tables of the page."""
    return [parts_table(), halo_table(), whole_table(), whole_memory_table()]


if __name__ == "__main__":
    print("\n\n".join("\n".join(one) for one in tables()))
