"""Films, animations and folders of frames."""

from types import SimpleNamespace

import numpy as np
import pytest
from picture_files import GREYS, animation, cut, film, frame_folder, grey_frames, greys_of, save_picture
from PIL import Image

from rcblib.data.opening import open_dataset, open_images
from rcblib.data.video import VideoFile, _upright_frame
from rcblib.records import ImageError, ParameterError


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("clip.mp4", film),
        ("clip.avi", film),
        ("clip.gif", animation),
        ("clip.webp", animation),
        ("clip.png", animation),
        ("clip", frame_folder),
    ],
)
def test_a_video_is_read_as_evenly_spaced_frames(tmp_path, name, write):
    path = write(tmp_path / name, grey_frames())
    for n_frames, chosen in ((1, [0]), (2, [0, 200]), (4, [0, 60, 120, 200]), (11, GREYS), (16, GREYS)):
        (sample,) = VideoFile(path, n_frames)
        assert (sample.kind, sample.source, sample.file_name) == ("video", "video", name)
        assert sample.sizes == ((32, 24),) * len(chosen)
        assert greys_of(sample) == chosen
        assert all(image.mode == "RGB" for image in sample.images)
    assert sample.objects is None
    assert open_dataset(f"video:{path}", n_frames=2)[0].n_images == 2


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp", "clip.mp4", "clip.txt"])
@pytest.mark.parametrize("content", [b"", b"no video" * 40])
def test_a_damaged_video_is_named_before_it_is_used(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    reason = r"(cannot be read \(.*\)|needs the package av: pip install 'rcblib\[video\]')"
    with pytest.raises(ImageError, match=rf"^video: '{name}' {reason}$"):
        VideoFile(path)


def test_a_video_cut_short_is_an_error_where_frames_are_lost(tmp_path):
    cut(animation(tmp_path / "clip.webp", grey_frames()))
    with pytest.raises(ImageError, match="^video: 'clip.webp' cannot be read"):
        VideoFile(tmp_path / "clip.webp")


def test_frames_are_turned_as_the_film_says():
    """A quarter turn clockwise, as phones held upright write it: the left of what is stored comes out on top."""
    stored = np.zeros((10, 20, 3), np.uint8)
    stored[:, :5] = 255
    frame = SimpleNamespace(rotation=-90, to_image=lambda: Image.fromarray(stored))
    turned = np.asarray(_upright_frame(frame))
    assert turned.shape == (20, 10, 3)
    assert (turned[:5] == 255).all()
    assert not turned[5:].any()
    frame.rotation = 0
    assert (np.asarray(_upright_frame(frame)) == stored).all()


def test_a_film_without_frames(tmp_path):
    av = pytest.importorskip("av", reason="the package av is not installed")
    with av.open(tmp_path / "sound.wav", "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ImageError, match="^video: 'sound.wav' has no frames$"):
        VideoFile(tmp_path / "sound.wav")


@pytest.mark.parametrize(("name", "write"), [("clip.mp4", film), ("clip.gif", animation)])
def test_a_video_file_is_its_frames_where_single_images_are_asked_for(tmp_path, name, write):
    path = write(tmp_path / name, grey_frames())
    (clip,) = VideoFile(path, 4)
    frames = open_images(path, "test", 4)
    assert [(frame.image_id, frame.file_name) for frame in frames] == [
        (i, f"{name}, frame {i + 1} of 4") for i in range(4)
    ]
    for frame, expected in zip(frames, clip.images, strict=True):
        assert (frame.width, frame.height) == expected.size
        assert np.array_equal(np.asarray(frame.image), np.asarray(expected))
    assert len(open_images(path)) == len(GREYS)
    with pytest.raises(ParameterError, match="^n_frames: got 0"):
        open_images(path, n=0)


def test_a_film_without_the_package_that_decodes_it(tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"anything")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ImageError, match=r"^video: 'clip.mp4' needs the package av: pip install 'rcblib\[video\]'$"
    ):
        VideoFile(tmp_path / "clip.mp4")


def test_videos_that_are_no_videos(tmp_path):
    with pytest.raises(ImageError, match="^video: '.*nowhere.mp4' does not exist; accepted: a video file or"):
        VideoFile(tmp_path / "nowhere.mp4")
    with pytest.raises(ImageError, match="without any photo"):
        VideoFile(tmp_path)
    save_picture(tmp_path / "a.png", (20, 30))
    assert VideoFile(tmp_path)[0].n_images == 1
    save_picture(tmp_path / "b.png", (30, 20))
    with pytest.raises(ImageError, match=r"are of several sizes \(20x30, 30x20\)$"):
        VideoFile(tmp_path)
    with pytest.raises(ParameterError, match="n_frames: got 0"):
        VideoFile(tmp_path, 0)
