"""Share images among shards, and put their tables together when none is missing."""

import shutil

import pandas as pd
import pytest
from shard_tables import facts_of, table_of, write_shards

from rcblib.records import ParameterError
from rcblib.runs.files import write_table
from rcblib.runs.merging import merge_tables, merge_to
from rcblib.runs.records import read_record, write_record
from rcblib.runs.shards import Shard


def test_a_shard_takes_every_nth_image_by_its_id_however_they_are_given():
    ids = [f"{i}.png" for i in range(7)]
    assert Shard(2, 3).of_images(reversed(ids)) == ["1.png", "4.png"]
    whole = [Shard(i, 3).of_images(ids) for i in (1, 2, 3)]
    left = [Shard(i, 3).of_images(set(ids) - {"3.png"}, {"3.png": "damaged"}) for i in (1, 2, 3)]
    assert left == [[i for i in own if i != "3.png"] for own in whole]  # no other photo moves
    with pytest.raises(
        ParameterError, match="shard: got '1/8'; accepted: at most 7 shards, of an image each"
    ):
        Shard(1, 8).of_images(ids)


def test_a_shard_takes_every_nth_piece_and_all_shards_take_each_once():
    pieces = list(range(10))
    assert Shard.parse("2/4").of(pieces) == [1, 5, 9]
    assert sorted(sum((Shard(i, 4).of(pieces) for i in range(1, 5)), [])) == pieces
    assert Shard.parse(None).of(pieces) == pieces
    assert Shard.parse(None, 3).of(pieces) == [0, 1, 2]
    assert Shard.parse(None, 3).of(pieces, 2) == [0, 1]  # two parts of two images hold the first three


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/2/3", "-1/2"])
def test_wrong_shards_end_in_one_line(text):
    with pytest.raises(ParameterError, match="1/n to n/n, such as 2/8"):
        Shard.parse(text)
    with pytest.raises(ParameterError, match="without a shard"):
        Shard(1, 2, first=3)


@pytest.mark.parametrize("n_shards", [2, 3, 5])
def test_a_merged_table_does_not_depend_on_the_number_of_shards(tmp_path, n_shards):
    ids = [3, 20, 7, 12, 21]
    write_record(tmp_path / "a/whole.parquet", *merge_tables(write_shards(tmp_path / "1", ids, 1)))
    paths = write_shards(tmp_path / "n", ids, n_shards)
    write_record(tmp_path / "a/shards.parquet", *merge_tables(reversed(paths)))
    whole, merged = (tmp_path / f"a/{name}.parquet" for name in ("whole", "shards"))
    assert whole.read_bytes() == merged.read_bytes()
    assert whole.with_suffix(".json").read_text() == merged.with_suffix(".json").read_text()
    assert read_record(merged).table["image_id"].unique().tolist() == sorted(ids)


def test_shards_of_two_runs_are_not_merged(tmp_path):
    paths = write_shards(tmp_path / "n", [1, 2, 3], 2)
    with pytest.raises(ParameterError, match="with another n_shards, images'; accepted: shards of one run"):
        merge_tables([*paths, *write_shards(tmp_path / "m", [2], 1)])
    write_table(paths[1], table_of([2]), facts_of([2], Shard(2, 2), [1, 2, 3], code="another"))
    with pytest.raises(
        ParameterError, match="1.parquet and 2.parquet with another code'; accepted: shards of one run"
    ):
        merge_tables(paths)
    table_of([2]).to_parquet(paths[1])
    with pytest.raises(ParameterError, match="a table that a command of the library wrote with --table"):
        merge_tables(paths)


def test_missing_and_doubled_shards_are_named(tmp_path):
    paths = write_shards(tmp_path / "n", list(range(9)), 4)
    with pytest.raises(
        ParameterError, match="shards: got 'no shard 2/4, 4/4'; accepted: each of the 4 shards once"
    ):
        merge_tables([paths[0], paths[2]])
    again = shutil.copy(paths[1], tmp_path / "n/again.parquet")
    with pytest.raises(ParameterError, match="got 'shard 2/4 in 2.parquet and again.parquet; no shard 4/4'"):
        merge_tables([*paths[:3], again])
    with pytest.raises(
        ParameterError, match="shards: got '.*5.parquet'; accepted: tables of shards, or a folder"
    ):
        merge_tables([tmp_path / "5.parquet"])
    with pytest.raises(ParameterError, match="table: got 'out.csv'; accepted: a path that ends in .parquet"):
        merge_to("out.csv", [tmp_path / "n"])


def test_an_image_in_no_or_two_shards_is_found(tmp_path):
    ids = [1, 2, 3, 4]
    paths = write_shards(tmp_path / "n", ids, 2)
    for own, message in (
        ([2], "3 images, and 0 left out'; accepted: every image"),
        ([1, 2, 4], r"images \['1'\] again"),
    ):
        write_table(paths[1], table_of(own), facts_of(own, Shard(2, 2), ids))
        with pytest.raises(ParameterError, match=message):
            merge_tables(paths)


def test_images_that_a_shard_left_out_stay_noted_and_may_be_all_it_had(tmp_path):
    reason = {"2": "image 2 cannot be read"}
    for number, own in ((1, [1]), (2, []), (3, [3])):
        facts = facts_of(own) | Shard(number, 3).share([1, 2, 3], reason if number == 2 else {})
        write_table(
            tmp_path / f"{number}.parquet", table_of(own) if own else pd.DataFrame({"image_id": []}), facts
        )
    facts = merge_to(tmp_path / "merged" / "all.parquet", [tmp_path])
    assert facts == merge_to(None, [tmp_path])
    assert (list(facts["samples"]), facts["skipped"]) == (["1", "3"], reason)
    found = read_record(tmp_path / "merged" / "all.parquet")
    pd.testing.assert_frame_equal(found.table, table_of([1, 3]))
    assert found.facts["skipped"] == reason
