"""Which files of a folder are photos."""

import builtins
import importlib

import pytest
from picture_files import save_picture
from PIL import Image

from rcblib.data import formats
from rcblib.data.formats import PHOTO_SUFFIXES, photos_in
from rcblib.data.photos import PhotoFolder, read_image
from rcblib.records import ImageError


def names_in(folder):
    return sorted(path.name for path in photos_in(folder))


def test_all_that_pillow_reads_is_a_photo_in_any_case(tmp_path):
    wanted = []
    for suffix in ("avif", "AVIF", "jfif", "JPE", "apng", "jp2", "qoi", "ppm", "tga", "ico", "dib", "webp"):
        kind = {"AVIF": "AVIF", "JPE": "JPEG"}.get(suffix)
        wanted.append(save_picture(tmp_path / f"{suffix}1.{suffix}", (32, 32), format=kind).name)
    assert names_in(tmp_path) == sorted(wanted)
    assert all(sample.image.size == (32, 32) for sample in PhotoFolder(tmp_path))
    assert not {".mpg", ".mpeg", ".pdf", ".eps", ".h5", ".wmf"} & set(PHOTO_SUFFIXES)


def test_photos_are_known_by_their_content_too(tmp_path):
    for name, kind in (("a", "JPEG"), ("b.jpg_large", "JPEG"), ("c.download", "PNG"), ("d.jpg", "PNG")):
        save_picture(tmp_path / name, format=kind)
    for name, content in (
        ("no.txt", b"words"),
        ("empty", b""),
        ("BM.log", b"BMW, a car"),
        ("m.tar", bytes(999)),
    ):
        (tmp_path / name).write_bytes(content)
    save_picture(tmp_path / "raw.dng", format="TIFF")  # of such a file Pillow reads the thumbnail
    with pytest.warns(UserWarning) as told:
        assert names_in(tmp_path) == ["a", "b.jpg_large", "c.download", "d.jpg"]
    others = "'BM.log', 'empty', 'm.tar', 'no.txt', 'raw.dng'"
    assert str(told[0].message) == (
        f"folder {tmp_path.name!r}: 4 of 9 are read as photos; passed over: 5 ({others})"
    )


def test_whatever_is_passed_over_is_counted_and_named_in_one_line(tmp_path):
    save_picture(tmp_path / "a.png")
    save_picture(tmp_path / "more" / "b.png")
    for number in range(7):
        (tmp_path / f"clip{number}.mov").write_bytes(b"moving")
    for hidden in ("._a.png", ".DS_Store"):
        (tmp_path / hidden).write_bytes(b"\0\5\x16\7")
    (tmp_path / "zz.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.warns(UserWarning) as told:
        assert names_in(tmp_path) == ["a.png"]
    assert len(told) == 1
    clips = ", ".join(f"'clip{number}.mov'" for number in range(5))
    assert str(told[0].message).endswith(
        f"1 of 12 are read as photos; passed over: 9 ({clips}, 4 more) and 2 hidden"
    )


def test_a_folder_without_photos_says_what_it_holds(tmp_path):
    (tmp_path / "a.nef").write_bytes(b"raw")
    with pytest.raises(
        ImageError, match=r"without any photo, but 1 \('a.nef'\); accepted: a folder with"
    ) as error:
        photos_in(tmp_path)
    assert "\n" not in str(error.value)


def test_photos_of_iphones_are_read_where_pillow_heif_is_installed(tmp_path):
    pytest.importorskip("pillow_heif", reason="the package pillow-heif is not installed")
    for name, kind in (("IMG_1.HEIC", "HEIF"), ("IMG_2.jpg", "HEIF"), ("IMG_3.heif", "HEIF")):
        save_picture(tmp_path / name, (64, 48), format=kind)
    assert names_in(tmp_path) == ["IMG_1.HEIC", "IMG_2.jpg", "IMG_3.heif"]
    assert [sample.image.size for sample in PhotoFolder(tmp_path)] == [(64, 48)] * 3


@pytest.fixture
def without_heif(monkeypatch):
    """Take the opener of pillow-heif away, as where the package is not installed."""
    imported, registries = builtins.__import__, ("ID", "OPEN", "MIME", "SAVE", "SAVE_ALL", "EXTENSION")
    before = {name: type(found)(found) for name in registries if (found := getattr(Image, name)) is not None}
    for name, registry in before.items():
        if isinstance(registry, dict):
            kept = {key: value for key, value in registry.items() if "HEIF" not in (key, value)}
        else:
            kept = [kind for kind in registry if kind != "HEIF"]
        monkeypatch.setattr(Image, name, kept)

    def importing(name, *rest, **options):
        if name == "pillow_heif":
            raise ImportError(name)
        return imported(name, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "__import__", importing)
        importlib.reload(formats)
    yield
    monkeypatch.undo()
    importlib.reload(formats)


def test_without_pillow_heif_they_are_passed_over_with_a_word(tmp_path, without_heif):
    save_picture(tmp_path / "a.png")
    heic = b"\0\0\0\x1cftypheic" + bytes(100)
    (tmp_path / "IMG_1.HEIC").write_bytes(heic)
    with pytest.warns(UserWarning, match=r"1 \('IMG_1.HEIC'\); HEIC is read where pillow-heif is installed$"):
        assert [path.name for path in formats.photos_in(tmp_path)] == ["a.png"]
    (tmp_path / "IMG_1.HEIC").rename(tmp_path / "IMG_1.jpg")  # as many a phone calls them when it sends them
    with pytest.raises(
        ImageError, match=r"'IMG_1.jpg' cannot be read \(HEIC, which is read where pillow-heif"
    ):
        read_image(tmp_path / "IMG_1.jpg")
