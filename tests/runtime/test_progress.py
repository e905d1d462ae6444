import io

import pytest

from jaxprob.runtime import _progress

PLAN = {
    "chains": 4,
    "warmup": 500,
    "draws": 500,
    "devices": "2 cpu devices",
    "algorithm": "nuts",
    "out": "runs/demo",
}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def status(step, total=1000, chains=4, **more):
    rows = [
        {"draws": max(0, step - 500), "divergences": i % 2, "step_size": 0.25 + 0.1 * i, "gradients_per_draw": 7.0}
        for i in range(chains)
    ]
    phase = "warm-up" if step <= 500 else "sampling"
    return {"step": step, "total": total, "phase": phase, "chains": rows, "draws_per_second": 1234.5, **more}


def lines(progress_lines):
    return progress_lines._stream.getvalue().splitlines()


def test_plain_lines_of_a_short_run():
    clock = Clock()
    progress = _progress.Lines(io.StringIO(), clock)
    progress.start(PLAN)
    progress.phase("compiling")
    assert lines(progress)[-1] == "jaxprob: compiling ..."  # at once, before anything is known
    clock.now += 3.25
    for step in range(50, 1001, 50):
        clock.now += 0.5
        progress.phase("warm-up" if step <= 500 else "sampling")
        progress.update(status(step, **({"r_hat_max": 1.0123, "ess_min": 432.1} if step > 600 else {})))
    progress.finish("finished: 4 chains in runs/demo")
    progress.close()
    found = lines(progress)
    assert found[0] == ("jaxprob: nuts, 4 chains on 2 cpu devices, 500 warm-up steps and 500 draws each, to runs/demo")
    assert found[2] == "jaxprob: compiled in 3.8 s"
    assert found[3] == (
        "jaxprob: warm-up   10%  draws 0  divergences 2  step size 0.4  gradients/draw 7.0  1,234 steps/s  0:00:09 left"
    )
    assert found[9] == (
        "jaxprob: sampling  70%  draws 800  divergences 2  step size 0.4  gradients/draw 7.0  1,234 draws/s  "
        "0:00:03 left  R-hat 1.012  ESS 432"
    )
    assert found[-1] == "jaxprob: finished: 4 chains in runs/demo"
    assert len(found) == 14  # plan, compiling, compiled, ten tenths, the last word


def test_a_line_after_ten_seconds_and_few_lines_in_a_long_run():
    clock = Clock()
    progress = _progress.Lines(io.StringIO(), clock)
    progress.start(PLAN)
    for step in range(1, 9):  # less than a tenth, 6 s each
        clock.now += 6
        progress.update(status(step))
    assert len(lines(progress)) == 1 + 4
    for step in range(1000, 100_000):  # 28 hours, a chunk a second
        clock.now += 1
        progress.update(status(step, total=1_000_000))
    assert len(lines(progress)) < 200


def test_time_left_counts_neither_compiling_nor_a_resumed_past():
    clock = Clock()
    progress = _progress.Lines(io.StringIO(), clock)
    progress.start(PLAN)
    clock.now += 60  # compiling
    progress.update(status(600))  # resumed at 600 of 1000
    assert "left" not in lines(progress)[-1]
    clock.now += 10
    progress.update(status(700))
    assert "0:00:30 left" in lines(progress)[-1]


POPULATIONS = [
    {"draws": 0, "steps": 7, "inverse_temperature": 0.0321, "acceptance_rate": 0.8, "log_evidence": -41.236},
    {"draws": 0, "steps": 6, "inverse_temperature": 1.0, "acceptance_rate": 0.9, "log_evidence": -41.0},
]


def test_populations_are_told_by_their_temperatures():
    progress = _progress.Lines(io.StringIO(), clock := Clock())
    progress.start({})
    clock.now += 20
    status = {"step": 7, "total": None, "phase": "warm-up", "chains": POPULATIONS, "draws_per_second": 3.0}
    progress.update(status)
    # The slowest of them, and no share of a total that nobody knows.
    assert lines(progress)[-1] == (
        "jaxprob: warm-up  draws 0  step 7  inverse temperature 0.0321  acceptance 0.85  log evidence -41.12  3 steps/s"
    )
    table = _progress.Table(io.StringIO())
    table.start(PLAN)
    table.update(status)
    shown = text_of(table, 120).splitlines()
    head = ["chain", "progress", "draws", "step", "inverse", "temperature", "acceptance", "log", "evidence"]
    assert shown[0].split() == head
    assert shown[1].split()[-5:] == ["0", "7", "0.0321", "0.80", "-41.24"]
    assert shown[2].split()[-5:] == ["0", "6", "1", "0.90", "-41.00"]
    assert "%" not in shown[3]
    table.close()
    # Not every sampler of populations has temperatures.
    progress.update(status | {"chains": [{"draws": 0, "steps": 3, "log_evidence": -1.0}], "total": 10, "step": 5})
    assert lines(progress)[-1] == "jaxprob: warm-up   50%  draws 0  step 3  log evidence -1.00  3 steps/s"


