from fedgh.plot.picture import run_figure
from fedgh.report.document import Document


def test_one_content_two_forms(tmp_path):
    document = Document(tmp_path, "A <title>")
    document.heading("Part", 3)
    document.text("`a` < b")
    document.points(["first", "<second>"], kind="warning")
    document.table(["", "a|b"], [["row", ["1 | 2", "<small>"]], ["empty", []]])
    document.picture("curves_x", "A picture", run_figure({}))
    text = document.write()
    assert text == (tmp_path / "report.md").read_text()
    assert text.startswith("# A <title>\n\n### Part\n\n`a` < b\n\n- first\n- <second>\n\n")
    assert "|  | a\\|b |\n| --- | ---: |\n| row | 1 \\| 2<br>&lt;small> |\n| empty |  |" in text
    assert "![curves x](curves_x.png)\n\n*A picture*" in text
    page = (tmp_path / "report.html").read_text()
    assert "<h1>A &lt;title&gt;</h1>\n<h3>Part</h3>\n<p><code>a</code> &lt; b</p>" in page
    assert "<div class='warning'><ul><li>first</li><li>&lt;second&gt;</li></ul></div>" in page
    assert "<td>1 | 2<br><small>&lt;small&gt;</small></td>" in page
    assert "src='data:image/png;base64,iVBOR" in page
    assert (tmp_path / "curves_x.png").read_bytes().startswith(b"\x89PNG")


def test_long_heads_break_at_commas(tmp_path):
    document = Document(tmp_path, "x")
    document.table(["", "CIFAR-10, α 0.1"], [])
    assert "<th>CIFAR-10,<br>α 0.1</th>" in document.html[0]
