"""The command line: `jaxprob demo | sample FILE.py:NAME | diagnose DIR | report DIR | devices`.

Nothing here imports JAX (or NumPy, or rich) before a command needs it, so that `--help` answers at once.
"""

from jaxprob.cli._main import main as main
