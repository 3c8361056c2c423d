import io
import random
import struct
import threading
import tracemalloc
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image, ImageCms, ImageOps

from tudsr import image_encode, image_raster
from tudsr.errors import InputError
from tudsr.image import Picture, PictureInfo, picture_from, picture_like, read_picture, write_picture
from tudsr.image_encode import check_size, encode_file, file_format, on_white
from tudsr.image_raster import Raster
from tudsr.image_spool import read_header

LOSSLESS = (".png", ".tif", ".tiff", ".bmp")
WRITABLE = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(np.uint8)


@cache
def srgb():  # made once: a profile holds the second it was made in
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def plain_png16(values, extra=b""):
    """A 16-bit PNG with filter 0 throughout, made from the specification alone."""
    height, width, channels = values.shape

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    data = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def unfilter_sub(data, shape):
    """Decode the IDAT of a 16-bit PNG whose rows all have filter 1."""
    at, packed = 8, b""
    while at < len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        packed += body if kind == b"IDAT" else b""
        at += 12 + size
    height, width, channels = shape
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 1).all()
    raw = rows[:, 1:].reshape(height, width, 2 * channels).cumsum(axis=1, dtype=np.uint8)
    return raw.copy().view(">u2")


# Values.


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_integer_survives_the_way_in_and_out(dtype):
    values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(-1, 64)
    for array in (values, np.stack([values] * 2, -1), np.stack([values, values[::-1], values.T.reshape(-1, 64)], -1)):
        picture = picture_from(array)
        assert picture.pixels.dtype == torch.float32
        assert picture.pixels.min() == -1
        assert picture.pixels.max() == 1
        np.testing.assert_array_equal(picture_like(picture, array), array)


def test_values_against_the_closed_form():
    picture = picture_from(noise(5, 7, 4, dtype=np.uint16))
    values = noise(5, 7, 4, dtype=np.uint16).astype(np.float64).transpose(2, 0, 1)
    np.testing.assert_allclose(picture.pixels[0].numpy(), values[:3] / 65535 * 2 - 1, atol=1e-7)
    np.testing.assert_allclose(picture.alpha[0, 0].numpy(), values[3] / 65535, atol=1e-7)


def test_values_outside_the_range_are_clamped_and_rounded_to_nearest():
    levels = torch.tensor([-1.5, -1.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 0.999, 1.0, 1.7])
    picture = Picture(pixels=levels.expand(1, 3, 1, -1))
    expected = np.array([0, 0, 0, 1, 255, 255, 255])
    np.testing.assert_array_equal(picture_like(picture, np.zeros((1, 1, 3), np.uint8))[0, :, 1], expected)
    floats = picture_like(picture, np.zeros((1, 1, 3), np.float64))
    assert (floats.min(), floats.max()) == (0, 1)


def test_strips_do_not_change_the_values(monkeypatch):
    array = noise(37, 11, 4)
    whole = picture_like(picture_from(array), array)
    monkeypatch.setattr("tudsr.image._STRIP_PIXELS", 20)
    np.testing.assert_array_equal(picture_like(picture_from(array), array), whole)


# Pictures in memory.


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        st.one_of(
            st.tuples(st.integers(1, 9), st.integers(1, 9)),
            st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
        ),
    )
)
def test_numpy_and_torch_round_trip(array):
    np.testing.assert_array_equal(picture_like(picture_from(array), array), array)
    chw = torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)
    for tensor in (chw, chw[None]):
        back = picture_like(picture_from(tensor), tensor)
        assert back.shape == tensor.shape
        assert back.dtype == tensor.dtype
        assert torch.equal(back.int(), tensor.int())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_tensors_are_zero_to_one(dtype):
    tensor = torch.linspace(0, 1, 3 * 4 * 5).reshape(3, 4, 5).to(dtype)
    picture = picture_from(tensor)
    torch.testing.assert_close(picture.pixels[0], tensor.float() * 2 - 1, rtol=0, atol=1e-6)
    back = picture_like(picture, tensor)
    assert back.dtype == dtype
    torch.testing.assert_close(back.double(), tensor.double(), rtol=0, atol=2e-3 if dtype == torch.bfloat16 else 1e-6)


def test_what_comes_in_is_not_changed_with_what_goes_on():
    array = np.full((4, 4, 4), 0.5, np.float32)
    picture = picture_from(array)
    picture.pixels.fill_(1)
    picture.alpha.fill_(1)
    assert (array == 0.5).all()


