"""Finding, checking and fetching weights, without a network."""

import hashlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tudsr.errors import WeightsError
from tudsr.perceptual import weights
from tudsr.perceptual.features import AlexNetFeatures
from tudsr.perceptual.weights import NETS, find_weights, load_convs, load_table, table_path


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty cache, an empty folder for the environment variable, one for the argument; no checkout."""
    found = {name: tmp_path / name for name in ("argument", "env", "cache")}
    found["argument"].mkdir()
    found["env"].mkdir()
    monkeypatch.setattr(weights, "CACHE", found["cache"])
    monkeypatch.setattr(weights, "CHECKOUT_WEIGHTS", tmp_path / "absent")
    monkeypatch.setenv(weights.ENV_VAR, str(found["env"]))
    return found


def own_form() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {k: v.contiguous() for k, v in AlexNetFeatures().convs.state_dict().items()}


def torchvision_form() -> dict[str, torch.Tensor]:
    numbers = NETS["alexnet"].indices
    renamed = {k.replace(f"conv{k[4]}", f"features.{numbers[int(k[4])]}"): v for k, v in own_form().items()}
    return renamed | {"classifier.1.weight": torch.zeros(2, 2)}


def serve(monkeypatch, tmp_path, digest=None):
    """Let alexnet's address be a local file of torchvision's form."""
    served = tmp_path / "served.pth"
    torch.save(torchvision_form(), served)
    prefix = digest or hashlib.sha256(served.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(NETS, "alexnet", replace(NETS["alexnet"], pth=f"alexnet-owt-{prefix}.pth"))
    monkeypatch.setattr(weights.PublishedNet, "url", served.as_uri())
    return served


def test_search_order(places):
    name = NETS["alexnet"].safetensors[0]
    assert find_weights("alexnet", places["argument"]) is None
    places["cache"].mkdir()
    for place in ("cache", "env", "argument"):
        save_file(own_form(), places[place] / name)
        assert find_weights("alexnet", places["argument"]) == places[place] / name


def test_published_file_becomes_our_own_form_in_the_cache(places, monkeypatch, tmp_path):
    serve(monkeypatch, tmp_path)
    loaded = load_convs("alexnet")
    for key, value in own_form().items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)
    assert [path.name for path in places["cache"].iterdir()] == ["alexnet_conv.safetensors"]
    monkeypatch.setattr(weights.torch.hub, "download_url_to_file", None)  # the second time nothing is fetched
    assert load_convs("alexnet").keys() == loaded.keys()


def test_a_file_with_another_hash_is_refused(places, monkeypatch, tmp_path):
    served = serve(monkeypatch, tmp_path, digest="00000000")
    with pytest.raises(WeightsError, match="could not be fetched"):
        load_convs("alexnet")
    assert list(places["cache"].iterdir()) == []
    (places["env"] / NETS["alexnet"].pth).write_bytes(served.read_bytes())
    with pytest.raises(WeightsError, match="00000000 is expected"):
        load_convs("alexnet")


def test_the_error_without_network_names_the_remedy(places, monkeypatch, tmp_path):
    monkeypatch.setattr(weights.PublishedNet, "url", (tmp_path / "nothing.pth").as_uri())
    with pytest.raises(WeightsError, match="TUDSR_WEIGHTS"):
        load_convs("vgg16")


def test_damaged_and_foreign_files(places):
    path = places["argument"] / "vgg16_conv.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load_convs("vgg16", places["argument"])
    save_file(own_form(), path)
    with pytest.raises(WeightsError, match="is missing; a file with vgg16's convolutions"):
        load_convs("vgg16", places["argument"])


def test_weights_of_other_shapes_are_refused(places):
    state = own_form() | {"conv0.weight": torch.zeros(2, 3, 11, 11)}
    save_file(state, places["argument"] / "alexnet_conv.safetensors")
    with pytest.raises(WeightsError, match="conv0.weight"):
        AlexNetFeatures().load(places["argument"])


def test_a_folder_that_does_not_exist(places, tmp_path):
    with pytest.raises(WeightsError, match="no such folder"):
        find_weights("vgg16", tmp_path / "absent")


def test_shipped_tables():
    assert [v.shape[1] for v in load_table("lpips_alex_lin").values()] == [64, 192, 384, 256, 256]
    assert [v.shape[1] for v in load_table("lpips_vgg_lin").values()] == [64, 128, 256, 512, 512]
    table = load_table("dists")
    assert table["alpha"].numel() == table["beta"].numel() == 1475
    assert abs(float(table["alpha"].sum() + table["beta"].sum()) - 1) < 1e-4
    assert table_path("LICENSES.md").is_file()
    assert load_file(table_path("dists.safetensors")).keys() == {"alpha", "beta"}
