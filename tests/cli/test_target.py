"""From FILE.py:NAME to something to sample, with a one-line error for whatever is wrong with it."""

import itertools

import pytest

from jaxprob.cli import _errors, _target, main

NUMBER = itertools.count()

POSTERIOR = """
class Posterior:
    def log_density(self, x):
        return -x * x / 2

posterior = Posterior()
other = posterior

def make():
    return posterior

def log_density(x):
    return -x * x / 2

initial = 0.5
number = 3
"""


@pytest.fixture
def model(tmp_path):
    def write(text):
        path = tmp_path / f"model_{next(NUMBER)}.py"
        path.write_text(text)
        return path

    return write


def test_posterior_by_name_and_by_default(model):
    path = model(POSTERIOR)
    assert _target.split(f"{path}:make") == (path, "make")
    assert _target.split(str(path)) == (path, "posterior")
    target = _target.load(path, "posterior")
    assert target.model.log_density(2.0) == -2.0
    assert target.initial is None


def test_a_function_without_arguments_is_called(model):
    target = _target.load(model(POSTERIOR), "make")
    assert target.model.log_density(2.0) == -2.0


def test_a_log_density_comes_with_its_initial(model):
    target = _target.load(model(POSTERIOR), "log_density")
    assert target.model(2.0) == -2.0
    assert target.initial == 0.5


def test_a_file_may_import_its_neighbours(model, tmp_path):
    (tmp_path / "neighbour_of_the_model.py").write_text("value = 7\n")
    path = model("from neighbour_of_the_model import value\ndef log_density(x): return value\ninitial = 0.0")
    assert _target.load(path, "log_density").model(1.0) == 7


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (POSTERIOR, "missing", "has no 'missing'; it has 'posterior', 'other', 'make', 'log_density'"),
        (POSTERIOR, "number", "number is an object of type int; expected a posterior"),
        ("x = 1\n", "posterior", "has no 'posterior'; it has nothing that could be sampled"),
        ("def posterior(a, b): return 0\n", "posterior", "posterior needs the arguments a, b; expected"),
        ("def posterior(x): return 0\n", "posterior", "needs a position to start from; define `initial`"),
        (
            "class Program:\n    def condition(self, **data): ...\nposterior = Program()\n",
            "posterior",
            "is a model without data; give it some: posterior.condition(y=...)",
        ),
    ],
)
def test_what_cannot_be_sampled(text, name, said, model, capsys):
    path = model(text)
    with pytest.raises(_errors.CommandError, match=r"^[^\n]+$") as caught:
        _target.load(path, name)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_model_is_not_taken_for_a_density(model):
    text = """
from jaxprob import models
from jaxprob.distributions import Normal

@models.joint
def location(n):
    yield "mu", Normal(0.0, 1.0)

@models.joint
def unit():
    yield "mu", Normal(0.0, 1.0)
"""
    path = model(text)
    with pytest.raises(_errors.CommandError, match=r"give it its arguments and data: location\(n\)\.condition"):
        _target.load(path, "location")
    with pytest.raises(_errors.CommandError, match=r"unit is a model without data"):
        _target.load(path, "unit")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 1\n\nb = a + missing\n", ":3: NameError: name 'missing' is not defined"),
        ("def f(:\n", ":1: SyntaxError: invalid syntax"),
        ("import not_a_module_of_anybody\n", ":1: ModuleNotFoundError: No module named 'not_a_module_of_anybody'"),
        ("raise ValueError('one\\ntwo')\n", ":1: ValueError: one two"),
        ("raise RuntimeError()\n", ":1: RuntimeError"),
        ("def make():\n    return [][1]\nposterior = make()\n", ":2: IndexError: list index out of range"),
    ],
)
def test_a_file_that_raises_is_named_with_its_line(text, said, model, capsys, monkeypatch):
    monkeypatch.delenv("JAXPROB_DEBUG", raising=False)
    path = model(text)
    assert main(["sample", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"jaxprob: {path}{said}")
    assert captured.err.count("\n") == 1


def test_debug_shows_the_traceback(model, monkeypatch):
    path = model("raise KeyError('x')\n")
    with pytest.raises(KeyError):
        main(["sample", str(path), "--debug"])
    monkeypatch.setenv("JAXPROB_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["sample", str(path)])


def test_a_very_long_message_is_cut(model, capsys):
    path = model("raise ValueError('long ' * 1000)\n")
    assert main(["sample", str(path)]) == 1
    assert len(capsys.readouterr().err) < 700
