"""Run the commands of the worlds, and check that wrong inputs end in one line."""

import pytest

from rcblib.data.coco import CocoDataset
from worlds import model_card
from worlds.__main__ import main
from worlds.training import stages


def test_scenes_are_written_in_coco_s_format(tmp_path):
    assert main(["scenes", "--folder", str(tmp_path), "--n", "2", "--split", "test", "--seed", "5"]) == 0
    assert [sample.file_name for sample in CocoDataset(tmp_path, "test")] == [
        "test_5_000000.png",
        "test_5_000001.png",
    ]


@pytest.mark.parametrize(("command", "module"), [("train", stages), ("card", model_card)])
def test_options_are_handed_to_the_recipe_and_the_card(command, module, monkeypatch):
    given = []
    monkeypatch.setattr(module, "main", given.extend)
    assert main([command, "--scale", "0.5", "--help"]) == 0
    assert given == ["--scale", "0.5", "--help"]


@pytest.mark.parametrize("command", ["scenes", "train", "card"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"worlds {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: <command>"),
        (["scene"], "invalid choice: 'scene'"),
        (["scenes"], "required: --folder"),
        (["scenes", "--folder", "x", "--n", "2", "--split", "tset"], "split: got 'tset'"),
    ],
)
def test_wrong_inputs_end_in_one_line(arguments, message, capsys):
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("worlds") and message in line
