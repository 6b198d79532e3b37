import numpy as np
import pytest

from fedgh.plot.curves import MOST_POINTS, Curve, conflict_figure, curves_figure, gains_figure, run_figure
from fedgh.plot.style import COLOURS, save_png


def lines(axes):
    return [line for line in axes.get_lines() if len(line.get_xdata()) > 2]


def test_curves_are_means_with_a_band_of_one_deviation():
    curve = Curve("FedAvg", [1, 2, 3], np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]]), (COLOURS[0], 1))
    figure = curves_figure([[("CIFAR-10", "Test accuracy (%)", [curve]), ("Tiny", "Test loss", [curve])]])
    left, right = figure.axes
    (line,) = lines(left)
    assert line.get_ydata().tolist() == [2, 2, 5]
    assert line.get_linestyle() == "--"
    (band,) = left.collections
    edges = band.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == pytest.approx((2 - 2**0.5, 5 + 8**0.5))
    assert (left.get_title(loc="left"), right.get_ylabel()) == ("CIFAR-10", "Test loss")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["FedAvg"]


def test_one_seed_has_no_band():
    assert Curve("x", [1, 2], np.array([[1.0, 2.0]])).spread().tolist() == [0, 0]


def test_cosines_are_sorted_seed_by_seed():
    ratio = Curve("α 0.1", [1, 2, 3], np.array([[10.0, 20.0, 30.0]]))
    figure = conflict_figure(
        {"K = 5": {"α 0.1": [[0.5, -0.5, np.nan, 0.0], [0.1, 0.0, 0.3]]}, "K = 10": {}},
        {"K = 5": [ratio], "K = 10": []},
    )
    above, _, below, _ = figure.axes
    assert [line.get_ydata().tolist() for line in lines(above)] == [[-0.5, 0.0, 0.5], [0.0, 0.1, 0.3]]
    assert lines(below)[0].get_ydata().tolist() == [10, 20, 30]
    assert -1 < below.get_ylim()[0] <= 0


def test_gains_are_beside_those_of_the_paper():
    rows = [("T1 FedAvg", 1.0, -1.0, 3.0, 2.0), ("T1 FedNova", 0.5, np.nan, np.nan, None)]
    (axes,) = gains_figure(rows).axes
    drawn = [tuple(np.asarray(dots.get_offsets())[0]) for dots in axes.collections if len(dots.get_offsets())]
    assert [spot for spot in drawn if spot != (0, 0)] == [(1.0, 0), (2.0, 0), (0.5, 1)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["T1 FedAvg", "T1 FedNova"]


def test_the_interval_of_two_seeds_does_not_push_the_gains_together():
    (axes,) = gains_figure([("T1", 1.0, -60.0, 62.0, 2.0)]).axes
    assert axes.get_xlim() == (-6, 6)


def legend_of(figure):
    """Names in the legend, after drawing; all of it must be inside the figure and clear of the panels."""
    figure.canvas.draw()
    (legend,) = figure.legends
    box, page = legend.get_window_extent(), figure.bbox
    assert (box.x0 >= page.x0, box.x1 <= page.x1, box.y1 <= page.y1) == (True, True, True)
    for axes in figure.axes:
        assert box.y0 >= axes.get_window_extent().y1
    return [text.get_text().replace("\n", " ") for text in legend.get_texts()]


@pytest.mark.parametrize(
    "names",
    [
        [f"Method{index}" for index in range(8)],
        [f"FedProx + GeometricMedian, mu 0.{index}, server lr 1.{index}" for index in range(23)],
        ["a very long name of a method " * 8, "short"],
    ],
)
def test_every_curve_is_named_and_no_name_is_cut(names):
    curves = [Curve(name, [1, 2], np.ones((2, 2)), (COLOURS[0], 0)) for name in names]
    figure = curves_figure([[("", "Test accuracy (%)", curves)]])
    assert legend_of(figure) == [" ".join(name.split()) for name in names]
    runs = {name: {"round": [1, 2], "accuracy": [0.1, 0.2], "conflict_ratio": [0.1, 0.2]} for name in names}
    assert legend_of(run_figure(runs)) == [" ".join(name.split()) for name in names]


def test_rows_of_panels_may_differ_in_their_number():
    panel = ("one", "y", [Curve("a", [1, 2], np.ones((1, 2)))])
    figure = curves_figure([[panel, panel], [panel]])
    assert [axes.axison for axes in figure.axes] == [True, True, True, False]


def test_very_many_pairs_are_thinned_and_keep_their_ends():
    figure = conflict_figure({"K = 1000": {"IID": [np.linspace(-1, 1, 50_000)]}}, {"K = 1000": []})
    (line,) = lines(figure.axes[0])
    assert len(line.get_xdata()) == MOST_POINTS
    assert (line.get_xdata()[-1], line.get_ydata()[0], line.get_ydata()[-1]) == (50_000, -1, 1)


def test_a_run_may_be_named_like_mathematics(tmp_path):
    run = {"round": [0], "accuracy": [0.5], "conflict_ratio": [0.5]}
    save_png(run_figure({r"mu $\mu_{0$": run}), tmp_path / "run.png")
    save_png(run_figure({r"mu $\mu_{0$": run, "$": run}), tmp_path / "runs.png")