def test_read_only_and_flipped_arrays_are_taken():
    array = noise(4, 5, 3)[::-1, ::-1]
    array.flags.writeable = False
    np.testing.assert_array_equal(picture_like(picture_from(array), array), array)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pil_round_trip(mode):
    image = Image.fromarray(noise(6, 5, 4)).convert(mode)
    back = picture_like(picture_from(image), image)
    assert back.mode == mode
    np.testing.assert_array_equal(np.asarray(back), np.asarray(image))


def test_pil_16_bit_grey_round_trip():
    image = Image.fromarray(noise(6, 5, dtype=np.uint16))
    back = picture_like(picture_from(image), image)
    assert back.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(back), np.asarray(image))


@pytest.mark.parametrize(
    ("mode", "grey", "expected"), [("1", True, "L"), ("P", False, "RGB"), ("CMYK", False, "RGB"), ("HSV", False, "RGB")]
)
def test_other_pil_modes_become_plain_ones(mode, grey, expected):
    image = Image.fromarray(noise(6, 5, 3)).convert(mode)
    picture = picture_from(image)
    assert picture.info.grey is grey
    assert picture.alpha is None
    np.testing.assert_array_equal(np.asarray(picture_like(picture, image)), np.asarray(image.convert(expected)))


def test_pil_32_bit_greys_are_taken_where_their_range_is_plain():
    values = noise(3, 4, dtype=np.uint16)
    np.testing.assert_array_equal(picture_like(picture_from(Image.fromarray(values.astype(np.int32))), values), values)
    floats = Image.fromarray((values / 65535).astype(np.float32))
    np.testing.assert_array_equal(picture_like(picture_from(floats), values), values)
    with pytest.raises(InputError, match="65535 are accepted"):
        picture_from(Image.fromarray(np.array([[70000]], np.int32)))
    with pytest.raises(InputError, match="0 to 1 are accepted"):
        picture_from(Image.fromarray(np.array([[np.nan]], np.float32)))


def test_a_pil_image_is_not_changed_by_being_taken():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Maker"
    file = io.BytesIO()
    Image.fromarray(noise(6, 5)).save(file, "PNG", exif=exif, transparency=1)
    with Image.open(file) as image:
        info, tags, values = dict(image.info), dict(image.getexif()), np.asarray(image)
        assert picture_from(image).pixels.shape == (1, 3, 5, 6)
        assert (image.info, dict(image.getexif()), image.size) == (info, tags, (5, 6))
        np.testing.assert_array_equal(np.asarray(image), values)


@pytest.mark.parametrize(
    ("obj", "said"),
    [
        ("a.png", "not str"),
        (np.zeros((4, 4, 5), np.uint8), r"\(4, 4, 5\)"),
        (np.zeros(4, np.uint8), r"\(4,\)"),
        (np.zeros((0, 4), np.uint8), "1x1"),
        (np.zeros((4, 4), np.int32), "int32"),
        (np.full((4, 4), 1.5), "1.5"),
        (np.full((4, 4), np.nan), "nan"),
        (torch.zeros(4, 4), "C, H, W"),
        (torch.zeros(2, 3, 4, 4), r"\(2, 3, 4, 4\)"),
        (torch.full((3, 2, 2), -0.5), "-0.5"),
        (torch.zeros(3, 0, 4), "1x1"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), "int64"),
    ],
)
def test_other_objects_are_refused(obj, said):
    with pytest.raises(InputError, match=said):
        picture_from(obj)


