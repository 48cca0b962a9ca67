"""Columns of every kind that Arrow and Parquet files have, in all readers of tables."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from test_formats import MINARI
from test_formats import load_all as load_minari
from test_lerobot import DATA
from test_lerobot import load_all as load_lerobot

from replay.tables import column_array
from tools import BadInput

VALUES = [[1.5, 2.0], [3.0, 4.0], [5.0, 6.5]]
FLOAT = pyarrow.float32()


def dictionary(column: pyarrow.Array) -> pyarrow.Array:
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array(range(len(column))), column)


LISTS = {
    "list": lambda rows, kind: pyarrow.array(rows, pyarrow.list_(kind)),
    "large": lambda rows, kind: pyarrow.array(rows, pyarrow.large_list(kind)),
    "fixed": lambda rows, kind: pyarrow.array(rows, pyarrow.list_(kind, len(rows[0]))),
    "view": lambda rows, kind: pyarrow.array(rows, pyarrow.list_view(kind)),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_become_rows(kind: str):
    column = LISTS[kind](VALUES, FLOAT)
    for found in (column, pyarrow.chunked_array([column[:1], column[1:]]), dictionary(column)):
        assert np.array_equal(column_array(found), VALUES)
    assert np.array_equal(column_array(column[1:]), VALUES[1:])
    with pytest.raises(ValueError, match="without a value"):
        column_array(pyarrow.array([[1.0], None], column.type if kind != "fixed" else pyarrow.list_(FLOAT, 1)))


def test_other_kinds():
    with pytest.raises(ValueError, match="different lengths"):  # 6 numbers would also be 2 rows of 3
        column_array(pyarrow.array([[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]], pyarrow.large_list(FLOAT)))
    assert np.isnan(column_array(pyarrow.nulls(3))).all() and column_array(pyarrow.nulls(3)).shape == (3,)
    numbers = pyarrow.array([1, 1, 2])
    assert column_array(dictionary(numbers)).tolist() == [1, 1, 2]
    assert column_array(pyarrow.compute.run_end_encode(numbers)).tolist() == [1, 1, 2]
    assert column_array(pyarrow.array(["a", "b"], pyarrow.large_string())).tolist() == ["a", "b"]
    assert column_array(dictionary(pyarrow.array(["a", "b"], pyarrow.large_string()))).tolist() == ["a", "b"]


def rewritten(table: pyarrow.Table, kind: str) -> pyarrow.Table:
    """The same table with lists of another kind, encoded numbers, and columns without values."""
    for index, field in enumerate(table.schema):
        column = table[field.name].combine_chunks()
        if pyarrow.types.is_list(field.type) or pyarrow.types.is_fixed_size_list(field.type):
            column = LISTS[kind](column.to_pylist(), field.type.value_type)
        elif not pyarrow.types.is_struct(field.type):
            column = dictionary(column)
        table = table.set_column(index, field.name, column)
    count = len(table)
    table = table.append_column("nothing", pyarrow.nulls(count))
    return table.append_column("text", pyarrow.array(["a"] * count, pyarrow.large_string()))


def write(table: pyarrow.Table, path: Path) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
        return
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def read(path: Path) -> pyarrow.Table:
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path, partitioning=None)
    with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_file(file) as reader:
        return reader.read_all()


def assert_equal(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in ("image", "action", "reward", "discount"))


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("storage", ["arrow", "parquet"])
def test_minari(tmp_path: Path, storage: str, kind: str):
    folder = shutil.copytree(MINARI / storage / "raw-image-v0", tmp_path / "data")
    expected = load_minari(folder)
    paths = list(folder.rglob(f"*.{storage}"))
    for path in paths:
        write(rewritten(read(path), kind), path)
    assert_equal(load_minari(folder), expected)
    table = read(paths[0])
    write(table.set_column(table.schema.get_field_index("rewards"), "rewards", pyarrow.nulls(len(table))), paths[0])
    with pytest.raises(BadInput, match="column rewards has no values; name another one with --reward_key"):
        load_minari(folder)


@pytest.mark.parametrize("kind", LISTS)
def test_lerobot(tmp_path: Path, kind: str):
    folder = shutil.copytree(DATA / "v30", tmp_path / "data")
    expected = load_lerobot(folder, image_size=8)
    for path in folder.rglob("file-*.parquet"):
        table = read(path)
        if "meta" in path.parts:  # lists of texts and statistics, which are not read
            numbers = [index for index, field in enumerate(table.schema) if pyarrow.types.is_integer(field.type)]
            for index in numbers:
                column = dictionary(table.column(index).combine_chunks())
                table = table.set_column(index, table.schema.field(index).name, column)
            write(table, path)
        else:
            write(rewritten(table, kind), path)
            data = path
    assert_equal(load_lerobot(folder, image_size=8), expected)
    table = read(data)
    write(table.set_column(table.schema.get_field_index("action"), "action", pyarrow.nulls(len(table))), data)
    with pytest.raises(BadInput, match="column action has no values; name another one with --action_key"):
        load_lerobot(folder)
