from __future__ import annotations

import codecs
import gzip
import zipfile
from datetime import datetime

import numpy as np
import polars as pl
import pytest

from arec.data.formats import Columns, has_fixed_columns, read
from arec.errors import DataError

LOG = [("u1", "a", 3), ("u2", "b", 1), ("u1", "c", 2)]

TEXTS = {
    "ratings.dat": "u1::a::5::3\nu2::b::4::1\nu1::c::3::2\n",
    "u.data": "u1\ta\t5\t3\nu2\tb\t4\t1\nu1\tc\t3\t2\n",
    "log.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "u1\ta\t5\t3\nu2\tb\t4\t1\nu1\tc\t3\t2\n",
    "ratings_Beauty.csv": "u1,a,5.0,3\nu2,b,4.0,1\nu1,c,3.0,2\n",
    "ratings.csv": "userId,movieId,rating,timestamp\nu1,a,5,3\nu2,b,4,1\nu1,c,3,2\n",
    "log.csv": "timestamp,item,user\n3,a,u1\n1,b,u2\n2,c,u1\n",
    "log.tsv": "timestamp\titem\tuser\n3\ta\tu1\n1\tb\tu2\n2\tc\tu1\n",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("change", [str, lambda t: t.replace("\n", "\r\n"), lambda t: t + "\n\n"])
def test_every_text_format(tmp_path, name, gz, change):
    data = change(TEXTS[name]).encode()
    path = tmp_path / (name + ".gz" * gz)
    path.write_bytes(gzip.compress(data) if gz else data)
    assert read(path).select("user", "item", "time").rows() == LOG


@pytest.mark.parametrize("gz", [False, True])
def test_sequences(tmp_path, gz):
    data = b"7 10 9 10\r\n\n 8\t11  12 \n"
    path = tmp_path / ("log.txt" + ".gz" * gz)
    path.write_bytes(gzip.compress(data) if gz else data)
    expected = [("7", "10"), ("7", "9"), ("7", "10"), ("8", "11"), ("8", "12")]
    assert read(path).rows() == expected


def test_archives(tmp_path):
    for name, member, source in (
        ("ml-1m.zip", "ml-1m/ratings.dat", "ratings.dat"),
        ("ml-100k.zip", "ml-100k/u.data", "u.data"),
        ("recbole-1.2.whl", "recbole/dataset_example/ml-100k/ml-100k.inter", "log.inter"),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("README", "read me")
            archive.writestr(member, TEXTS[source])
        assert read(tmp_path / name).rows() == LOG


@pytest.mark.parametrize("ids", [["u1", "u2", "u1"], [1, 2, 1]])
@pytest.mark.parametrize(
    "times", [[3, 1, 2], [3.0, 1.0, 2.0], [datetime(2020, 1, day) for day in (3, 1, 2)]]
)
@pytest.mark.parametrize("gz", [False, True])
def test_parquet(tmp_path, ids, times, gz):
    path = tmp_path / "log.parquet"
    pl.DataFrame({"who": ids, "what": ["a", "b", "c"], "when": times}).write_parquet(path)
    if gz:
        data = gzip.compress(path.read_bytes())
        path.unlink()
        path = tmp_path / "log.parquet.gz"
        path.write_bytes(data)
    frame = read(path, Columns("who", "what", "when"))
    assert frame["user"].to_list() == ids
    assert frame["item"].to_list() == ["a", "b", "c"]
    assert frame["time"].arg_sort().to_list() == [1, 2, 0]


def test_named_columns_and_quotes(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text('customer,sku,note,day\n007,"a,b","two\nlines",2020-01-02\n8,c,,2020-01-01\n')
    frame = read(path, Columns("customer", "sku", "day"))
    assert frame["user"].to_list() == ["007", "8"]
    assert frame["item"].to_list() == ["a,b", "c"]
    assert frame["time"].arg_sort().to_list() == [1, 0]


def test_other_columns_may_have_the_same_name(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("note,user,note,item\nn,u,,b\n,u,n,a\n")
    assert read(path, Columns(time="")).rows() == [("u", "b"), ("u", "a")]


def test_only_a_category_of_amazon_has_no_header(tmp_path):
    path = tmp_path / "ratings_mine.csv"
    path.write_text("user,item,rating,timestamp\nu,b,5,1\n")
    assert read(path)["item"].to_list() == ["b"]


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.inter"])
@pytest.mark.parametrize("gz", ["", ".gz", ".GZ"])
def test_an_ending_may_be_of_capitals(tmp_path, name, gz):
    stem, _, ending = name.partition(".")
    path = tmp_path / f"{stem}.{ending.upper()}{gz}"
    path.write_bytes(gzip.compress(TEXTS[name].encode()) if gz else TEXTS[name].encode())
    assert read(path).select("user", "item", "time").rows() == LOG
    assert has_fixed_columns(path) is (name == "log.inter")


def test_no_time_column(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item\nu,b\nu,a\n")
    assert read(path, Columns(time="")).rows() == [("u", "b"), ("u", "a")]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("user,item,timestamp", 'u,"a,1', "line 2: expected .*; perhaps a quote"),
        ('user,"item,timestamp', "u,a,1", "expected the columns item, timestamp, user; found 'user'"),
    ],
)
def test_a_quote_that_is_never_closed(tmp_path, header, row, message):
    path = tmp_path / "log.csv"
    path.write_text(f"{header}\n{row}\n" + 20_000 * "user,item,1\n")
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
@pytest.mark.parametrize(
    "columns", ["user user time", "user item item", "user item user", " item time"]
)
def test_columns_must_differ(tmp_path, name, columns):
    frame = pl.DataFrame({"user": [1], "item": [2], "time": [3]})
    path = tmp_path / name
    frame.write_csv(path) if name.endswith("csv") else frame.write_parquet(path)
    with pytest.raises(DataError, match="expected different columns for user, item and time"):
        read(path, Columns(*columns.split(" ")))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "ratings.dat",
            "1::2::3::4\n\n1::2::3\n",
            r"line 3: expected 'user::item::.*got '1::2::3'",
        ),
        ("ratings.dat", "1::2::3::4\n1::2::3::4::5\n", "line 2: expected"),
        ("ratings.dat", "1,2,3,4\n", "line 1: expected"),
        ("u.data", "1\t2\t3\tnoon\n", "line 1: expected"),
        ("u.data", "1\t2\t3\t4\n1\t\t3\t4\n", "line 2: item is empty"),
        ("log.csv", "user,item,timestamp\n1,2,3\n ,2,3\n", "line 3: user is empty"),
        ("log.csv", "user,item,timestamp\n1,2,3\n1,2,\n", "line 3: timestamp is empty"),
        ("log.csv", "user,item,timestamp\n1,2,3\n1,,\n",
         "line 3: expected 'user,item,timestamp', got '1,,'"),
        (
            "log.csv",
            "user,item,timestamp\n1,2,10000000000000000000001\n",
            "line 2: expected a number .* as timestamp, got '10000000000000000000001'",
        ),
        (
            "log.csv",
            "user,item,timestamp\n1,2,0.5\n1,3,9223372036854775808\n",
            "line 3: expected a number .* as timestamp, got '9223372036854775808'",
        ),
        ("log.csv", "user,item,timestamp\n1,2,3\n1,2,nan\n", "line 3: expected a number"),
        ("log.csv", "user,item,timestamp\n1,2,3\n1,2,inf\n", "line 3: expected a number"),
        ("log.csv", 'user,item,timestamp\n"1\n1",2,3\n1,2\n', "line 4: expected"),
        ("log.csv", 'user,item,timestamp\n\n"1\n1",2,noon\n', "line 3: expected a number"),
        ("log.csv", 'user,item,timestamp\n1,2,3\n1,"2,3\n1,2,3\n', "line 3: expected .*; perhaps a quote"),
        ("log.csv", "user,item,timestamp\r1,2,3\r", r"lines that end in \\n or \\r\\n, found \\r alone"),
        ("log.csv", "user;item;timestamp\n1;2;3\n", "separated by ',', found ';' in the header"),
        ("log.txt", "user,item,timestamp\n1,2,3\n", "found columns; name it .csv"),
        ("log.txt", "user\titem\ttimestamp\n1\t2\t3\n", "found columns; name it .csv"),
        ("log.txt", "Kunde Nr,sku,day\n1 2,a b,3\n1 3,a,3\n", "found columns; name it .csv"),
        ("log.csv", "user,item,time\n1,2,3\n", "expected the columns item, timestamp, user; found"),
        ("log.csv", "user,item,item,timestamp\n1,2,3,4\n", "expected one column item, found 2"),
        ("log.csv", "userId,movieId,movieId,timestamp\n1,2,3,4\n", "one column movieId, found 2"),
        ("log.csv", "user,item,timestamp\n", "no interactions"),
        ("log.csv", "", "expected a header line, found an empty file"),
        ("log.csv", "\nuser,item,timestamp\n1,2,3\n", "expected a header line, found a blank line"),
        (
            "log.inter",
            "user_id\titem_id\ttimestamp\n1\t2\t3\n",
            "expected the columns item_id:token",
        ),
        ("u.data", "", "empty file"),
        ("log.txt", "", "no interactions"),
        ("ratings_Mine.csv", "user,item,timestamp\n1,2,3\n", "(by its name a file without a header)"),
        ("log.txt", "1 2 3\n\n4\n", "line 3: expected 'user item item …', got '4' alone"),
        ("log.json", "{}", "unknown format"),
    ],
)
def test_bad_text(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text, newline="")
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["log.txt.gz", "log.csv.gz", "ml-1m.zip", "log.parquet"])
def test_damaged_files(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"this is not what the name says")
    with pytest.raises(DataError, match="damaged|not a readable Parquet file"):
        read(path)


