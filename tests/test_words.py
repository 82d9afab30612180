"""The glossary: its entries, and the links of the other pages to it."""
import re

import pytest
import words

KNOWN = words.terms(words.load(words.GLOSSARY)["cells"])


def entries():
    "The entries of the glossary: heading -> text below it."
    text = "\n\n".join(words.source(c) for c in words.load(words.GLOSSARY)["cells"] if c["cell_type"] == "markdown")
    parts = re.split(r"^## (.+?)\s*$", text, flags=re.M)
    return {h: body.strip() for h, body in zip(parts[1::2], parts[2::2]) if h not in words.NO_TERMS}


@pytest.mark.parametrize("page", words.course())
def test_the_first_bold_use_of_a_term_links_to_the_glossary(page):
    assert not words.missing(page, KNOWN), "python tests/words.py --write"


def test_a_link_to_the_glossary_leads_to_an_entry():
    for page in [*words.course(), words.GLOSSARY]:
        for cell in words.load(page)["cells"]:
            for to in re.findall(words.GLOSSARY + r"\.ipynb#([\w.-]+)", words.source(cell)):
                assert to in KNOWN.values(), f"{page}: {to}"
                assert page != words.GLOSSARY, f"the glossary links to itself: {to}"


def test_entries_stand_in_order_and_each_has_its_place_on_the_site():
    heads = list(entries())
    assert heads == sorted(heads, key=str.lower) and len(set(KNOWN.values())) == len(heads)


@pytest.mark.parametrize("term", entries())
def test_an_entry_is_short_and_names_the_page_that_explains_it(term):
    body = entries()[term]
    assert re.search(r"\]\((?!92_)[\w/]+\.ipynb\)", body), "a link to the page that explains it"
    assert len(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", body).split()) <= 75


def test_every_other_form_and_sense_is_an_entry():
    for word, form in words.ALSO.items(): assert form is None or words.entry(word, "index", KNOWN), word
    for word, (usual, elsewhere) in words.SENSES.items():
        for sense in (usual, *elsewhere.values()): assert sense is None or sense.lower() in KNOWN, sense


def md(*texts): return [dict(cell_type="markdown", source=t.splitlines(True)) for t in texts]


def test_the_tool_links_first_uses_and_nothing_else():
    known = words.terms(md("# W", "## Commit\n\nx\n\n## Rank (of an adapter)\n\n## Rank (of a process)\n\n## Xet\n\n## Exercises"))
    assert known == {"commit": "commit", "rank (of an adapter)": "rank-of-an-adapter", "rank (of a process)": "rank-of-a-process", "xet": "xet"}
    cells = md("# T\n\n> A **commit**.", "## **Commit**\n\n`**xet**` two **commits**, **not** a **commit**; **rank** and **Rank**\n\n```\n**xet**\n```",
               "[see **Xet** here](02_hub.ipynb), **xet**") + [dict(cell_type="code", source=["# **xet**"])]
    once = words.linked(cells, "08_qlora", known)
    assert words.source(once[0]) == "# T\n\n> A **commit**." and once[2:] == cells[2:]
    assert words.source(once[1]) == ("## **Commit**\n\n`**xet**` two [**commits**](92_words.ipynb#commit), **not** a **commit**; "
                                     "[**rank**](92_words.ipynb#rank-of-an-adapter) and **Rank**\n\n```\n**xet**\n```")
    assert words.linked(once, "08_qlora", known) == once
    assert all(u.linked for u in words.first_uses(once, "08_qlora", known))
    assert "#rank-of-a-process" in words.source(words.linked(cells, "18_compute", known)[1])


def test_anchors_are_those_of_the_site():
    for heading, to in {"Token (access token)": "token-access-token", "KV cache": "kv-cache", "bf16": "bf16", "Warm-up": "warm-up",
                        "Encoder-decoder": "encoder-decoder", "4 bits": "bits"}.items(): assert words.anchor(heading) == to
