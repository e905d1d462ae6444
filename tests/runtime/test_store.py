"""Draw stores: what is read is what was written, whole or not at all, whatever happens in between."""

import errno
import itertools
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxprob.runtime import MemoryStore, ZarrStore
from jaxprob.runtime._store import DiskArray, write_json

ROOT = Path(__file__).resolve().parents[2]


def rows(start, stop, chains=3):
    index = np.arange(start, stop)[:, None] + 1000 * np.arange(chains)
    return {
        "posterior/theta": np.stack([index, -index], -1).astype(np.float32),
        "posterior/count": index.astype(np.int32),
        "sample_stats/diverging": index % 3 == 0,
        "posterior/x64": index.astype(np.float64),
    }


@pytest.mark.parametrize("cuts", [[0, 50], [0, 1, 2, 13, 50], [0, 10, 20, 50]])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_what_is_appended_is_read(tmp_path, cuts, chunk):
    stores = [MemoryStore(), MemoryStore(chunk), ZarrStore(tmp_path / "draws.zarr", chunk)]
    for store in stores:
        for start, stop in itertools.pairwise(cuts):
            store.append(rows(start, stop))
        store.flush()
        assert sorted(store.paths()) == sorted(rows(0, 1))
        for path, value in rows(0, 50).items():
            read = store.read(path)
            assert read.dtype == value.dtype
            np.testing.assert_array_equal(read, np.moveaxis(value, 0, 1))


def test_memory_holds_the_rows_and_not_the_buffers_they_come_in():
    store = MemoryStore(room=4)
    for start in range(0, 6, 2):  # the last two find no room
        buffer = np.full((1000, 3), np.nan)
        buffer[:2] = rows(start, start + 2)["posterior/x64"]
        store.append({"posterior/x64": buffer[:2]})
        gone = weakref.ref(buffer)
        del buffer
        assert gone() is None
    np.testing.assert_array_equal(store.read("posterior/x64"), rows(0, 6)["posterior/x64"].T)
    assert store.read("posterior/x64").base.nbytes <= 2 * 6 * 3 * 8


def test_readers_never_see_rows_that_are_not_there(tmp_path):
    store = ZarrStore(tmp_path / "draws.zarr", 10)
    store.append(rows(0, 5))
    store.flush()
    store.append(rows(5, 12))  # on its way
    shape = json.loads((tmp_path / "draws.zarr/posterior/theta/zarr.json").read_text())["shape"]
    assert shape == [3, 5, 2]
    np.testing.assert_array_equal(
        DiskArray(tmp_path / "draws.zarr/posterior/theta")[...], np.moveaxis(rows(0, 5)["posterior/theta"], 0, 1)
    )


def test_xarray_reads_it_while_it_grows(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    store = ZarrStore(tmp_path / "draws.zarr", 10)
    for start, stop in [(0, 5), (5, 12)]:
        store.append(rows(start, stop))
        store.flush()
        tree = xarray.open_datatree(tmp_path / "draws.zarr", engine="zarr", consolidated=False)
        assert tree["posterior/theta"].dims == ("chain", "draw", "theta_dim_0")
        np.testing.assert_array_equal(
            tree["posterior/theta"].values, np.moveaxis(rows(0, stop)["posterior/theta"], 0, 1)
        )


def test_going_on_from_an_earlier_row_overwrites_the_later_ones(tmp_path):
    store = ZarrStore(tmp_path / "draws.zarr", 10)
    store.append(rows(0, 20))
    store.flush()
    again = ZarrStore(tmp_path / "draws.zarr", 10, rows=7)
    again.append(rows(7, 20))
    again.append(rows(20, 31))
    np.testing.assert_array_equal(again.read("posterior/count"), rows(0, 31)["posterior/count"].T)


def test_bfloat16_is_kept_as_float32(tmp_path):
    store = ZarrStore(tmp_path / "draws.zarr", 10)
    value = np.arange(6).reshape(3, 2).astype(ml_dtypes.bfloat16)
    store.append({"posterior/x": value})
    assert store.read("posterior/x").dtype == np.float32
    np.testing.assert_array_equal(store.read("posterior/x"), value.astype(np.float32).T)


def test_part_of_an_array(tmp_path):
    store = ZarrStore(tmp_path / "draws.zarr", 4)
    store.append(rows(0, 20))
    store.flush()
    part = DiskArray(tmp_path / "draws.zarr/posterior/count")[:, 3:17:5]
    np.testing.assert_array_equal(part, rows(0, 20)["posterior/count"].T[:, 3:17:5])


def test_json_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "meta.json"
    write_json(path, {"a": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"^\[Errno 28\] sample: out is .*No space left.*; expected .* make room and resume"
    ):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["meta.json"]


_FULL = """
import resource, signal, sys
import numpy as np
from jaxprob.runtime import ZarrStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = ZarrStore(sys.argv[1], 1000)
store.append({"posterior/x": np.arange(20_000.0).reshape(1000, 20)})
store.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    store.append({"posterior/x": np.zeros((1000, 20))})
    store.flush()
except OSError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_is_one_line_and_loses_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path / "draws.zarr")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line]
    assert len(lines) == 1
    assert "sample: out is" in lines[0]
    assert "The first 1000 draws are safe; make room and resume." in lines[0]
    np.testing.assert_array_equal(
        DiskArray(tmp_path / "draws.zarr/posterior/x")[...], np.arange(20_000.0).reshape(1000, 20).T
    )