def test_blanks_around_names_of_columns(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user, item , timestamp\nu,a,1\n")
    assert read(path).rows() == [("u", "a", 1)]


def test_lines_of_a_sequence_text_end_in_any_way_and_only_blanks_part_ids(tmp_path):
    path = tmp_path / "log.txt"
    for end in ("\n", "\r\n", "\r"):
        path.write_bytes(end.join(["u1 a\u00a0b\tc", "", "u2 d", ""]).encode())
        assert read(path, Columns()).rows() == [("u1", "a\u00a0b"), ("u1", "c"), ("u2", "d")]


@pytest.mark.parametrize("start", ["x^", "\x1f\x8b", "x\x01", "(\xb5/\xfd"])
def test_text_that_begins_as_compressed_data_do(tmp_path, start: str) -> None:
    path = tmp_path / "ratings.dat"
    path.write_bytes(f"{start}::a::5::1\n".encode())
    assert read(path, Columns()).rows() == [(start, "a", 1)]


def test_archives_that_python_cannot_unpack(tmp_path) -> None:
    path = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "1::5::5::1\n")
    whole = path.read_bytes()
    for at, byte, message in ((6, 1, "is encrypted"), (8, 99, "compression method is not supported")):
        central = whole.rindex(b"PK\x01\x02") + at + 2
        path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 : central] + bytes([byte]) + whole[central + 1 :])
        with pytest.raises(DataError, match=f"cannot be unpacked .*{message}"):
            read(path, Columns())


