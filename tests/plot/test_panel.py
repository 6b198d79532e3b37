import base64
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fedgh.plot.curves import Curve
from fedgh.plot.panel import BOTTOM, LEFT, RIGHT, TOP, HeatMap, heat_panel, limits, line_panel, scale
from fedgh.plot.style import DASHES

RISING = Curve("a <b>", [1, 2, 4], np.array([[0.0, 50.0, 100.0]]), ("#0072b2", 0))


def tree(svg):
    return ElementTree.fromstring(svg.replace("xlink:href", "href"))


def points(group):
    """Corners of the first path in a group, in pixels from the left and from the top."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", group.find(".//path").get("d"))
    return np.array(numbers, dtype=float).reshape(-1, 2)


def of_class(svg, kind):
    return [group for group in tree(svg).iter("g") if group.get("class") == kind]


def texts(svg):
    return [text.text for text in tree(svg).iter("text")]


def test_a_line_goes_where_its_numbers_are():
    svg = line_panel("α & β", 400, [RISING], (0.0, 100.0), 200)
    (line,) = of_class(svg, "line")
    width = 400 - LEFT - RIGHT
    expected = [(LEFT, TOP + 200), (LEFT + width / 3, TOP + 100), (LEFT + width, TOP)]
    np.testing.assert_allclose(points(line), expected, atol=0.1)
    assert tree(svg).get("viewBox") == f"0 0 400 {TOP + 200 + BOTTOM}"
    assert {"α & β", "round", "1", "4", "100"} <= set(texts(svg))
    assert line.find("title").text == "a <b>: 100 after round 4"


def test_rounds_without_a_number_are_left_out_of_the_line():
    gap = Curve("a", [1, 2, 3], np.array([[1.0, np.nan, 3.0]]))
    svg = line_panel("", 400, [gap], (0.0, 4.0), 200)
    assert len(points(of_class(svg, "line")[0])) == 2
    told = json.loads(tree(svg).get("data-chart"))
    assert told["lines"][0]["values"] == [1.0, None, 3.0]
    assert (told["left"], told["right"], told["first"], told["last"]) == (LEFT, 400 - RIGHT, 1, 3)


def test_a_band_goes_there_and_back():
    ends = [(np.array([0.0, 1.0]), np.array([2.0, 3.0]))]
    banded = Curve("a", [1, 2], np.array([[1.0, 2.0]]), ("#d55e00", 1), 3, ends)
    svg = line_panel("", 400, [banded], (0.0, 4.0), 200)
    heights = {round(float(value)) % (TOP + 200 + BOTTOM) for value in points(of_class(svg, "band")[0])[:, 1]}
    assert heights == {TOP + 200, TOP + 150, TOP + 100, TOP + 50}
    assert [group.get("data-method") for kind in ("line", "band") for group in of_class(svg, kind)] == ["3", "3"]
    assert "stroke-dasharray" in ElementTree.tostring(of_class(svg, "line")[0]).decode()
    assert limits([banded], (0.0, 10.0), 0.0) == pytest.approx((0.0, 3.15))


def test_an_unfinished_run_is_thin_and_not_told_about():
    thin = Curve("b", [1, 2], np.array([[1.0, 2.0]]), method=1, thin=True)
    svg = line_panel("", 400, [RISING, thin], (0.0, 100.0), 200)
    assert len(of_class(svg, "thin")) == 1
    assert [line["name"] for line in json.loads(tree(svg).get("data-chart"))["lines"]] == ["a <b>"]


def test_the_axis_is_no_tighter_than_asked_and_stays_within():
    def at(value):
        return [Curve("a", [1], np.array([[value]]))]

    assert limits(at(50.0), (0.0, 100.0), 10.0) == (45.0, 55.0)
    assert limits(at(99.0), (0.0, 100.0), 10.0) == (94.0, 100.0)
    assert limits([], (0.0, 100.0), 10.0) == (0.0, 100.0)


def test_a_heat_map_has_a_pixel_a_number():
    values = np.array([[0.0, np.nan, 1.0], [1.0, 1.0, 0.0]])
    svg = heat_panel("t", 300, HeatMap(values, [1, 5, 9], "Greys", ["top", "low"]), 100)
    (data,) = re.findall('data:image/png;base64,([^"]+)', svg)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    assert pixels.shape == (2, 3, 3)
    white = {tuple(row) for row in np.argwhere(pixels.min(axis=2) == 255).tolist()}
    assert white in ({(0, 0), (0, 1), (1, 2)}, {(1, 0), (1, 1), (0, 2)})  # none, and not known; SVG may turn it over
    assert {"top", "low", "1", "5", "9"} <= set(texts(svg))
    where = {text.text: float(text.get("y")) for text in tree(svg).iter("text") if text.get("y")}
    assert where["top"] < where["low"]


def test_a_vertical_axis_of_numbers_has_its_zero_marked():
    svg = heat_panel("t", 300, HeatMap(np.ones((4, 2)), [1, 2], "Greys", ends=(-0.5, 0.5)), 100, zero=True)
    assert {"0.0", "0.2", "−0.2"} <= set(texts(svg))
    assert "stroke-dasharray" in svg


def test_long_names_get_room_and_very_long_ones_are_cut_in_front():
    svg = heat_panel("", 300, HeatMap(np.ones((1, 1)), [1], "Greys", ["layer." * 10 + "weight"]), 50)
    (name,) = [text for text in texts(svg) if "weight" in text]
    assert (name[0], len(name)) == ("…", 20)
    (where,) = [float(text.get("x")) for text in tree(svg).iter("text") if text.text == name]
    assert where > 130  # it ends there, and the map begins


def test_a_panel_is_a_part_of_a_page_and_nothing_else():
    svg = line_panel("t", 300, [RISING], (0.0, 1.0), 100)
    assert svg.startswith("<svg class='chart lines'")
    assert not re.search(r"https?:|<style|<metadata|<!--|<\?xml|DOCTYPE", svg)
    assert not re.findall(r'<g id="', svg)
    assert svg == line_panel("t", 300, [RISING], (0.0, 1.0), 100)  # the same numbers, the same text


def test_a_name_that_looks_like_mathematics_is_shown_as_it_is():
    svg = line_panel(r"mu $\mu_{0$", 300, [Curve("$x", [1, 2], np.ones((1, 2)))], (0.0, 1.0), 100)
    assert r"mu $\mu_{0$" in texts(svg)


def test_dashes_differ():
    assert len(set(DASHES)) == len(DASHES)


def test_the_scale_says_its_ends():
    assert "0 <i" in scale("Greys", "0", "1 %")
    assert scale("Greys", "0", "1 %").endswith("1 %</p>")
