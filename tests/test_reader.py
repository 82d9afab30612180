"""What the reader of pages (`tests/pages.py`) keeps of a cell's outputs."""
import nbformat
import pages


def stream(text, name="stdout"): return nbformat.v4.new_output("stream", name=name, text=text)


def test_what_a_cell_prints_in_pieces_is_one_output():
    "A kernel sends what is printed when a moment has passed, so a slow cell's lines come in pieces."
    pieces = [stream("one\ntw"), stream("noise", "stderr"), stream("o\n")]
    assert [o.text for o in pages.cleaned(pieces)] == ["one\ntwo\n"]
    assert pages.masked(pages.cleaned(pieces)) == pages.masked(pages.cleaned([stream("one\ntwo\n")]))


def test_pieces_on_both_sides_of_another_output_stay_apart():
    shown = nbformat.v4.new_output("execute_result", {"text/plain": "3"})
    assert [o.output_type for o in pages.cleaned([stream("a"), shown, stream("b")])] == ["stream", "execute_result", "stream"]