def test_unknown_values_are_left_out():
    progress = _progress.Lines(io.StringIO(), Clock())
    progress.start({})
    progress.update({"step": 5, "total": 10, "chains": [{}]})
    progress.update({})
    assert lines(progress) == [
        "jaxprob: run",
        "jaxprob:           50%  draws -  divergences -  step size -  gradients/draw -",
    ]


def test_lines_where_there_is_no_terminal_and_a_table_where_there_is(monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert isinstance(_progress.terminal(io.StringIO()), _progress.Lines)
    assert isinstance(_progress.terminal(Terminal()), _progress.Table)
    assert isinstance(_progress.terminal(Terminal(), live=False), _progress.Lines)
    assert isinstance(_progress.terminal(io.StringIO(), live=True), _progress.Table)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(_progress.terminal(Terminal()), _progress.Lines)


def text_of(table, width=100):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table._render())
    return console.file.getvalue()


def test_table_has_a_row_a_chain_and_says_compiling_at_once():
    table = _progress.Table(io.StringIO())
    table.start(PLAN)
    table.phase("compiling")
    assert "compiling ... 0:00:0" in text_of(table)
    table.phase("warm-up")
    table.update(status(250))
    shown = text_of(table)
    header = ["chain", "progress", "draws", "divergences", "step", "size", "gradients/draw"]
    assert shown.splitlines()[0].split() == header
    rows = shown.splitlines()[1:5]
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "3"]
    assert [row.split()[-3:] for row in rows] == [
        ["0", "0.25", "7.0"],
        ["1", "0.35", "7.0"],
        ["0", "0.45", "7.0"],
        ["1", "0.55", "7.0"],
    ]
    assert "warm-up 25%" in shown
    table.finish("finished")
    assert text_of(table).splitlines()[-1] == "finished"
    table.close()
    table.close()


def test_training_shows_steps_and_losses():
    plan = {"algorithm": "training of 10 parameters", "steps": 1000, "devices": "1 cpu device"}
    now = {"step": 500, "total": 1000, "phase": "training", "loss": 0.25, "validation/loss": 0.5}
    progress = _progress.Lines(io.StringIO(), Clock())
    progress.start(plan)
    progress.update({**now, "steps_per_second": 1234.56})
    assert lines(progress) == [
        "jaxprob: training of 10 parameters, 1,000 steps on 1 cpu device",
        "jaxprob: training  50%  loss 0.25  validation 0.5  1,234.6 steps/s",
    ]
    table = _progress.Table(io.StringIO())
    table.update({**now, "total": None})  # a run without an end
    assert "training 0%  loss 0.25  validation 0.5" in text_of(table)


def test_many_chains_are_summed_up():
    table = _progress.Table(io.StringIO())
    table.update(status(600, chains=1000))
    rows = text_of(table).splitlines()
    assert len(rows) == 1 + 8 + 1 + 1  # header, eight chains, all of them, what is going on
    assert rows[9].split()[:2] == ["all", "1,000"]
    assert "100,000" in rows[9]
    assert rows[9].split()[-3] == "500"


def test_a_path_with_brackets_is_not_markup():
    stream = io.StringIO()
    table = _progress.Table(stream)
    table.start({**PLAN, "out": "runs/[red]x[/bold]"})
    table.close()
    assert "runs/[red]x[/bold]" in stream.getvalue().replace("\n", "")


@pytest.mark.parametrize("kind", [_progress.Lines, _progress.Table])
def test_closing_without_an_end(kind):
    progress = kind(io.StringIO())
    progress.start(PLAN)
    progress.update(status(10))
    progress.close()
    progress.close()
