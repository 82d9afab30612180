"""The page When it breaks, and the sentences of errors that name its sections."""
import json
import re
from pathlib import Path

from hfflow.engine.errors import more

ROOT = Path(__file__).parents[1]
PAGE = ["".join(c["source"]) for c in json.loads((ROOT/"nbs/90_breaks.ipynb").read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "markdown"]


def anchor(heading):
    "What pandoc makes of a heading."
    text = re.sub(r"\s", "-", re.sub(r"[^\w\s.-]", "", heading.strip().lower()))
    return re.sub(r"^[^a-z]+", "", text)


def sections(level=2): return [anchor(h) for h in re.findall(rf"^#{{{level},3}} (.+)$", "\n\n".join(PAGE), re.M)]


def test_anchors_are_those_of_pandoc():
    assert [anchor(h) for h in ("HTTP 403: Forbidden", "imported before hub.connect()", "403 is late", "A_b, c-d")] == [
        "http-403-forbidden", "imported-before-hub.connect", "is-late", "a_b-c-d"]


def test_the_table_lists_the_twenty_failures_in_order():
    table = re.findall(r"^\| \[[^\]]+\]\(#([^)]+)\) \|", "\n".join(PAGE), re.M)
    assert len(table) == 20 == len(set(sections()) & set(table))
    assert table == [s for s in sections(3) if not s.startswith("exercise")]


def test_links_within_the_page_lead_to_a_heading():
    assert not set(re.findall(r"\]\(#([^)]+)\)", "\n".join(PAGE))) - set(sections())


def test_sentences_of_errors_name_sections_that_exist():
    named = {(f.name, a) for f in (ROOT/"hfflow").rglob("*.py") for a in re.findall(r"\bmore\(([^)]*)\)", f.read_text(encoding="utf-8"))
             if not a.startswith("section:")}
    assert len(named) > 5 and all(re.fullmatch(r"""(['"]).+\1""", a) for _, a in named), "write the section as a string"
    assert not {(f, a) for f, a in named if a[1:-1] not in sections()}
    assert more("x").startswith(" (https://hfflow.github.io/hfflow/breaks.html#")
