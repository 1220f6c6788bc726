import dataclasses

import numpy as np
import pytest

from tfdwd import benchmarking, plans, reporting
from tfdwd.errors import Error


def test_table_aligns_the_first_column_left_and_the_others_right():
    rows = [["conv_1", 12345, "0.5"], ["d", 7, None]]
    assert reporting.table(["layer", "MACs", "error"], rows) == (
        "layer    MACs  error\n"
        "------  -----  -----\n"
        "conv_1  12345    0.5\n"
        "d           7   None"
    )  # fmt: skip


def test_table_refuses_a_row_of_another_width():
    with pytest.raises(Error, match="2 columns got a row of 1 cells"):
        reporting.table(["a", "b"], [["only"]])


def test_control_characters_of_names_do_not_reach_the_terminal():
    text = reporting.as_text([(["layer"], [["a\x1b[2J\nb\u202e"]]), "c\x07 °C\nnext \udcff"])
    assert text == ("layer\n-----------------\na\\x1b[2J\\nb\\u202e\nc\\x07 °C\nnext \\udcff")


def test_progress_goes_through_and_is_silent_where_there_is_no_terminal(capfd):
    assert list(reporting.progress([3, 1, 2], "counting")) == [3, 1, 2]
    with reporting.progress(2, "counting") as bar:
        assert bar.total == 2
        bar.update()
    assert capfd.readouterr() == ("", "")


def test_html_has_the_same_cells():
    parts = [(["layer", "MACs"], [["a < b", 12]]), "1 & 2"]
    assert reporting.as_html(parts) == (
        "<table><tr><th>layer</th><th>MACs</th></tr><tr><td>a &lt; b</td><td>12</td></tr></table>"
        "<p>1 &amp; 2</p>"
    )
    assert reporting.as_text(parts).splitlines()[2:] == ["a < b    12", "1 & 2"]


def test_plots_have_a_bar_for_each_model_or_layer():
    timing = benchmarking.timing_of("a", 1, *2 * [np.array([0.001, 0.002, 0.004])])
    report = benchmarking.BenchmarkReport((timing, timing), "CPU", 1, 3, "LiteRT", "today")
    [axes] = reporting.plot(report).axes
    assert [bar.get_width() for bar in axes.patches] == [2.0, 2.0]
    layer = plans.LayerPlan("x", False, "why", "", 0, 0, 9, 9, 9, 9, 0.0, 2.0, 1.0)
    untimed = dataclasses.replace(layer, name="y", ms_before=None, ms_after=None)
    plan = plans.Plan((layer, untimed), "", 2.0, 1.0, 0.0, "none", 1, "CPU", "LiteRT")
    [axes] = reporting.plot(plan).axes
    assert [bar.get_width() for bar in axes.patches] == [2.0, 1.0]