# Values in files.


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_lossless_files_round_trip(tmp_path, suffix, mode):
    values = np.asarray(Image.fromarray(noise(13, 17, 3)).convert(mode))
    path = tmp_path / f"a{suffix}"
    assert write_picture(path, picture_from(values)) == ()
    with Image.open(path) as image:  # Pillow agrees
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), values)
    picture = read_picture(path)
    assert (picture.info.bits, picture.info.grey) == (8, mode == "L")
    np.testing.assert_array_equal(picture_like(picture, values), values)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_kept_apart_and_written_back(tmp_path, suffix, channels):
    values = np.concatenate([smooth(16, 16)[..., : channels - 1], noise(16, 16, 1)], -1)
    write_picture(tmp_path / f"a{suffix}", picture_from(values))
    picture = read_picture(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(picture.alpha[0, 0].numpy(), values[..., -1] / 255, atol=1e-6)
    if suffix != ".webp":
        np.testing.assert_array_equal(picture_like(picture, values), values)


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
@pytest.mark.parametrize("channels", [2, 4])
def test_transparent_pictures_are_laid_on_white_where_they_must(tmp_path, suffix, channels):
    values = np.zeros((16, 16, channels), np.uint8)
    values[8:, :, -1] = 255
    notes = write_picture(tmp_path / f"a{suffix}", picture_from(values))
    assert "white" in notes[0]
    with Image.open(tmp_path / f"a{suffix}") as image:
        flat = np.asarray(image)
    assert flat[:8].min() >= 254
    assert flat[8:].max() <= 1


@pytest.mark.parametrize("channels", [2, 4])
def test_they_are_laid_on_white_in_no_more_memory_than_is_planned(tmp_path, monkeypatch, channels):
    """That is one picture beside the numbers, Pillow's; what else is made is a strip's."""
    values, sizes = noise(2000, 1000, channels), []
    taken = Image.fromarray
    monkeypatch.setattr(Image, "fromarray", lambda part: sizes.append(part.nbytes) or taken(part))
    tracemalloc.start()
    encode_file(tmp_path / "a.bmp", Raster(values=values))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(sizes) <= 2**20
    assert most < 2 * 2**20
    monkeypatch.undo()
    with Image.open(tmp_path / "a.bmp") as image:
        np.testing.assert_array_equal(np.atleast_3d(np.asarray(image)), on_white(values))


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".JPG"])
def test_lossy_files_come_close(tmp_path, suffix):
    values = smooth(64, 64)
    write_picture(tmp_path / f"a{suffix}", picture_from(values))
    back = picture_like(read_picture(tmp_path / f"a{suffix}"), values)
    assert np.abs(back.astype(int) - values).mean() < 1.5


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_read_whole(tmp_path, channels):
    values = noise(9, 7, channels, dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(plain_png16(values))
    picture = read_picture(tmp_path / "a.png")
    assert picture.info == PictureInfo(bits=16, grey=channels < 3)
    np.testing.assert_array_equal(picture_like(picture, values), values)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_png_is_written_as_the_specification_has_it(tmp_path, channels):
    values = noise(300, 70, channels, dtype=np.uint16)
    write_picture(tmp_path / "a.png", picture_from(values))
    np.testing.assert_array_equal(unfilter_sub((tmp_path / "a.png").read_bytes(), values.shape), values)
    with Image.open(tmp_path / "a.png") as image:  # Pillow takes the high bytes
        colours = {2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        np.testing.assert_array_equal(np.asarray(image.convert(colours)), values >> 8)
    np.testing.assert_array_equal(picture_like(read_picture(tmp_path / "a.png"), values), values)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_tiff_is_read_whole(tmp_path, channels, byteorder, compression):
    values = noise(50, 70, channels, dtype=np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif",
        values[..., 0] if channels == 1 else values,
        photometric="rgb" if channels > 2 else "minisblack",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        planarconfig="contig" if channels > 1 else None,
        byteorder=byteorder,
        compression=compression,
        predictor=compression is not None,
        rowsperstrip=16,
        software=False,
    )
    picture = read_picture(tmp_path / "a.tif")
    assert (picture.info.bits, picture.info.grey, picture.info.exif) == (16, channels < 3, None)
    np.testing.assert_array_equal(picture_like(picture, values), values)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_tiff_is_written(tmp_path, channels):
    values = noise(50, 70, channels, dtype=np.uint16)
    write_picture(tmp_path / "a.tiff", picture_from(values))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tiff").reshape(values.shape), values)
    np.testing.assert_array_equal(picture_like(read_picture(tmp_path / "a.tiff"), values), values)


def test_16_bits_become_8_in_other_files(tmp_path):
    values = noise(20, 20, dtype=np.uint16)
    notes = write_picture(tmp_path / "a.bmp", picture_from(values))
    assert notes == ("BMP holds 8 bits: 16 were brought down to them.",)
    with Image.open(tmp_path / "a.bmp") as image:
        np.testing.assert_array_equal(np.asarray(image), np.rint(values / 257))


def test_16_bit_tiff_with_its_channels_apart(tmp_path):
    values = noise(20, 30, 3, dtype=np.uint16)
    orientation = (274, "H", 1, 6, True)
    tifffile.imwrite(
        tmp_path / "a.tif",
        values.transpose(2, 0, 1),
        photometric="rgb",
        planarconfig="separate",
        extratags=[orientation],
    )
    np.testing.assert_array_equal(picture_like(read_picture(tmp_path / "a.tif"), values), np.rot90(values, -1))


def test_16_bit_tiff_with_premultiplied_alpha_is_read_in_8_with_a_note(tmp_path):
    values = noise(20, 30, 4, dtype=np.uint16)
    values[..., 3] = 65535
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["assocalpha"])
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture_like(picture, values.astype(np.uint8)), values >> 8)
    assert "8 bits" in picture.info.notes[0]
    header = read_header(tmp_path / "a.tif")
    assert (header.bits, header.streams) == (8, False)  # from disk it is read as here


