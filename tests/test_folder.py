"""Model folders: written, read, refused; diffusers reads their parts too."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from huggingface_hub.errors import HfHubHTTPError

from tudsr import lora
from tudsr.checkpoint import load_tensors, save_tensors, sha256_file, weight_hashes
from tudsr.errors import ConfigError, ModelError
from tudsr.find import find_model, hub_hashes, verify_model
from tudsr.folder import load_model, save_model
from tudsr.stage import Stage, inference

CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"
PROMPT = "prompt.safetensors"
ADAPTER = "adapters/stage_1/pytorch_lora_weights.safetensors"


def output(model, name: str) -> torch.Tensor:
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    stage = Stage(model.backbone, 200, name)
    with inference(stage):
        return stage(x)


def load(folder: Path | str, dtype: torch.dtype = torch.float32):
    return load_model(folder, CPU, dtype)


@pytest.fixture
def copy(model_folder, tmp_path) -> Path:
    """Return a copy of the model that a test may spoil."""
    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


def edit(folder: Path, **values) -> None:
    path = folder / "tudsr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_model_comes_back_as_it_was(make_model, tmp_path, prediction_type):
    model = make_model(seed=3, prediction_type=prediction_type)
    written = save_model(tmp_path, model, torch.float32, {"stage": 1})
    loaded = load(tmp_path)
    for name in lora.STAGES:
        torch.testing.assert_close(output(loaded, name), output(model, name), rtol=0, atol=1e-6)
    assert loaded.config == written == model.config.model_copy(
        update={"sha256": written.sha256, "training": [{"stage": 1}]}
    )  # fmt: skip
    assert loaded.backbone.prediction_type == prediction_type
    assert not any(p.requires_grad for p in loaded.backbone.parameters())
    assert not loaded.backbone.training


def test_the_folder_holds_what_it_promises(model_folder):
    index = json.loads((model_folder / "model_index.json").read_text())
    assert index == {
        "_class_name": "TUDSR",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["tudsr", "SpaceToDepth"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    config = json.loads((model_folder / "tudsr.json").read_text())
    assert set(config["sha256"]) == {UNET, ADAPTER, ADAPTER.replace("1", "2")}
    assert all(sha256_file(model_folder / name) == digest for name, digest in config["sha256"].items())
    assert (config["format_version"], config["t1"], config["t2"], config["lora"]["rank"]) == (1, 200, 50, 4)
    for name, t, span in (("stage_1", 200, [1.0, 4.0]), ("stage_2", 50, [1.0, 2.0])):
        metadata = load_tensors(model_folder / "adapters" / name / lora.FILE_NAME)[1]
        assert (metadata["stage"], metadata["t"], metadata["range"], metadata["prompt"]) == (name, t, span, "")
        targets = sorted(config["lora"]["targets"])  # peft keeps a set: the file has them in one order, always
        assert metadata["lora"] == config["lora"] | {"targets": targets}
        assert metadata["base_unet_sha256"] == config["sha256"][UNET]
        assert metadata["prompt_sha256"] == ""  # there is none


def test_diffusers_itself_reads_unet_adapter_and_scheduler(model_folder):
    unet = UNet2DConditionModel.from_pretrained(model_folder / "unet", local_files_only=True)
    scheduler = DDPMScheduler.from_pretrained(model_folder / "scheduler", local_files_only=True)
    model = load(model_folder)
    z = torch.randn(1, 48, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), lora.merged(model.backbone.unet, None):
        torch.testing.assert_close(unet(z, 200, None).sample, model.backbone.predict(z, 200), rtol=0, atol=1e-5)
    unet.load_lora_adapter(model_folder / "adapters" / "stage_2", prefix="unet", weight_name=lora.FILE_NAME)
    with torch.no_grad(), lora.merged(model.backbone.unet, "stage_2"):
        torch.testing.assert_close(unet(z, 50, None).sample, model.backbone.predict(z, 50), rtol=0, atol=1e-5)
    assert torch.equal(scheduler.alphas_cumprod, model.backbone.alphas_cumprod)


def test_an_autoencoder_with_weights_and_a_prompt(make_model, tmp_path):
    model = make_model()
    torch.manual_seed(0)
    model.backbone.vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=48)
    model.backbone.prompt_embeds = torch.randn(1, 3, 5)
    config = save_model(tmp_path, model, torch.float32)
    for name in lora.STAGES:
        metadata = load_tensors(tmp_path / "adapters" / name / lora.FILE_NAME)[1]
        assert metadata["prompt_sha256"] == config.sha256["prompt.safetensors"] == sha256_file(tmp_path / PROMPT)
    loaded = load(tmp_path, torch.bfloat16).backbone
    assert isinstance(loaded.vae, AutoencoderKL)
    assert loaded.vae.dtype == loaded.dtype == loaded.prompt_embeds.dtype == torch.bfloat16
    assert torch.equal(loaded.prompt_embeds, model.backbone.prompt_embeds.bfloat16())
    assert {p.dtype for p in lora.parameters(loaded.unet, "stage_1")} == {torch.float32}
    assert torch.equal(loaded.vae.decoder.conv_in.weight, model.backbone.vae.decoder.conv_in.weight.bfloat16())


@pytest.fixture
def with_autoencoder(make_model, tmp_path) -> Path:
    """Return the folder of a model whose autoencoder has weights and attention, with a prompt."""
    model = make_model()
    model.backbone.vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=48)
    model.backbone.prompt_embeds = torch.randn(1, 3, 5)
    save_model(tmp_path / "m", model, torch.float32)
    return tmp_path / "m"


def weights(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def test_weights_are_not_views_of_their_files(with_autoencoder):
    """Pages of a mapped file count as memory, beside each copy that is made of them."""
    net = load(with_autoencoder).backbone
    assert all(tensor.untyped_storage().resizable() for tensor in (*net.parameters(), *net.buffers()))
    four = [weight for weight in net.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in four)
    maps = Path("/proc/self/maps")
    assert not maps.is_file() or str(with_autoencoder) not in maps.read_text()
    for part in ("unet", "vae"):
        saved = load_tensors(with_autoencoder / part / "diffusion_pytorch_model.safetensors")[0]
        found = {key.replace(".base_layer.", "."): value for key, value in getattr(net, part).state_dict().items()}
        assert all(torch.equal(found[key], value) for key, value in saved.items())


@pytest.mark.parametrize("spoilt", ["renamed", "another file beside"])
def test_weights_are_those_that_diffusers_finds(with_autoencoder, spoilt):
    """Those of old autoencoders have other names; files of other names are none of its."""
    wanted, path = weights(load(with_autoencoder).backbone.vae), with_autoencoder / UNET.replace("unet", "vae")
    tensors = load_tensors(path)[0]
    if spoilt == "renamed":
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, name in old.items():
            tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
        assert any(".query." in key for key in tensors)
        save_tensors(path, {key: value.clone() for key, value in tensors.items()})
    else:
        save_tensors(path.with_name("older.safetensors"), {key: value + 1 for key, value in tensors.items()})
    edit(with_autoencoder, sha256={})
    net = load(with_autoencoder).backbone
    assert all(torch.equal(value, wanted[key]) for key, value in net.vae.state_dict().items())
    assert all(weight.untyped_storage().resizable() for weight in net.parameters())


def test_without_adapter_files_both_stages_are_the_bare_base(copy):
    shutil.rmtree(copy / "adapters")
    edit(copy, sha256={})
    model = load(copy)
    assert torch.equal(output(model, "stage_1"), output(model, "stage_2"))
    assert (output(model, "stage_1") - output(load_model(copy, CPU, torch.float32), None)).abs().max() < 1e-6


@pytest.mark.parametrize("name", [UNET, ADAPTER])
def test_a_changed_weight_file_is_refused(copy, name):
    tensors, metadata = load_tensors(copy / name)
    key = next(iter(tensors))
    save_tensors(copy / name, tensors | {key: tensors[key] + 1}, metadata)
    with pytest.raises(ModelError, match=f"{name}: its SHA-256 is not the one"):
        load(copy)


@pytest.mark.parametrize("name", [UNET, ADAPTER])
def test_a_listed_file_that_is_gone_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(ModelError, match=f"{name}: missing, though tudsr.json lists it"):
        load(copy)


def relist(folder: Path) -> None:
    """List the files as they are now, so that only their contents can be objected to."""
    edit(folder, sha256=weight_hashes(folder))


def test_an_adapter_of_another_base_is_refused(make_model, copy, tmp_path):
    save_model(tmp_path / "other", make_model(seed=9), torch.float32)
    shutil.copy(tmp_path / "other" / ADAPTER, copy / ADAPTER)
    relist(copy)
    with pytest.raises(ModelError, match=f"stage_1: this adapter was made for another base, whose {UNET} has"):
        load(copy)


@pytest.mark.parametrize("has_prompt", [True, False])
def test_an_adapter_of_another_prompt_is_refused(copy, has_prompt):
    tensors, metadata = load_tensors(copy / ADAPTER)
    save_tensors(copy / ADAPTER, tensors, metadata | {"prompt_sha256": "ab" * 32})
    if has_prompt:
        save_tensors(copy / PROMPT, {"prompt_embeds": torch.zeros(1, 3, 5)})
    relist(copy)
    words = f"'s is {sha256_file(copy / PROMPT)[:12]}" if has_prompt else "'s is not there"
    with pytest.raises(ModelError, match=f"another base, whose {PROMPT} has the SHA-256 abababababab…; .*{words}"):
        load(copy)


def test_an_adapter_that_does_not_say_its_base_is_taken(copy):
    tensors, metadata = load_tensors(copy / ADAPTER)
    silent = {key: value for key, value in metadata.items() if not key.endswith("_sha256")}
    save_tensors(copy / ADAPTER, tensors, silent | {"prompt_sha256": ""})
    relist(copy)
    load(copy)


def test_a_pickle_is_refused(copy):
    unet = copy / UNET
    torch.save(load_tensors(unet)[0], unet.with_suffix(".bin"))
    unet.unlink()
    edit(copy, sha256={})
    with pytest.raises(ModelError, match=r"unet: only pickles \(diffusion_pytorch_model.bin\), which can run code"):
        load(copy)


@pytest.mark.parametrize("pickle", ["pytorch_lora_weights.bin", "adapter_model.bin", "lora.pt", "lora.ckpt"])
def test_a_pickled_adapter_is_not_taken_for_none(copy, pickle):
    torch.save(load_tensors(copy / ADAPTER)[0], (copy / ADAPTER).with_name(pickle))
    load(copy)  # beside the safetensors it is never read
    (copy / ADAPTER).unlink()
    relist(copy)
    with pytest.raises(
        ModelError, match=rf"stage_1/{pickle}: a pickle.*; pytorch_lora_weights.safetensors is expected"
    ):
        load(copy)


@pytest.mark.parametrize("pickle", ["prompt.bin", "prompt.pt"])
def test_a_pickled_prompt_is_not_taken_for_none(copy, pickle):
    (copy / "other.pt").touch()  # not the prompt's
    load(copy)
    torch.save({"prompt_embeds": torch.zeros(1, 3, 5)}, copy / pickle)
    with pytest.raises(ModelError, match=rf"copy/{pickle}: a pickle.*; prompt.safetensors is expected"):
        load(copy)


def test_a_unet_with_cross_attention_needs_a_prompt(make_model, tmp_path):
    model = make_model()
    shape = {"block_out_channels": (16,), "norm_num_groups": 8, "attention_head_dim": 8, "cross_attention_dim": 5}
    model.backbone.unet = UNet2DConditionModel(
        in_channels=48, out_channels=48, layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",), mid_block_type="UNetMidBlock2D", **shape,
    )  # fmt: skip
    model.backbone.prompt_embeds = torch.ones(1, 3, 5)
    save_model(tmp_path, model, torch.float32)
    assert load(tmp_path).backbone.prompt_embeds.shape == (1, 3, 5)
    save_tensors(tmp_path / PROMPT, {"prompt_embeds": torch.ones(1, 3, 6)})
    relist(tmp_path)
    with pytest.raises(ModelError, match="its prompt is 6 wide; its UNet accepts 5"):
        load(tmp_path)
    (tmp_path / PROMPT).unlink()
    relist(tmp_path)
    with pytest.raises(ModelError, match="its UNet has cross-attention, but prompt.safetensors is not there"):
        load(tmp_path)


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler"])
def test_a_missing_part_is_named(copy, part):
    shutil.rmtree(copy / part)
    edit(copy, sha256={})
    with pytest.raises(ModelError, match=f"copy/{part}"):
        load(copy)


def test_weights_that_do_not_fill_the_unet_are_refused(copy):
    tensors = load_tensors(copy / UNET)[0]
    edit(copy, sha256={})
    save_tensors(copy / UNET, {k: v for k, v in tensors.items() if not k.startswith("conv_out")})
    with pytest.raises(ModelError, match="unet"):
        load(copy)
    save_tensors(copy / UNET, tensors | {"conv_out.weight": torch.zeros(3, 3, 3, 3)})
    with pytest.raises(ModelError, match="unet"):
        load(copy)
    (copy / UNET).write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="unet"):
        load(copy)


def test_unknown_autoencoders_and_adapters_that_do_not_fit_are_refused(copy):
    vae = copy / "vae/config.json"
    good = vae.read_text()
    vae.write_text(json.dumps(json.loads(good) | {"_class_name": "VQModel"}))
    with pytest.raises(ModelError, match=r"'VQModel' is unknown.*SpaceToDepth"):
        load(copy)
    vae.write_text("[]")
    with pytest.raises(ModelError, match="config.json with a _class_name is expected"):
        load(copy)
    vae.write_text(good)
    tensors, metadata = load_tensors(copy / ADAPTER)
    save_tensors(copy / ADAPTER, dict(list(tensors.items())[1:]), metadata)
    edit(copy, sha256={})
    with pytest.raises(ModelError, match="does not fit this UNet"):
        load(copy)


def test_windows_that_cut_through_the_latent_are_refused(copy):
    edit(copy, windows={"min_px": 6, "max_px": 6, "stride_px": 3, "overlap_px": 1})
    with pytest.raises(ModelError, match=r"stride of its windows is 3 px; multiples of its autoencoder's \d+ px"):
        load(copy)


@pytest.mark.parametrize(
    ("file", "values", "sentence"),
    [
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 20}, r"timesteps are \d+ and \d+; .* 0 to 19,"),
        ("vae/config.json", {"patch_px": 8}, "its UNet has 48 channels; 192 are accepted"),
        ("tudsr.json", {"lora": {"rank": 4, "alpha": 4, "targets": ["convoluted"]}}, "convoluted: they do not fit"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(copy, file, values, sentence):
    shutil.rmtree(copy / "adapters")
    relist(copy)
    load(copy)
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | values))
    with pytest.raises(ModelError, match=sentence):
        load(copy)


def test_a_prompt_of_something_else_is_refused(copy):
    save_tensors(copy / PROMPT, {"other": torch.zeros(1)})
    with pytest.raises(ModelError, match="holds other; prompt_embeds is expected"):
        load(copy)


def test_a_model_that_does_not_describe_itself_well_is_a_config_error(copy):
    edit(copy, format_version=2)
    with pytest.raises(ConfigError, match="format_version"):
        load(copy)


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    with pytest.raises(ModelError, match=r"'huge' is not there; accepted: tiny"):
        find_model("huge")
    with pytest.raises(ModelError, match="not a TUDSR model"):
        find_model("plain")
    with pytest.raises(ModelError, match="is not there"):
        find_model("./no/where")
    # The network is off in tests (see conftest.py).
    with pytest.raises(ModelError, match="hub model 'nobody/nothing' could not be fetched"):
        load("nobody/nothing")


@pytest.mark.parametrize("kind", HfHubHTTPError.__bases__)
def test_a_hub_that_does_not_answer_is_said(kind, monkeypatch):
    """One of them is of the HTTP library, for proxies and lost connections; it is neither OSError nor ValueError."""

    def lost(*_, **__):
        raise kind("no answer")

    monkeypatch.setattr("huggingface_hub.snapshot_download", lost)
    monkeypatch.setattr("huggingface_hub.HfApi.get_paths_info", lost)
    with pytest.raises(ModelError, match="hub model 'owner/name' could not be fetched"):
        load("owner/name")
    assert hub_hashes("owner/name", ["a"]) == {}


def test_a_hub_id_is_fetched_and_loaded(model_folder, tmp_path, monkeypatch, serve):
    """What the patterns let through is a whole model: its weights, and nothing that can run code."""
    hub = Path(shutil.copytree(model_folder, tmp_path / "hub"))
    (hub / "unet/diffusion_pytorch_model.bin").touch()
    asked = serve(hub)
    monkeypatch.chdir(tmp_path)
    loaded = load("owner/name")
    assert asked == ["owner/name"] * 2
    assert loaded.folder == tmp_path / "cache"
    assert not list((tmp_path / "cache").rglob("*.bin"))
    for name in lora.STAGES:
        assert torch.equal(output(loaded, name), output(load(model_folder), name))
    (hub / "tudsr.json").unlink()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ModelError, match=r"owner/name: this hub repository has no tudsr\.json"):
        load("owner/name")
    assert not (tmp_path / "cache").exists()  # no gigabytes of another model were fetched for that


def test_find_model_by_path_and_by_embedded_name(model_folder):
    assert find_model(str(model_folder)) == find_model(model_folder) == model_folder
    assert find_model("tiny").parts[-3:] == ("tudsr", "weights", "tiny")


def test_verify_lists_every_difference(copy):
    assert verify_model(copy) == []
    save_tensors(copy / UNET, {"a": torch.ones(1)})
    (copy / ADAPTER).unlink()
    save_tensors(copy / "unet/more.safetensors", {"a": torch.ones(1)})
    lines = verify_model(copy)
    assert len(lines) == 3
    assert lines[:2] == [f"{ADAPTER}: missing", "unet/more.safetensors: not listed in tudsr.json"]
    assert lines[2].startswith(f"{UNET}: SHA-256 is")


def test_a_saved_model_does_not_say_where_it_was_loaded_from(model_folder, tmp_path):
    loaded = load_model(model_folder, torch.device("cpu"), torch.float32)
    save_model(tmp_path / "again", loaded, torch.float32)
    assert str(model_folder) not in "".join(path.read_text() for path in (tmp_path / "again").rglob("*.json"))


def test_saving_again_over_a_model_leaves_a_good_one(make_model, copy):
    save_model(copy, make_model(seed=8), torch.float32)
    assert verify_model(copy) == []
    torch.testing.assert_close(output(load(copy), "stage_1"), output(make_model(seed=8), "stage_1"), rtol=0, atol=1e-6)
