import base64
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fedgh.report.chart import LEFT, RIGHT, TOP, HeatMap, Line, heat_map, limits, line_chart, number, scale, ticks

RISING = Line("a <b>", 0, "#0072b2", [1, 2, 4], np.array([0.0, 50.0, 100.0]))


def tree(svg):
    return ElementTree.fromstring(svg)


def test_a_line_goes_where_its_numbers_are():
    svg = tree(line_chart("α & β", 400, [RISING], (0.0, 100.0), 200))
    points = [tuple(map(float, pair.split(","))) for pair in svg.find(".//polyline").get("points").split()]
    width = 400 - LEFT - RIGHT
    expected = [(LEFT, TOP + 200), (LEFT + width / 3, TOP + 100), (LEFT + width, TOP)]
    np.testing.assert_allclose(points, expected, atol=0.1)
    assert [text.text for text in svg.iter("text")][:1] == ["α & β"]
    assert svg.find(".//title").text == "a <b>: 100 after round 4"


def test_rounds_without_a_number_are_left_out_of_the_line():
    gap = Line("a", 0, "red", [1, 2, 3], np.array([1.0, np.nan, 3.0]))
    svg = tree(line_chart("", 400, [gap], (0.0, 4.0), 200))
    assert len(svg.find(".//polyline").get("points").split()) == 2
    told = json.loads(svg.get("data-chart"))
    assert told["lines"][0]["values"] == [1.0, None, 3.0]


def test_a_band_goes_there_and_back():
    ends = (np.array([0.0, 1.0]), np.array([2.0, 3.0]))
    band = Line("a", 3, "red", [1, 2], np.array([1.0, 2.0]), [ends], dash=1)
    svg = tree(line_chart("", 400, [band], (0.0, 4.0), 200))
    heights = [float(pair.split(",")[1]) - TOP for pair in svg.find(".//polygon").get("points").split()]
    assert heights == pytest.approx([100, 50, 150, 200], abs=0.1)
    assert {group.get("data-method") for group in svg.iter("g")} == {"3"}
    assert svg.find(".//polyline").get("stroke-dasharray")
    assert limits([band], (0.0, 10.0), 0.0) == pytest.approx((0.0, 3.15))


def test_an_unfinished_run_is_thin_and_not_told_about():
    thin = Line("b", 1, "red", [1, 2], np.array([1.0, 2.0]), thin=True)
    svg = tree(line_chart("", 400, [RISING, thin], (0.0, 100.0), 200))
    assert [group.get("class") for group in svg.iter("g")].count("thin") == 1
    assert [line["name"] for line in json.loads(svg.get("data-chart"))["lines"]] == ["a <b>"]


def test_the_axis_is_no_tighter_than_asked_and_stays_within():
    flat = Line("a", 0, "red", [1], np.array([50.0]))
    assert limits([flat], (0.0, 100.0), 10.0) == (45.0, 55.0)
    assert limits([Line("a", 0, "red", [1], np.array([99.0]))], (0.0, 100.0), 10.0) == (94.0, 100.0)
    assert limits([], (0.0, 100.0), 10.0) == (0.0, 100.0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1e-6), (1.0, 1.0), (1, 20), (-1.0, 1.0), (12.3, 99.9)])
def test_marks_are_few_and_within(low, high):
    marks = ticks(low, high, 5)
    assert 1 <= len(marks) <= 7
    assert all(low - 1e-6 <= mark <= high + 1e-6 for mark in marks)


def test_marks_have_the_digits_that_they_need():
    assert [number(value, [0.0, 0.5]) for value in (0.0, -0.5)] == ["0.0", "−0.5"]
    assert number(20.0, [0.0, 20.0]) == "20"


def test_a_heat_map_has_a_pixel_a_number():
    values = np.array([[0.0, np.nan, 1.0], [1.0, 1.0, 0.0]])
    svg = heat_map("t", 300, HeatMap(values, [1, 5, 9], [(0.25, "top"), (0.75, "low")], "Greys"), 100, zero=0.5)
    (data,) = re.findall("data:image/png;base64,([^']+)", svg)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert pixels.shape == (2, 3, 3)
    assert pixels[0, 0].tolist() == pixels[0, 1].tolist() == [255, 255, 255]  # none, and not known
    assert pixels[1, 0].max() < 10
    places = {text.text: float(text.get("x")) for text in tree(svg).iter("text")}
    assert {"top", "low"} <= places.keys()
    wide = (300 - LEFT - RIGHT) / 3  # a column
    assert places["4"] == pytest.approx(LEFT + 1.25 * wide, abs=0.1)  # three quarters of the way from 1 to 5
    assert tree(svg).find(".//line[@class='conflict']").get("y1") == str(TOP + 50.0)


def test_long_names_get_room():
    def left(name):
        return float(
            tree(heat_map("", 300, HeatMap(np.ones((1, 1)), [1], [(0.5, name)], "Greys"), 50)).find("rect").get("x")
        )

    assert left("a") == LEFT
    assert left("a" * 20) > 130


def test_the_scale_says_its_ends():
    assert "0 <i" in scale("Greys", "0", "1 %")
    assert scale("Greys", "0", "1 %").endswith("1 %</p>")