def test_inverted_16_bit_grey_tiff(tmp_path):
    values = noise(20, 20, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    np.testing.assert_array_equal(picture_like(read_picture(tmp_path / "a.tif"), values), 65535 - values)


def test_tiff_of_another_kind_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 6, 3)), photometric="rgb")
    with pytest.raises(InputError, match=r"a\.tif: a TIFF of float64"):
        read_picture(tmp_path / "a.tif")


def test_palette_and_key_transparency(tmp_path):
    indices = Image.fromarray(noise(8, 8) % 4).convert("P")
    indices.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    indices.save(tmp_path / "p.png", transparency=2)
    with Image.open(tmp_path / "p.png") as image:
        expected = np.asarray(image.convert("RGBA"))
    np.testing.assert_array_equal(picture_like(read_picture(tmp_path / "p.png"), expected), expected)

    grey = noise(8, 8) % 3
    Image.fromarray(grey).save(tmp_path / "l.png", transparency=1)
    picture = read_picture(tmp_path / "l.png")
    assert picture.info.grey
    np.testing.assert_array_equal(picture.alpha[0, 0].numpy(), (grey != 1).astype(np.float32))

    wide = noise(8, 8, 3, dtype=np.uint16)
    key = struct.pack(">IHHH", 6, *wide[2, 3].tolist())[4:]
    chunk = struct.pack(">I", 6) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    (tmp_path / "w.png").write_bytes(plain_png16(wide, chunk))
    picture = read_picture(tmp_path / "w.png")
    assert (picture.alpha == 0).nonzero()[:, 2:].tolist() == [[2, 3]]
    np.testing.assert_array_equal(picture_like(picture, np.zeros((1, 1, 4), np.uint16))[..., :3], wide)


def test_cmyk_becomes_srgb(tmp_path):
    values = smooth(32, 32)
    Image.fromarray(values).convert("CMYK").save(tmp_path / "a.tif")
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture_like(picture, values), values)
    assert "formula" in picture.info.notes[0]
    Image.fromarray(values).convert("CMYK").save(tmp_path / "b.jpg", icc_profile=b"no profile", quality=95)
    picture = read_picture(tmp_path / "b.jpg")
    assert picture.info.icc is None
    assert np.abs(picture_like(picture, values).astype(int) - values).mean() < 8


# What files hold beside the pixels.


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_the_other_exif_kept(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Maker"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 400
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] = 24
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageHeight] = 16
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    Image.fromarray(smooth(16, 24)).save(source, exif=exif.tobytes())
    with Image.open(source) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    picture = read_picture(source)
    np.testing.assert_array_equal(picture_like(picture, expected), expected)

    write_picture(target, picture)
    with Image.open(target) as image:
        image.load()
        kept = image.getexif()
        details = kept.get_ifd(ExifTags.IFD.Exif)
        assert ExifTags.Base.Orientation not in kept
        assert kept[ExifTags.Base.Make] == "Maker"
        assert details[ExifTags.Base.ISOSpeedRatings] == 400
        assert (details[ExifTags.Base.ExifImageWidth], details[ExifTags.Base.ExifImageHeight]) == image.size
        assert kept.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_a_tiffs_layout_does_not_leak_into_other_files(tmp_path, suffix):
    Image.fromarray(smooth(16, 24)).save(tmp_path / "a.tif", tiffinfo={270: "A caption", 315: "An artist"})
    write_picture(tmp_path / f"b{suffix}", read_picture(tmp_path / "a.tif"))
    with Image.open(tmp_path / f"b{suffix}") as image:
        exif = dict(image.getexif())
    assert (exif[270], exif[315]) == ("A caption", "An artist")
    if suffix != ".tif":
        assert set(exif) == {270, 315}


