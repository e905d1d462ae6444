"""Loops over time are in `jaxprob.scan` and nowhere else: no other file calls `lax.scan` or `lax.associative_scan`."""

import ast
from pathlib import Path

import jaxprob

ROOT = Path(jaxprob.__file__).parent
LOOPS = {"scan", "associative_scan"}
# A loop over the columns of a matrix, in the hall that stands below `scan`.
EXCEPTIONS = {"core/_tria.py"}


def loops_of(source):
    """Lines with `scan` or `associative_scan` of JAX's `lax`, under whatever name it was imported."""
    tree = ast.parse(source)
    laxes, lines = set(), []  # names that stand for the module
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "jax":
            laxes |= {alias.asname or alias.name for alias in node.names if alias.name == "lax"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax.") and "lax" in node.module:
            lines += [node.lineno for alias in node.names if alias.name in LOOPS | {"*"}]
        elif isinstance(node, ast.Import):
            laxes |= {alias.asname for alias in node.names if alias.name == "jax.lax" and alias.asname}
        elif isinstance(node, ast.Assign) and is_lax(node.value, laxes):
            laxes |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in LOOPS and is_lax(node.value, laxes):
            lines.append(node.lineno)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            named = [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
            if named and named[0] in LOOPS and is_lax(node.args[0], laxes):
                lines.append(node.lineno)
    return sorted(lines)


def is_lax(node, laxes):
    """`lax`, or `jax.lax` and what ends like it."""
    return (isinstance(node, ast.Name) and node.id in laxes) or (isinstance(node, ast.Attribute) and node.attr == "lax")


def test_no_other_file_runs_a_loop_over_time():
    found, own = {}, []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        lines = loops_of(path.read_text())
        if name.startswith("scan/"):
            own += lines
        elif lines and name not in EXCEPTIONS:
            found[name] = lines
    assert found == {}
    assert own
    assert all(loops_of((ROOT / name).read_text()) for name in EXCEPTIONS)


def test_what_would_be_found():
    """Every spelling."""
    for source in (
        "import jax\njax.lax.scan(f, 0)",
        "from jax import lax\nlax.scan(f, 0)",
        "from jax import lax as l\nl.associative_scan(f, x)",
        "import jax.lax as lax\nlax.associative_scan(f, x)",
        "import jax.lax\njax.lax.scan(f, 0)",
        "import jax as j\nrun = j.lax.scan",
        "\nfrom jax.lax import scan",
        "\nfrom jax.lax import associative_scan as tree",
        "\nfrom jax.lax import *",
        "\nfrom jax._src.lax.control_flow import scan",
        "import jax\nlax = jax.lax; lax.scan(f, 0)",
        "from jax import lax\ngetattr(lax, 'scan')(f, 0)",
    ):
        assert loops_of(source) == [2], source


def test_what_is_left_alone():
    for source in (
        "from jaxprob import scan\nscan.scan(f, 0)\nscan.associative(f, x)",
        "from jax import lax\nlax.while_loop(c, f, 0)\nlax.fori_loop(0, 3, f, 0)\nlax.cumsum(x)",
        "# jax.lax.scan(f, 0)\n'lax.scan'",
        "from jax.lax import while_loop",
    ):
        assert loops_of(source) == [], source
