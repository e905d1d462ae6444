"""Arrays with fixed seeds and what ArviZ says about them (see make_reference.py)."""

import importlib.util
import json
from pathlib import Path

import pytest

_PATH = Path(__file__).parent / "make_reference.py"


@pytest.fixture(scope="session")
def arrays():
    """The module that makes the reference arrays; it imports nothing but NumPy until its `main` is called."""
    spec = importlib.util.spec_from_file_location("make_reference", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def reference():
    return json.loads((_PATH.parent / "data" / "arviz.json").read_text())
