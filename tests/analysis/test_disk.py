"""Draws on disk: the same summary and diagnosis as in memory, read a panel at a time."""

import numpy as np
import pytest

from jaxprob import analysis
from jaxprob.analysis import _summary


class Counting:
    """An array that can only be sliced, and counts what it gave at most."""

    def __init__(self, array):
        self._array, self.shape, self.dtype, self.ndim, self.most = array, array.shape, array.dtype, array.ndim, 0

    def __getitem__(self, index):
        part = self._array[index]
        self.most = max(self.most, part.nbytes)
        return part


@pytest.fixture
def draws(rng):
    x = rng.normal(size=(4, 50, 7, 3)).astype(np.float32)
    return {"x": x, "flag": x[..., 0, 0] > 0, "empty": x[:, :, :0], "n": np.arange(200).reshape(4, 50) % 11}


def test_summary_and_diagnosis_are_those_of_memory(draws, rng, monkeypatch):
    monkeypatch.setattr(_summary, "_PANEL_BYTES", 4 * 50 * 3 * 4 * 2)
    stats = {"diverging": rng.random((4, 50)) < 0.2}
    draws["x"][2] = draws["x"][2, :1]  # a chain that never moved
    lazy = {name: Counting(array) for name, array in draws.items()}
    assert str(analysis.summary(lazy)) == str(analysis.summary(draws))
    found = analysis.diagnose(lazy, stats)
    assert str(found) == str(analysis.diagnose(draws, stats))
    draws["x"][0, 0, 0, 0] = np.nan
    assert "not finite" in str(analysis.diagnose(lazy, stats))
    assert lazy["x"].most == 4 * 50 * 3 * 4 * 2


def test_an_array_of_zarr(draws, tmp_path):
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(str(tmp_path / "x.zarr"), data=draws["x"], chunks=(4, 10, 7, 3))
    assert str(analysis.summary({"x": array})) == str(analysis.summary({"x": draws["x"]}))
