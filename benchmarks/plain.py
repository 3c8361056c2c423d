"""The plain way to enlarge, as a baseline for upscale.py; the same options, the same JSON.

    python benchmarks/plain.py --model tiny --side 256 --scale 8 --runs 5
    python benchmarks/plain.py --model DIR --side 128 --scale 8 --runs 1

float32; windows of 512 px that share 64 px wherever the model's R is 512 px, else the model's own; LoRA beside its
layers as peft runs it; nothing kept from one window to the next.
"""

from dataclasses import replace
from typing import Any

import fresh

_PLAIN_PX, _PLAIN_OVERLAP_PX = 512, 64


class Plain:
    """A pipeline without what makes ours fast."""

    def __init__(self, loaded: Any) -> None:
        self._pipeline, self.model = loaded, loaded.model

    def upscale(self, image: Any, scale: float) -> Any:
        """Enlarge one picture, all of it in memory."""
        import torch

        from tudsr.image import picture_from, picture_like
        from tudsr.request import Request
        from tudsr.stage import Stage, whole_picture

        config, net = self.model.config, self.model.backbone
        fixed = {"tile_px": _PLAIN_PX, "overlap_px": _PLAIN_OVERLAP_PX} if config.r_px == _PLAIN_PX else {}
        request, picture = Request.of({"scale": scale, **fixed}), picture_from(image)
        x = picture.pixels.to(net.device)
        for step in self._pipeline.plan(picture.height, picture.width, request).passes:
            stage = Stage(net, config.t1 if step.stage == 1 else config.t2, f"stage_{step.stage}")
            with torch.no_grad(), stage.active("switched"):
                x = whole_picture(stage, stage.upsample(x, step.height, step.width), self._pipeline.grid(step, request))
        return picture_like(replace(picture, pixels=x.cpu()), image)


def load(model: str, dtype: str) -> Plain:
    """Return a model that `upscale`s the plain way."""
    import tudsr

    return Plain(tudsr.load(model, dtype=dtype))


if __name__ == "__main__":
    fresh.main("plain", __doc__, dtype="fp32")