def test_16_bit_files_keep_profile_and_exif_where_they_can(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Maker"
    info = PictureInfo(bits=16, icc=srgb(), exif=exif.tobytes())
    picture = Picture(pixels=torch.zeros(1, 3, 4, 4), info=info)
    assert write_picture(tmp_path / "a.png", picture) == ()
    assert "EXIF" in write_picture(tmp_path / "a.tif", picture)[0]
    for name in ("a.png", "a.tif"):
        back = read_picture(tmp_path / name).info
        assert back.icc == srgb()
        assert back.bits == 16
    with Image.open(tmp_path / "a.png") as image:
        assert dict(image.getexif()) == {ExifTags.Base.Make: "Maker"}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_profile_is_kept(tmp_path, suffix):
    Image.fromarray(smooth(8, 8)).save(tmp_path / f"a{suffix}", icc_profile=srgb())
    picture = read_picture(tmp_path / f"a{suffix}")
    assert picture.info.icc == srgb()
    write_picture(tmp_path / f"b{suffix}", picture)
    with Image.open(tmp_path / f"b{suffix}") as image:
        assert image.info["icc_profile"] == srgb()
    assert "profile" in write_picture(tmp_path / "b.bmp", picture)[0]


def test_a_profile_of_grey_stays_with_grey_and_leaves_webp_which_has_none(tmp_path):
    icc = srgb()[:16] + b"GRAY" + srgb()[20:]
    Image.new("L", (8, 8), 99).save(tmp_path / "a.png", icc_profile=icc)
    picture = read_picture(tmp_path / "a.png")
    assert write_picture(tmp_path / "b.png", picture) == ()
    assert "profile of grey" in write_picture(tmp_path / "b.webp", picture)[0]
    for name, found in (("b.png", icc), ("b.webp", None)):
        with Image.open(tmp_path / name) as image:
            assert image.info.get("icc_profile") == found


def test_too_much_exif_for_jpeg_is_left_out_with_a_note(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 70000
    picture = Picture(pixels=torch.zeros(1, 3, 4, 4), info=PictureInfo(exif=exif.tobytes()))
    assert "EXIF" in write_picture(tmp_path / "a.jpg", picture)[0]
    assert read_picture(tmp_path / "a.jpg").info.exif is None


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_of_an_animation_only_the_first_frame_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **options)
    picture = read_picture(tmp_path / f"a{suffix}")
    assert "3 frames" in picture.info.notes[0]
    np.testing.assert_array_equal(picture_like(picture, np.zeros((1, 1, 3), np.uint8)), np.asarray(frames[0]))


def test_the_preview_in_a_phones_jpeg_is_no_second_frame(tmp_path):
    values = smooth(32, 32)
    Image.fromarray(values).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.info.notes == ()
    assert (picture.height, picture.width) == (32, 32)


def test_pil_result_carries_profile_and_exif():
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Maker"
    file = io.BytesIO()
    Image.fromarray(smooth(8, 8)).save(file, "JPEG", icc_profile=srgb(), exif=exif)
    with Image.open(file) as image:
        back = picture_like(picture_from(image), image)
    assert back.info["icc_profile"] == srgb()
    assert back.getexif()[ExifTags.Base.Make] == "Maker"


# Errors of files.


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.png: no such file"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(InputError, match="cannot be read"):
        read_picture(tmp_path)
    for name in ("text.png", "text.tif", "empty.jpg"):
        (tmp_path / name).write_text("" if name == "empty.jpg" else "This is not a picture.\n")
        with pytest.raises(InputError, match=rf"{name}: .*(PNG, JPEG|damaged)") as caught:
            read_picture(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_cut_and_damaged_files_end_in_one_sentence(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_picture(path, picture_from(noise(24, 24, 3)))
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match=rf"a\{suffix}"):
            read_picture(path)
    rng = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert read_picture(path).pixels.isfinite().all()
        except InputError as error:
            assert f"a{suffix}" in str(error)  # noqa: PT017


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_costs_the_exif_only(tmp_path):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x63\0\0\0\x09\xff\xff\xff\xff"
    Image.fromarray(smooth(8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").pixels.shape == (1, 3, 8, 8)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pillows_pixel_limit_gives_way_to_ours_and_comes_back(tmp_path, monkeypatch):
    write_picture(tmp_path / "a.png", picture_from(noise(10, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_picture(tmp_path / "a.png").width == 10
    assert Image.MAX_IMAGE_PIXELS == 10
    monkeypatch.setattr(image_raster, "MAX_PIXELS", 99)
    with pytest.raises(InputError, match=r"a\.png: 10x10"):
        read_picture(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_small_file_that_claims_a_huge_picture_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    Image.new("1", (8, 8)).save(path)
    path.write_bytes(
        path.read_bytes().replace(struct.pack("<HHIHH", 256, 4, 1, 8, 0), struct.pack("<HHIHH", 256, 4, 1, 0, 512))
    )
    with pytest.raises(InputError, match=r"a\.tif: .* 33554432x8 pixels"):
        read_picture(path)


def test_pixel_limit_comes_back_after_many_threads(tmp_path, monkeypatch):
    write_picture(tmp_path / "a.png", picture_from(noise(40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    failures = []

    def read():
        try:
            for _ in range(10):
                read_picture(tmp_path / "a.png")
        except InputError as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.exe"])
def test_unknown_suffixes_are_refused_before_any_work(tmp_path, name):
    with pytest.raises(InputError, match=r"accepted are \.png, \.jpg, \.jpeg, \.webp, \.tif, \.tiff, \.bmp"):
        file_format(Path(name))
    with pytest.raises(InputError):
        write_picture(tmp_path / name, picture_from(noise(2, 2)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", WRITABLE)
def test_known_suffixes_pass(suffix):
    file_format(Path(f"a{suffix}"))
    file_format(Path(f"a{suffix.upper()}"))


def test_too_large_for_the_format(tmp_path):
    picture = Picture(pixels=torch.zeros(1, 3, 1, 16384))
    with pytest.raises(InputError, match="16383"):
        write_picture(tmp_path / "a.webp", picture)
    assert write_picture(tmp_path / "a.jpg", picture) == ()


@pytest.mark.parametrize(("name", "side"), [("a.webp", 16383), ("a.jpg", 65500), ("a.PNG", 2**31 - 1)])
def test_what_a_format_holds_can_be_asked_before_there_is_a_picture(name, side):
    assert check_size(Path(name), side, 1).max_side == side
    for size in ((side + 1, 1), (1, side + 1)):
        with pytest.raises(InputError, match=f"{size[1]}x{size[0]} pixels came; .* at most {side} a side"):
            check_size(Path(name), *size)


def test_a_bitmaps_pixels_are_counted_too():
    assert check_size(Path("a.bmp"), 2**15, 2**15).name == "BMP"
    with pytest.raises(InputError, match="32769x32768 pixels came; BMP holds at most 1073741824 in all"):
        check_size(Path("a.bmp"), 2**15, 2**15 + 1)


@pytest.mark.parametrize("values", [noise(40, 30, 3), noise(40, 30), noise(40, 30, 4, dtype=np.uint16)])
def test_a_tiff_above_4_gb_has_64_bit_offsets(tmp_path, monkeypatch, values):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Maker"
    picture = picture_from(values)
    picture = replace(picture, info=replace(picture.info, exif=exif.tobytes()))
    write_picture(tmp_path / "small.tif", picture)
    monkeypatch.setattr(image_encode, "_CLASSIC_TIFF_BYTES", 1000)
    notes = write_picture(tmp_path / "a.tif", picture)
    assert "EXIF was left out of the" in notes[0]
    for name, big in (("small", False), ("a", True)):
        with tifffile.TiffFile(tmp_path / f"{name}.tif") as file:
            assert file.is_bigtiff is big
        np.testing.assert_array_equal(picture_like(read_picture(tmp_path / f"{name}.tif"), values), values)


def test_names_as_long_as_a_file_system_allows_can_be_written(tmp_path):
    path = tmp_path / ("n" * 251 + ".png")
    write_picture(path, picture_from(noise(2, 2)))
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "one" / "two" / "a.png"
    write_picture(path, picture_from(noise(2, 2)))
    write_picture(path, picture_from(noise(3, 3)))
    assert read_picture(path).width == 3
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, error):
    path = tmp_path / "a.png"
    write_picture(path, picture_from(noise(2, 2)))
    before = path.read_bytes()

    def fail(self, file, **_):
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises((InputError, KeyboardInterrupt)):
        write_picture(path, picture_from(noise(3, 3)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_an_input_error(tmp_path):
    (tmp_path / "a.png").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "a.png", tmp_path / "file" / "b.png"):
        with pytest.raises(InputError, match="cannot be written"):
            write_picture(path, picture_from(noise(2, 2)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "file"]
