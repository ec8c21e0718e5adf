"""Pages: text is escaped, and nothing comes from elsewhere."""

from fastdhm.page.html import Shot, facts, folded, note, page, shots, table

ODD = "<script>'\"&\n"


def test_text_is_escaped_wherever_it_stands():
    body = table([ODD], [[ODD]]) + facts({ODD: ODD}) + folded(ODD, note(ODD))
    text = page(ODD, [ODD], {ODD: body, "empty": ""})
    assert "<script>" not in text and text.count("&lt;script&gt;") == 10
    assert "empty" not in text and "refresh" not in text
    assert "http" not in text.replace("http-equiv", "") and "src=" not in text


def test_a_live_page_is_loaded_again():
    assert '<meta http-equiv="refresh" content="5">' in page("a", [], {}, refresh_s=5)


def test_images_are_data_and_nothing_else():
    good = "data:image/png;base64,iVBORw0KGgo="
    text = shots([Shot(good, [(ODD, "right")]), Shot('http://x/" onload="', [("b", "")]), Shot("", [])])
    assert text.count("<img ") == 1 and good in text and "onload" not in text and "<script>" not in text
    assert text.count("no image") == 2 and shots([]) == ""
