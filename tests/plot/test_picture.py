import subprocess
import sys

import numpy as np
import pytest

from fedgh.plot.picture import (
    cosine_figure,
    cosine_history_figure,
    harm_figure,
    layer_figure,
    partition_figure,
    projection_figure,
    run_figure,
    save_png,
    sorted_cosines_figure,
)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_small_partitions_are_bubbles_with_area_for_samples():
    figure = partition_figure([[40, 0, 10], [0, 20, 0]])
    sizes, grid = figure.axes
    assert [bar.get_height() for bar in sizes.patches] == [50, 20]
    assert (grid.get_xlabel(), grid.get_ylabel(), sizes.get_ylabel()) == ("Client", "Class", "Samples")
    (bubbles,) = grid.collections
    assert bubbles.get_offsets().tolist() == [[0, 0], [0, 2], [1, 1]]
    areas = bubbles.get_sizes()
    assert areas / areas[0] == pytest.approx([1, 0.25, 0.5])
    assert sizes.get_title(loc="left") == "70 samples of 3 classes over 2 clients"
    assert grid.get_title(loc="right") == "largest disc: 40 samples"


@pytest.mark.parametrize(("num_clients", "num_classes"), [(100, 10), (100, 100), (5, 200), (300, 10)])
def test_large_partitions_are_heat_maps(num_clients, num_classes, tmp_path):
    counts = np.arange(num_clients * num_classes).reshape(num_clients, num_classes) % 7
    figure = partition_figure(counts)
    _, grid, scale = figure.axes
    assert np.array_equal(np.ma.filled(grid.images[0].get_array(), 0), counts.T)
    assert scale.get_ylabel() == "Samples"
    assert len(grid.get_xticks()) <= 30
    assert len(grid.get_yticks()) <= 30
    save_png(figure, tmp_path / "partition.png")


def test_very_many_clients_are_a_sample_and_said_to_be(tmp_path):
    """Ten thousand clients: as many columns, patches and ticks as three hundred; the mean is over all."""
    counts = np.repeat(np.arange(10_000)[:, None] % 7, 10, axis=1)
    figure = partition_figure(counts)
    sizes, grid, _ = figure.axes
    assert grid.images[0].get_array().shape == (10, 300)
    assert len(sizes.patches) == 1
    assert sizes.lines[0].get_ydata()[0] == counts.sum(axis=1).mean()
    assert sizes.get_title(loc="left").endswith("over 10,000 clients; 300 of them, evenly spaced")
    names = [label.get_text() for label in grid.get_xticklabels()]
    assert (names[0], len(names)) == ("0", 30)
    assert int(names[-1]) > 9000
    save_png(figure, tmp_path / "partition.png")


def test_cosines_are_centred_at_zero_and_missing_ones_grey(tmp_path):
    cosines = np.array([[1, -0.5, np.nan], [-0.5, 1, np.nan], [np.nan, np.nan, np.nan]])
    figure = cosine_figure(cosines, [4, 7, 9])
    axes, scale = figure.axes
    (image,) = axes.images
    assert image.get_clim() == (-1, 1)
    assert image.get_array().mask.tolist() == np.isnan(cosines).tolist()
    red, green, blue, _ = image.cmap.get_bad()
    assert max(red, green, blue) - min(red, green, blue) < 0.05
    assert image.cmap(image.norm(0.0))[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.02)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "7", "9"]
    assert (axes.get_xlabel(), scale.get_ylabel()) == ("Client", "Cosine of two updates")
    assert texts(axes)[:3] == ["1.00", "-0.50", "–"]
    assert axes.get_title(loc="left") == "100% of 1 pairs in conflict"
    save_png(figure, tmp_path / "cosine.png")


def test_cosines_of_one_client_and_of_many():
    assert cosine_figure([[np.nan]], [0]).axes[0].get_title(loc="left") == "none of 0 pairs in conflict"
    axes = cosine_figure(np.eye(40), list(range(40))).axes[0]
    assert texts(axes) == []
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(k) for k in range(0, 40, 2)]


