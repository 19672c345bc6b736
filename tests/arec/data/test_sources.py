from __future__ import annotations

import errno
import gzip
import hashlib
import http.server
import io
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from data.test_formats import TEXTS

from arec.data import load, sources
from arec.data.download import Remote, fetch
from arec.errors import DataError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t5\t5\t1\n1\t6\t5\t2\n"
CSV = b"u1,a,5.0,3\nu1,b,4.0,1\nu2,a,3.0,2\n"


def zipped(member: str, text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, text)
    return buffer.getvalue()


class Publisher(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        body = self.server.files.get(self.path.lstrip("/"))
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + self.server.withheld))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def publisher(monkeypatch, tmp_path):
    """A publisher's site on this machine, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # wins over capitals
    monkeypatch.delenv("AREC_DATA_DIR", raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Publisher) as server:
        server.files, server.requests, server.withheld = {}, [], 0
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.cache = tmp_path / "cache" / "arec"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def move_to(monkeypatch, publisher, dataset, checksum):
    source = sources._SOURCES[dataset]
    remote = Remote(f"{publisher.url}/{source.remote.name}", checksum)
    monkeypatch.setitem(sources._SOURCES, dataset, replace(source, remote=remote))


def test_download_once_with_checksum(publisher, monkeypatch):
    archive = zipped("ml-1m/ratings.dat", "1::7::5::2\n1::8::5::1\n")
    publisher.files["ml-1m.zip"] = archive
    move_to(monkeypatch, publisher, "ml-1m", f"md5:{hashlib.md5(archive).hexdigest()}")
    for _ in range(2):
        sequences = load("ml-1m", k_core=1)
        assert [sequences.item_ids[i - 1] for i in sequences[0]] == ["8", "7"]
    assert publisher.requests == ["/ml-1m.zip"]


def test_wrong_checksum_leaves_nothing(publisher):
    publisher.files["ml-1m.zip"] = b"something else"
    with pytest.raises(DataError, match="checksum md5:0{32}.*--data-dir"):
        fetch(Remote(f"{publisher.url}/ml-1m.zip", "md5:" + "0" * 32))
    assert list(publisher.cache.iterdir()) == []


def test_first_download_sets_the_checksum_where_none_is_published(publisher, monkeypatch):
    publisher.files["ratings_Beauty.csv"] = CSV
    move_to(monkeypatch, publisher, "beauty", None)
    assert load("beauty", k_core=1).num_interactions == 3
    record = publisher.cache / "ratings_Beauty.csv.sha256"
    assert record.read_text() == f"sha256:{hashlib.sha256(CSV).hexdigest()}"

    (publisher.cache / "ratings_Beauty.csv").write_bytes(CSV[:11])  # damaged: fetched again
    assert load("beauty", k_core=1).num_interactions == 3

    (publisher.cache / "ratings_Beauty.csv").unlink()
    publisher.files["ratings_Beauty.csv"] = CSV[:11]
    with pytest.raises(DataError, match="checksum"):
        load("beauty", k_core=1)


def test_download_that_breaks_off_leaves_nothing(publisher):
    publisher.files["file.csv"] = CSV
    publisher.withheld = 100
    with pytest.raises(DataError, match="cannot be fetched .*--data-dir"):
        fetch(Remote(f"{publisher.url}/file.csv", None))
    assert list(publisher.cache.iterdir()) == []


def test_file_that_is_not_there(publisher):
    with pytest.raises(DataError, match="HTTP status 404.*--data-dir"):
        fetch(Remote(f"{publisher.url}/ml-1m.zip", None))


def test_no_network(publisher):
    with pytest.raises(DataError, match="cannot be fetched .*check the network.*--data-dir") as caught:
        fetch(Remote("http://127.0.0.1:9/ml-1m.zip", None))
    assert "\n" not in str(caught.value)


def test_cache_that_is_no_folder(publisher):
    publisher.cache.parent.mkdir()
    publisher.cache.write_text("a file")
    with pytest.raises(DataError, match=f"^{publisher.cache}: cannot be written .*--data-dir"):
        fetch(Remote(f"{publisher.url}/ml-1m.zip", None))


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_files_at_hand_need_no_network(publisher, monkeypatch, tmp_path, given):
    (tmp_path / "ratings_Beauty.csv").write_bytes(CSV)
    move_to(monkeypatch, publisher, "beauty", None)
    if given == "environment":
        monkeypatch.setenv("AREC_DATA_DIR", str(tmp_path))
    data_dir = tmp_path if given == "argument" else None
    assert load("beauty", data_dir=data_dir, k_core=1).name == "beauty"
    assert publisher.requests == []


def test_folder_without_the_file_is_no_reason_to_download(publisher, monkeypatch, tmp_path):
    move_to(monkeypatch, publisher, "ml-1m", None)
    with pytest.raises(DataError, match="holds no file of ml-1m; expected one of ml-1m.zip"):
        load("ml-1m", data_dir=tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load("ml-1m", data_dir=tmp_path / "nowhere")
    assert publisher.requests == []


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    ("dataset", "name", "text"),
    [
        ("ml-1m", "ratings.dat", "1::5::5::1\n1::6::5::2\n"),
        ("ml-1m", "ml-1m.inter", INTER),
        ("ml-1m", "ml-1m.txt", "1 5 6\n"),
        ("ml-100k", "u.data", "1\t5\t5\t1\n1\t6\t5\t2\n"),
        ("ml-100k", "ml-100k.inter", INTER),
        ("ml-100k", "ml-100k.txt", "1 5 6\n"),
        ("beauty", "ratings_Beauty.csv", "1,5,5,1\n1,6,5,2\n"),
        ("beauty", "beauty.txt", "1 5 6\n"),
    ],
)
def test_usual_names_of_files_at_hand(tmp_path, dataset, name, text, gz) -> None:
    data = text.encode()
    (tmp_path / (name + ".gz" * gz)).write_bytes(gzip.compress(data) if gz else data)
    sequences = load(dataset, data_dir=tmp_path, k_core=1)
    assert sequences.name == dataset and sequences.item_ids.tolist() == ["5", "6"]


def test_downloads_that_their_publisher_has_a_checksum_of_are_held_to_it() -> None:
    assert [name for name, source in sources._SOURCES.items() if not source.remote.checksum] == ["beauty"]


def test_own_file(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("who,what,when\nu,b,2\nu,a,1\n")
    sequences = load(str(path), user_column="who", item_column="what", time_column="when", k_core=1)
    assert sequences.name == "log.csv"
    assert [sequences.item_ids[i - 1] for i in sequences[0]] == ["a", "b"]


@pytest.mark.parametrize(
    "dataset", ["builtin", "ml-1m", "beauty", "log.txt.gz", "log.inter", "folder/ratings_Books.csv"]
)
@pytest.mark.parametrize("column", ["user_column", "item_column", "time_column"])
def test_columns_are_for_own_files_that_have_some(dataset, column):
    with pytest.raises(DataError, match=f"^{dataset}: expected no --user-column"):
        load(dataset, **{column: ""})


@pytest.mark.parametrize(("name", "message"), [("log.jsonl", "unknown format"), ("a", "no such file")])
def test_with_columns_too_a_file_that_cannot_be_read_is_said_first(tmp_path, name, message):
    (tmp_path / "log.jsonl").write_text("{}")
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / name), user_column="who")


def test_unknown_name():
    with pytest.raises(DataError, match="ml-20m: no such file, and no data set of that name; there are"):
        load("/some/folder/ml-20m")  # as programs say it, which make paths whole
    with pytest.raises(DataError, match="there are builtin, .*; did you mean beauty[?]$"):
        load("beuaty")
    with pytest.raises(DataError, match="^folder/ml-20m.csv: no such file$"):
        load("folder/ml-20m.csv")


def test_built_in_data_by_seed():
    assert load("builtin").items.tolist() != load("builtin", seed=1).items.tolist()


@pytest.mark.parametrize(
    ("dataset", "file", "users", "items", "interactions"),
    [
        ("ml-1m", "ml-1m", 6040, 3416, 999_611),  # of 1,000,209
        ("beauty", "beauty", 22_363, 12_101, 198_502),
        ("ml-100k", "recbole", 943, 1349, 99_287),  # of 100,000
    ],
)
def test_5_core_of_real_data(data_dir, dataset, file, users, items, interactions):
    if not any(data_dir.glob(f"*{file}*")):
        pytest.skip(f"AREC_DATA_DIR holds no {dataset}")
    sequences = load(dataset, data_dir=data_dir)
    assert (sequences.num_users, sequences.num_items) == (users, items)
    assert sequences.num_interactions == interactions


def test_a_record_of_a_checksum_is_whole_or_not_there(publisher, monkeypatch) -> None:
    publisher.files["file.csv"] = CSV

    def disk_full(self: Path, text: str) -> None:
        self.write_bytes(text[:9].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    remote = Remote(f"{publisher.url}/file.csv", None)
    with monkeypatch.context() as patch, pytest.raises(DataError, match="cannot be written"):
        patch.setattr(Path, "write_text", disk_full)
        fetch(remote)
    assert fetch(remote).read_bytes() == CSV


def test_of_several_wheels_the_newest(tmp_path) -> None:
    member = "recbole/dataset_example/ml-100k/ml-100k.inter"
    for version in (1, 2):
        text = TEXTS["log.inter"] + "u9\tz\t5\t9\n" * (version - 1)
        (tmp_path / f"recbole-1.{version}.whl").write_bytes(zipped(member, text))
    assert load("ml-100k", data_dir=tmp_path, k_core=1).num_interactions == 4


def test_k_core_of_the_built_in_data() -> None:
    with pytest.raises(DataError, match="is no 50-core"):
        load("builtin", k_core=50)