def test_commas_in_ids_of_a_sequence_text(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("u,1 a b\nu,2 a\n")
    assert read(path).rows() == [("u,1", "a"), ("u,1", "b"), ("u,2", "a")]


def test_truncated_gzip(tmp_path):
    path = tmp_path / "log.txt.gz"
    path.write_bytes(gzip.compress(b"1 2 3\n" * 1000)[:-12])
    with pytest.raises(DataError, match="damaged"):
        read(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("log.txt", "log.txt: not UTF-8 text"),
        ("log.csv", "log.csv, line 5: expected 'timestamp,item,user'"),
        ("u.data", "u.data: not UTF-8 text; save it as UTF-8"),
    ],
)
def test_text_in_another_encoding(tmp_path, name, message):
    path = tmp_path / name
    path.write_bytes(TEXTS.get(name, "u1 a b\n").encode() + b"\xff\xfe,\x80\t1\t1\t1\n")
    with pytest.raises(DataError, match=message):
        read(path)


@pytest.mark.parametrize(("name", "separator"), [("log.csv", ","), ("log.tsv", "\t")])
def test_a_quote_that_is_not_closed_is_shown_with_its_line(tmp_path, name, separator) -> None:
    rows = [("user", "item", "timestamp", "title"), *(("u", f"i{i}", str(i), "film") for i in range(9))]
    rows[5] = ("u", "i5", "5", '24" screen')
    path = tmp_path / name
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=f"{name}, line 6: a quote that is not closed"):
        read(path)


def test_parquet_with_a_hole(tmp_path):
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": [1, 2], "item": [1, None], "timestamp": [1, 2]}).write_parquet(path)
    with pytest.raises(DataError, match="row 2: item is empty"):
        read(path)


def test_utf_16(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(TEXTS["log.csv"], encoding="utf-16")
    with pytest.raises(DataError, match="not UTF-8 text"):
        read(path)


def test_archive_without_a_known_member(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("README", "read me")
    with pytest.raises(DataError, match="holds none of .*; unpack a file of your own"):
        read(tmp_path / "other.zip")


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "log.txt")


@pytest.mark.parametrize("name", [*TEXTS, "log.txt"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, name) -> None:
    path = tmp_path / name
    path.write_bytes(codecs.BOM_UTF8 + TEXTS.get(name, "u1 a\nu2 b\nu1 c\n").encode())
    assert read(path).select("user", "item").rows() == [row[:2] for row in LOG]


@pytest.mark.parametrize("name", ["u.data", "log.inter", "ratings.dat", "ratings_Beauty.csv"])
def test_formats_without_quotes_take_them_for_text(tmp_path, name) -> None:
    path = tmp_path / name
    path.write_text(TEXTS[name].replace("u1", '"u1').replace("b", 'b"'))
    expected = [(user.replace("u1", '"u1'), item.replace("b", 'b"'), time) for user, item, time in LOG]
    assert read(path).select("user", "item", "time").rows() == expected


def test_gzip_that_is_damaged_inside(tmp_path) -> None:
    data = bytearray(gzip.compress(np.random.default_rng(0).bytes(1000).hex().encode()))
    data[200:220] = bytes(20)
    (tmp_path / "log.txt.gz").write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        read(tmp_path / "log.txt.gz")