def test_cosines_beside_the_labels(tmp_path):
    figure = cosine_figure(np.eye(3), [2, 0, 1], [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    labels, cosines, _ = figure.axes
    assert labels.images[0].get_array().tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    assert [label.get_text() for label in labels.get_yticklabels()] == ["2", "0", "1"]
    assert (labels.get_xlabel(), cosines.get_xlabel()) == ("Class", "Client")
    save_png(figure, tmp_path / "cosine.png")


def test_sorted_cosines_leave_out_missing_values_and_repeated_curves(tmp_path):
    figure = sorted_cosines_figure({"Before": [0.5, -0.5, np.nan, 0.0], "After": [0.5, 0.25, 0.0]}, "Round 3")
    (axes,) = figure.axes
    first, second = axes.lines[:2]
    assert first.get_xydata().tolist() == [[1, -0.5], [2, 0], [3, 0.5]]
    assert second.get_ydata().tolist() == [0, 0.25, 0.5]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "Before: 33% in conflict, least -0.50",
        "After: 0% in conflict, least +0.00",
    ]
    save_png(figure, tmp_path / "sorted.png")
    same = sorted_cosines_figure({"Before": [0.5], "After": [0.5]}).axes[0]
    assert len(same.get_legend().get_texts()) == 1
    save_png(sorted_cosines_figure({"Before": []}), tmp_path / "empty.png")


def test_the_history_of_cosines_is_a_column_a_round(tmp_path):
    edges = np.linspace(-1, 1, 5)
    figure = cosine_history_figure(
        [1, 2], edges, {"Before": [[0, 0], [3, 1], [1, 1], [0, 0]], "After": np.eye(4)[:, :2]}
    )
    before, after = figure.axes[:2]
    assert (before.get_title(loc="left"), after.get_xlabel()) == ("Before", "Round")
    shown = np.ma.filled(before.collections[0].get_array(), 0)
    assert shown.reshape(4, 2).tolist() == [[0, 0], [75, 50], [25, 50], [0, 0]]
    save_png(figure, tmp_path / "history.png")
    save_png(cosine_history_figure([1], edges, {"Before": np.zeros((4, 1))}), tmp_path / "empty.png")


def test_layers_over_rounds_are_two_heat_maps(tmp_path):
    figure = layer_figure([1, 2], ["body", "head"], [[0.5, np.nan], [0.25, 1]], [[0.1, np.nan], [-0.3, 0.2]])
    ratio, mean = figure.axes[:2]
    assert np.ma.filled(ratio.images[0].get_array(), -1).tolist() == [[50, -1], [25, 100]]
    assert mean.images[0].get_clim() == (-0.3, 0.3)
    assert [label.get_text() for label in ratio.get_yticklabels()] == ["body", "head"]
    save_png(figure, tmp_path / "layers.png")


def test_projections_are_counted_and_none_is_white(tmp_path):
    figure = projection_figure([[0, 3], [1, 0]], [4, 2])
    axes = figure.axes[0]
    assert axes.images[0].get_array().mask.tolist() == [[True, False], [False, True]]
    assert axes.get_title(loc="left") == "4 projections in all"
    save_png(figure, tmp_path / "projections.png")


def test_harm_is_sorted_from_the_worst(tmp_path):
    figure = harm_figure([3, 5, 7], [0.5, 0.1, -0.5], [-0.1, 0.2, -0.3], "FedGH", "Round 4")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["5", "3", "7"]
    assert axes.get_title(loc="left") == "Round 4: 1 of 3 clients harmed, 2 under the mean"
    save_png(figure, tmp_path / "harm.png")
    many = harm_figure(range(100), np.zeros(100), np.arange(100.0), "FedGH").axes[0]
    assert many.get_yticklabels()[0].get_text() == "99"


def test_runs_are_two_panels_in_percent_without_missing_values(tmp_path):
    first = {"round": [0, 1, 2], "accuracy": [0.1, np.nan, 0.5], "conflict_ratio": [0.3, 0.2, 0.1]}
    second = {"round": [0, 1], "accuracy": [0.2, 0.4], "conflict_ratio": [np.nan, 0.2]}
    figure = run_figure({"FedAvg": first, "FedGH": second})
    accuracy, conflict = figure.axes
    assert (accuracy.get_ylabel(), conflict.get_ylabel()) == ("Test accuracy (%)", "Pairs in conflict (%)")
    assert conflict.get_xlabel() == "Round"
    assert accuracy.lines[0].get_xydata() == pytest.approx(np.array([[0, 10], [2, 50]]))
    assert conflict.lines[0].get_xydata() == pytest.approx(np.array([[0, 30], [1, 20], [2, 10]]))
    assert conflict.lines[1].get_xydata() == pytest.approx(np.array([[1, 20]]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["FedAvg", "FedGH"]
    save_png(figure, tmp_path / "run.png")


def test_one_run_is_named_in_the_title_and_many_keep_their_colours():
    run = {"round": [0], "accuracy": [0.5], "conflict_ratio": [0.5]}
    assert run_figure({"FedAvg": run}).axes[0].get_title(loc="left") == "FedAvg"
    accuracy, conflict = run_figure({str(index): run for index in range(9)}).axes
    assert [line.get_color() for line in accuracy.lines] == [line.get_color() for line in conflict.lines]
    assert len(run_figure({}).axes) == 2


def test_saved_pictures_are_png(tmp_path):
    path = tmp_path / "folder" / "picture.png"
    save_png(run_figure({}), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_nothing_global_is_imported():
    code = (
        "import sys, fedgh.plot.picture as p; assert 'matplotlib' not in sys.modules; "
        "p.partition_figure([[1, 2]]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_harms_legend_has_the_colours_of_its_points():
    (axes,) = harm_figure([3, 5, 7], [0.5, 0.1, -0.5], [-0.1, 0.2, -0.3], "FedGH").axes
    legend = axes.get_legend()
    handles = dict(zip((text.get_text() for text in legend.get_texts()), legend.legend_handles, strict=True))
    assert list(handles) == ["Mean", "FedGH", "FedGH, harmed"]
    mean, chosen = axes.collections[1:3]
    harmed, spared, _ = chosen.get_facecolors()  # worst first: clients 5, 3, 7
    for label, colour in (("FedGH", spared), ("FedGH, harmed", harmed), ("Mean", mean.get_facecolors()[0])):
        assert handles[label].get_facecolor()[0].tolist() == colour.tolist(), label
    assert harmed.tolist() != spared.tolist()
    assert [chosen.get_offsets()[k].tolist() for k in range(3)] == [[0.2, 0], [-0.1, 1], [-0.3, 2]]
