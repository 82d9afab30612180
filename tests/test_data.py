"""Raw files to Dataset repos: what cleaning promises, every refusal, registering twice, loading by the plain client."""
import csv
import io
import json
import re
import threading

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from hfflow import data, hub
from hfflow.engine import readers, register as registering
from hfflow.data import DataConfig, clean, key, label_names, load, match_columns, prepare, read_raw, register, split_of, stream
from hfflow.hub import Artifact, UserError


@pytest.fixture(scope="module", autouse=True)
def me():
    return hub.connect()


def ready(source, **config):
    return prepare(source, DataConfig(**config), progress=False)


ROWS = [{"prompt": f"question {i}", "completion": f"answer {i % 3}"} for i in range(40)]

# ---- what cleaning promises, for any rows

WORDS = st.sampled_from(["Hi", "hi ", " HI!", "ho", "ho?", "a b", "a  b", "A B.", "ß", "ss", "é", "e\u0301", "", "  ", "?!", "x\r\ny", "\ud800", "0"])
VALUES = st.one_of(WORDS, st.none(), st.text(max_size=6), st.integers(0, 3), st.just(float("nan")))
TABLES = st.dictionaries(st.sampled_from(["train-a.csv", "train-b.jsonl", "other.json", "validation.csv", "test.csv", "test_values.csv"]),
                         st.lists(st.tuples(VALUES, VALUES), max_size=8), max_size=4)
QUICK = settings(max_examples=50, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def tables(files):
    return [data.Table(n, split_of(n), ("prompt", "completion"), [{"prompt": p, "completion": c} for p, c in rows],
                       list(range(1, len(rows) + 1))) for n, rows in sorted(files.items())]


def cleaned(t, **config):
    try: return clean(t, DataConfig(**config))
    except UserError: return None, None


@QUICK
@given(TABLES, st.floats(0, 0.9), st.floats(0, 0.9))
def test_no_prompt_stands_in_two_kinds_of_split_and_rows_are_accounted_for(files, test_size, validation_size):
    splits, report = cleaned(tables(files), test_size=test_size, validation_size=validation_size)
    if splits is None: return
    keys = {s: [key(r["prompt"]) for r in rows] for s, rows in splits.items()}
    for s, own in keys.items():
        assert len(own) == len(set(own))
        assert all(r["prompt"] and r["completion"] and r["source"] for r in splits[s])
    train, validation = set(keys["train"]), set(keys.get("validation", ()))
    tests = {k for s, own in keys.items() if s.startswith("test") for k in own}
    assert keys["train"] and not train & (tests | validation) and not validation & tests
    assert report.read == sum(report.kept.values()) + sum(report.dropped.values()) == sum(map(len, files.values()))
    assert set(report.examples) == set(report.dropped)
    json.dumps(report.as_dict()).encode()
    report._repr_markdown_().encode()


@QUICK
@given(TABLES)
def test_cleaning_twice_changes_nothing(files):
    splits, report = cleaned(tables(files))
    if splits is None: return
    again = [data.Table(s, split_of(s), ("prompt", "completion", "source"), rows, list(range(1, len(rows) + 1))) for s, rows in splits.items()]
    twice, second = clean(again, DataConfig())
    assert twice == splits and second.digest == report.digest and not second.dropped


@QUICK
@given(TABLES, st.randoms())
def test_the_order_in_which_files_are_listed_and_rows_stand_does_not_choose_the_splits(files, random):
    t = tables(files)
    splits, report = cleaned(t)
    if splits is None: return
    for table in t:
        pairs = list(zip(table.rows, table.lines))
        random.shuffle(pairs)
        table.rows[:], table.lines[:] = [p[0] for p in pairs], [p[1] for p in pairs]
    mixed, second = clean(t, DataConfig())
    assert {s: {key(r["prompt"]) for r in rows} for s, rows in mixed.items()} == \
           {s: {key(r["prompt"]) for r in rows} for s, rows in splits.items()}
    assert second.kept == report.kept


def test_files_are_read_in_the_order_of_their_names(tmp_path, monkeypatch):
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(ROWS[0] | {"completion": name}) + "\n" + json.dumps(ROWS[1]))
    one = ready(tmp_path).report
    real = readers.Path.rglob
    monkeypatch.setattr(readers.Path, "rglob", lambda self, pattern: reversed(list(real(self, pattern))))
    assert ready(tmp_path).report == one and [f[0] for f in one.files] == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]


def test_rows_put_aside_stay_when_rows_are_added():
    small, large = ready(ROWS, test_size=0.2), ready(ROWS + [{"prompt": f"new {i}", "completion": "x"} for i in range(4)], test_size=0.2)
    assert small.splits.num_rows == {"train": 30, "validation": 2, "test": 8}
    a, b = set(small.splits["test"]["prompt"]), set(large.splits["test"]["prompt"])
    assert len(a & b) >= 6
    assert set(ready(ROWS, seed=1).splits["test"]["prompt"]) != set(ready(ROWS).splits["test"]["prompt"])
    assert ready(ROWS, test_size=0, validation_size=0).splits.num_rows == {"train": 40}


# ---- kinds of files

def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    import pandas as pd
    pd.DataFrame(ROWS).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame(ROWS).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame(ROWS).to_csv(tmp_path / "a.tsv", index=False, sep="\t", encoding="utf-8-sig")
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "b.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, ROWS)) + "\n")
    expected = ready(ROWS).splits["test"]["prompt"]
    for p in sorted(tmp_path.iterdir()):
        got = ready(p)
        assert list(got.splits["test"]["prompt"]) == list(expected), p.name
        assert got.report.kept == {"train": 34, "validation": 2, "test": 4}, p.name


def test_plain_text_and_conversations(tmp_path):
    (tmp_path / "poem.txt").write_text("First line\n\nSecond line\nThird line\n")
    plain = ready(tmp_path, test_size=0, validation_size=0)
    assert plain.splits["train"][1] == {"prompt": "", "completion": "Second line", "source": "poem.txt:3",
                                       "messages": [{"role": "assistant", "content": "Second line"}]}
    assert prepare(plain.splits, DataConfig(test_size=0, validation_size=0), progress=False).report.digest == plain.report.digest
    turn = lambda r, c: {"role": r, "content": c}
    short = [{"messages": [turn("user", f"q{i}"), turn("assistant", "a")]} for i in range(3)]
    assert ready(short, test_size=0, validation_size=0).splits["train"].column_names == ["prompt", "completion", "source"]
    long = short + [{"messages": [turn("system", "s"), turn("user", "q"), turn("assistant", "a"), turn("user", "r"), turn("assistant", "b")]},
                    {"messages": [turn("user", "nobody answers")]}, {"messages": "not json"}]
    got = ready(long, test_size=0, validation_size=0)
    assert got.report.dropped == {"empty": 2}
    assert got.splits["train"][3]["completion"] == "b" and len(got.splits["train"][3]["messages"]) == 5
    assert len(got.splits["train"][0]["messages"]) == 2
    again = prepare(got.splits, DataConfig(test_size=0, validation_size=0), progress=False)
    assert again.report.digest == got.report.digest and again.splits["train"].to_list() == got.splits["train"].to_list()


def test_prompt_and_completion_as_lists_of_turns(tmp_path):
    turn = lambda role, text: [{"role": role, "content": text}]
    rows = [{"prompt": turn("user", f"question {i}"), "completion": turn("assistant", f"answer {i}")} for i in range(20)]
    rows[3]["prompt"] = turn("system", "Be short.") + turn("user", "question 3")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    kept = [r for split in ready(tmp_path / "rows.jsonl").splits.values() for r in split]
    assert sorted(r["completion"] for r in kept) == sorted(f"answer {i}" for i in range(20))
    assert all("role" not in r["prompt"] for r in kept)
    assert [t["role"] for r in kept if r["completion"] == "answer 3" for t in r["messages"]] == ["system", "user", "assistant"]


def test_alpaca_shape_and_values_that_are_no_text():
    rows = [{"instruction": "Add", "input": "1 2", "output": 3}, {"instruction": "Say hello", "input": "", "output": {"text": "héllo"}}]
    got = ready(rows, test_size=0, validation_size=0).splits["train"]
    assert list(got["prompt"]) == ["Add\n\n1 2", "Say hello"] and list(got["completion"]) == ["3", '{"text": "héllo"}']


def test_csv_as_spreadsheets_write_it(tmp_path):
    (tmp_path / "train.csv").write_bytes('\ufeffRequest ; ANSWER;;\r\n"two\nlines";a;;\r\nx;b;c;d;e\r\ny;c\r\n\r\n'.encode())
    got = ready(tmp_path, test_size=0, validation_size=0)
    assert got.splits["train"].to_list() == [{"prompt": "two\nlines", "completion": "a", "source": "train.csv:2"},
                                             {"prompt": "y", "completion": "c", "source": "train.csv:5"}]
    assert got.report.dropped == {"broken": 1} and got.report.examples == {"broken": "train.csv:4"}
    (tmp_path / "train.csv").write_text('request,answer\n"' + "x" * 200_000 + '",a\nb,c\n')
    assert ready(tmp_path).report.dropped == {"long": 1}


def table(text, name="a.csv"):
    "Columns, rows, lines and notes of a file."
    columns, rows, lines, _, notes = readers._csv(text.encode(), name)
    return columns, [r and tuple(r.values()) for r in rows], lines, notes


CELLS = st.text(st.sampled_from('ab ,;"\n\r\u2028'), max_size=8)


@QUICK
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=6), st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_a_writer_of_csv_writes_is_read_back(rows, sep, end, quoted):
    out = io.StringIO(newline="")
    quoted |= any("\r" in c for r in rows for c in r)            # which the writer leaves bare, before Python 3.13
    csv.writer(out, delimiter=sep, lineterminator=end, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL).writerows([("a", "b", "c"), *rows])
    columns, found, lines, notes = table(out.getvalue())
    assert columns == ("a", "b", "c") and found == rows
    assert not any("without quoting" in n for n in notes)


@QUICK
@given(st.lists(st.tuples(*[st.sampled_from(["a", "b c", '5" pipe', 'size 5"', 'so "x" y', 'he said "no"', "x"])] * 2), min_size=1, max_size=6),
       st.sampled_from(",\t"), st.randoms())
def test_a_quote_that_opens_a_cell_swallows_no_row_in_silence(rows, sep, random):
    torn, i, j = [list(r) for r in rows], random.randrange(len(rows)), random.randrange(2)
    torn[i][j] = '"' + torn[i][j]
    try: _, found, _, notes = table("\n".join(map(sep.join, [("prompt", "completion"), *torn])) + "\n")
    except UserError as e: assert sep == "," and re.search(rf"line {i + 2}\b", str(e))
    else: assert len(found) == len(rows) or "are one row by their quotes" in notes[0]
    if sep == "\t": assert len(found) == len(rows)


LATER = "".join(f"Question {i},Answer {i}\n" for i in range(9))


@pytest.mark.parametrize("text, said", [
    ('prompt,completion\nQ,A\n"open,x\n' + LATER, "a.csv opens a quote on line 3 that is not closed where a cell ends (it runs to line 12): close it there"),
    ('prompt,completion\n"open,x\n' + LATER + 'Q,"yes, no"\n' + LATER, "opens a quote on line 2 that is not closed where a cell ends (it runs to line 12)"),
    ('prompt,completion\n"open,x\n' + LATER + 'Q,he said "no" to it\n' + LATER, "opens a quote on line 2 "),
    ('prompt,completion\n"two\nlines",x\nQ,"open\n' + LATER, "opens a quote on line 4 "),
    ('prompt,completion\n"two\nlines","open\n' + LATER, "opens a quote on line 3 "),
    ('prompt,completion\nQ,A\n"open,x', "opens a quote on line 3 that is not closed where a cell ends (it runs to line 3)"),
    ('prompt,completion\nQ,A\nQ,"', "opens a quote on line 3 "),
    ('"prompt,completion\nQ,A\n', "opens a quote on line 1 "),
    ('prompt,completion\r"open,x\r' + LATER.replace("\n", "\r"), "opens a quote on line 2 "),
    ('prompt,completion\n"open,x\n' + LATER + 'Q,size 5"\n' + LATER, "a.csv has a row of 1 cells in place of 2 on lines 2 to 12: repair it, or the quote that opens on line 2."),
    ('prompt,completion\n"open,x\n' + LATER + 'size 5",a,b\n' + LATER, "has a row of 3 cells in place of 2 on lines 2 to 12"),
    ('prompt\tcompletion\n"open\tx\nQ\tA\tB\n', "opens a quote on line 2 "),
])
def test_a_quote_that_is_never_closed_is_refused_with_its_line(text, said, tmp_path):
    (tmp_path / "a.csv").write_bytes(text.encode())
    with pytest.raises(UserError) as e: ready(tmp_path)
    assert said in str(e.value) and "\n" not in str(e.value)


def test_quotes_that_are_no_fault():
    long = "Dear Sir,\n" + "\n".join(f'line {i}, "quoted" and more' for i in range(50))
    text = 'prompt,completion\n"' + long.replace('"', '""') + '",a\nfive 5" pipes,b\n"Never" is a word,c\n\n"last","d"'
    assert table(text) == (("prompt", "completion"), [(long, "a"), ('five 5" pipes', "b"), ("Never is a word", "c"), ("last", "d")], [2, 53, 54, 56], ())
    assert table('a,b\n"x, y\nz",1\n')[1:] == ([("x, y\nz", "1")], [2], ("a.csv: lines 2 to 3 are one row by their quotes, though each could be a row",))
    assert table('a,b\n"x, y\nz"\n1,2,3\n')[1] == [("x, y\nz",), None]      # a short row, and one with a cell too many
    assert table("a\n\"x\ny\"\n") == (("a",), [("x\ny",)], [2], ())
    assert table("a,b,b\n1,2,3\n")[1:] == ([("1", "3")], [2], ("a.csv: of 2 columns called 'b' the last is read",))
    assert table("") == ((), [], [], ()) and table("a,b\n") == (("a", "b"), [], [], ())


def test_a_tab_separated_file_without_quoting():
    text = 'word\tkind\n"Never" is a word\tyes\n"He left\tno\n5" pipe\tno\n"Both"\tyes\n'
    note = ("a.tsv: read without quoting, so that quotes are letters",)
    assert table(text, "a.tsv")[1:] == ([('"Never" is a word', "yes"), ('"He left', "no"), ('5" pipe', "no"), ('"Both"', "yes")], [2, 3, 4, 5], note)
    closed = 'word\tkind\n"He left\tno\nRow\tkept\nsize 5"\tyes\n'           # by its quotes it would be one row of two cells
    assert table(closed, "a.tsv")[1:] == ([('"He left', "no"), ("Row", "kept"), ('size 5"', "yes")], [2, 3, 4], note)
    quoted = 'word\tkind\n"two\nlines\twith ""tabs"""\tyes\n"Both"\tno\n'
    assert table(quoted, "a.tsv")[1:] == ([('two\nlines\twith "tabs"', "yes"), ("Both", "no")], [2, 4], ())


def test_what_a_folder_leaves_out(tmp_path):
    for name in ("train.jsonl", ".hidden/a.jsonl", "_tmp/b.jsonl", "README.json", "notes.txt", "table.xlsx", "test/x-1.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"prompt": name, "completion": "x"}))
    assert [(t.name, t.split) for t in read_raw(tmp_path)] == [("test/x-1.jsonl", "test"), ("train.jsonl", "train")]


@pytest.mark.parametrize("name, split", [
    ("train.csv", "train"), ("Train-01.csv", "train"), ("training_set.csv", "train"), ("test_values.jsonl", "test_values"),
    ("test phrasings.csv", "test_phrasings"), ("TEST-2.csv", "test"), ("testimonials.csv", "train"), ("dev.csv", "validation"),
    ("validation-0.parquet", "validation"), ("latest.csv", "train"), ("data/test/0001.csv", "test"), ("test/train.csv", "train"),
    ("reviews_TEST.csv", "test"), ("my_test_values.csv", "test"), ("eval.csv", "validation"), ("evaluation-1.csv", "validation"),
    ("dev(1).csv", "validation"), ("train_test.csv", "train"), ("test/2024-reviews.csv", "test"), ("test-small/x.csv", "test")])
def test_split_from_the_name(name, split):
    assert split_of(name) == split


NAMES = ["reviews_test.csv", "reviews-val.csv", "my_test.csv", "data_test_1.csv", "x.dev.csv", "test1.csv", "testing.csv", "a.testing.2.csv",
         "2024 test.csv", "valid-0.csv", "my.validation.csv", "x_val_3.csv", "2dev.csv", "train.csv", "a_training_1.csv", "train-00000-of-00002.csv",
         "test-00000-of-00001.csv", "contest.csv", "latest.csv", "testimonials.csv", "trainees.csv", "devices.csv", "values.csv", "invalid.csv", "untrained.csv"]
FOLDERS = ["train/part1.csv", "data/test/a.csv", "my-val/b.csv", "x/train_1/y/c.csv", "testing/d.csv", "latest/test-2/e.csv", "contest/dev/f.csv"]


@pytest.mark.parametrize("names", [NAMES, FOLDERS, ["contest.csv", "devices/a.csv"]], ids=["files", "folders", "no word"])
def test_splits_are_those_of_datasets(names, tmp_path):
    from datasets import load_dataset
    for n in names:
        (tmp_path / "d" / n).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / n).write_text(f"prompt,completion\n{n},x\n")
    theirs = {n: s for s, rows in load_dataset(str(tmp_path / "d"), cache_dir=str(tmp_path / "cache")).items() for n in rows["prompt"]}
    tables = {t.name: t for t in read_raw(tmp_path / "d")}
    assert set(tables) == set(names) and set(theirs) <= set(names)
    assert {n: tables[n].split for n in theirs} == theirs
    passed_over = set(names) - set(theirs)                   # `datasets` reads files without a word only where no file has one
    assert all(tables[n].split == "train" and "no word of a split" in tables[n].notes[0] for n in passed_over)
    assert not any(tables[n].notes for n in theirs) and (not passed_over) == (names is not NAMES)


def test_the_report_says_what_a_name_leaves_open(tmp_path):
    for n in ("contest.csv", "reviews_test.csv", "train_eval.csv"): (tmp_path / n).write_text(f"prompt,completion\n{n},x\n")
    got = ready(tmp_path)
    assert got.report.kept == {"train": 1, "validation": 1, "test": 1}
    assert got.report.columns == ("contest.csv: used for training, because its name has no word of a split",
                                  "train_eval.csv: 'train_eval' has the words of two splits, used for train")
    assert not ready(tmp_path / "contest.csv").report.columns        # a file alone needs no name
    from datasets import Dataset, DatasetDict
    rows = Dataset.from_list(ROWS)
    got = ready(DatasetDict(my_train=rows.select(range(9)), my_test=rows.select([9]), unsupervised=rows))
    assert got.report.kept == {"train": 8, "validation": 1, "test": 1}
    assert got.report.columns == ("the split 'unsupervised' left out: its name has no word of a split",)


# ---- refusals: one sentence that names the thing and what to do

def refused(path, content, tmp_path):
    (tmp_path / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / path


@pytest.mark.parametrize("name, content, said", [
    ("a.csv", b"request,answer\nok,ok\ncaf\xe9,x\n", "a.csv is not UTF-8 text (line 3, byte 0xe9)"),
    ("a.jsonl", '{"prompt": "a", "completion": "b"}\n{oops\n', "a.jsonl cannot be read as JSON-lines (line 2"),
    ("a.jsonl", '["a", "b"]\n', "a.jsonl has no JSON object on line 1"),
    ("a.json", '[{"prompt": "a",\n]', "a.json cannot be read as JSON (line 2"),
    ("a.json", "[1, 2]", "a.json holds no list of objects"),
    ("a.parquet", "PAR1 no", "a.parquet cannot be read as Parquet"),
    ("a.xlsx", "x", "'a.xlsx' is of no kind that can be read"),
    ("a.csv", "reqest,answer\na,b\n", "a.csv has the columns 'reqest', 'answer', and no prompt among them: write prepare: {prompt: reqest, completion: answer}"),
    ("a.csv", "reqest,answr,notes\na,b,c\n", "'notes', and no prompt and no completion among them: name a prompt (prompt, request,"),
    ("a.csv", "question,notes\na,b\n", "no completion among them: write prepare: {prompt: question, completion: notes}"),
    ("a.csv", "prompt,completion\n,b\nc,\n", "Nothing is left of 'a.csv' after cleaning (2 rows read, 2 empty)"),
    ("a.csv", "", "Nothing is left of 'a.csv' after cleaning (0 rows read)"),
    ("test.csv", "prompt,completion\na,b\n", "'test.csv' has no rows to train on, only test"),
])
def test_refused_files(name, content, said, tmp_path):
    with pytest.raises(UserError) as e: ready(refused(name, content, tmp_path))
    assert said in str(e.value) and "\n" not in str(e.value) and str(tmp_path) not in str(e.value)


def test_refused_sources(tmp_path, me):
    (tmp_path / "empty").mkdir()
    for source, said in ((tmp_path / "empty", "no raw file in 'empty'"), ("nowhere.csv", "no raw file or folder 'nowhere.csv'"),
                         ("./none/at/all", "no raw file or folder"), ("imdb", "name a Dataset repo as owner/name"),
                         ("acme/never-made", "'acme/never-made' is not on"), (3, "A int is no source"), (["a"], "one dict per row")):
        with pytest.raises(UserError) as e: ready(source)
        assert said in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UserError, match="has no column 'reply'; it has: prompt, completion"): ready(ROWS, completion="reply")
    with pytest.raises(UserError, match="did you mean 'completion'"): ready(ROWS, completion="completions")
    for bad in ({"test_size": 1.5}, {"seed": "x"}, {"sise": 1}):
        with pytest.raises(ValueError): DataConfig(**bad)


def test_unreadable_file(tmp_path, monkeypatch):
    p = refused("a.csv", "prompt,completion\na,b\n", tmp_path)
    def no(self): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(readers.Path, "read_bytes", no)
    with pytest.raises(UserError, match="'a.csv' cannot be read .Permission denied."): ready(p)


def test_columns():
    assert match_columns(["TEXT", "label"]) == {"prompt": "TEXT", "completion": "label"}
    assert match_columns(["text"]) == {"completion": "text"}
    assert match_columns(["Messages", "prompt"]) == {"messages": "Messages"}
    assert match_columns(["a", "B "], "A", "b") == {"prompt": "a", "completion": "B "}


def test_one_column_given_and_the_other_found():
    assert match_columns(["text", "label"], completion="text") == {"prompt": "label", "completion": "text"}
    assert match_columns(["id", "review", "notes"], "review", rows=TOLD) == {"prompt": "review", "completion": "notes"}
    assert match_columns(["kunde", "abteilung"], completion="abteilung") == {"prompt": "kunde", "completion": "abteilung"}
    assert match_columns(["Label", "label", "text"], completion="label")["completion"] == "label"
    assert match_columns(["Label", "label", "text"], completion="Label")["completion"] == "Label"
    with pytest.raises(UserError, match="^t has no column 'x'; it has: text, label: name one of these as the label \\(https.*\\)\\.$"):
        match_columns(["text", "label"], completion="x", table="t", task="classify")


# ---- the columns of a classifier, by what they hold

WORDS_SAID = "the a lamp shoe broke works fine bad good never again arrived late quick service price colour wrong".split()


def say(i, n=9): return " ".join(WORDS_SAID[(i * 7 + j * j * (i + 3)) % len(WORDS_SAID)] for j in range(4 + i % n)) + f" {i}"


TOLD = [{"id": i, "review": say(i), "notes": say(i + 50)} for i in range(40)]
HOLDS = {"review": say, "text": say, "answer": lambda i: say(i + 9), "body": lambda i: say(i + 99), "title": lambda i: say(i + 55), "head": lambda i: f"No. {i} ok",
         "premise": lambda i: say(i // 3), "hypothesis": lambda i: say(i + 60), "sentence1": say, "sentence2": lambda i: say(i + 60),
         "sentiment": lambda i: ("negative", "positive")[i * i % 3 == 1], "label": lambda i: i % 3 % 2, "spam": lambda i: i % 3 == 0, "stars": lambda i: 1 + i * i % 5,
         "size": lambda i: 1 + i % 4, "rating": lambda i: str(1 + i * i % 5), "output": lambda i: say(i + 12), "Klasse": lambda i: "abc"[i * i % 3], "tags": lambda i: ["x"], "empty": lambda i: "x" if i == 3 else "",
         "nr": lambda i: i, "key": lambda i: f"tt{i:05}", "user_id": lambda i: i % 4, "day": lambda i: f"2024-05-{1 + i % 5:02}", "when": lambda i: f"Mon Apr {1 + i % 9:02} 22:19:45 PDT 2009",
         "link": lambda i: f"https://a.org/{i % 5}", "year": lambda i: 2020 + i % 3, "price": lambda i: i * 1.25 + 0.1, "same": lambda i: "same", "": lambda i: i}
IDLE = ("tags", "empty", "nr", "key", "user_id", "day", "when", "link", "year", "price", "same", "")


def held(*columns, n=60): return [{c: HOLDS[c](i) for c in columns} for i in range(n)]


@pytest.mark.parametrize("columns, text, label", [
    (("review", "sentiment"), "review", "sentiment"), (("head", "body", "spam"), "body", "spam"), (("body", "Klasse", *IDLE), "body", "Klasse"),
    (("body", "stars"), "body", "stars"), (("body", "label"), "body", "label"), (("text", "answer", "label"), "text", "label"),
    (("text", "label", "output"), "text", "label"), (("text", "answer", "Klasse"), "text", "Klasse"), (("text", "body", "stars", "label"), "text", "label"),
    (("head", "review", "sentiment", "Klasse"), "review", "sentiment"), (("body", "rating", "same"), "body", "rating"), (("text", "answer"), "text", "answer")])
def test_text_and_label_are_found_by_what_they_hold(columns, text, label):
    import random
    rows = held(*columns)
    for seed in range(3):
        order = random.Random(seed).sample(columns, len(columns))
        random.Random(seed).shuffle(rows)
        assert match_columns(order, task="classify", rows=rows) == {"prompt": text, "completion": label}
    got = prepare(rows, progress=False, task="classify")
    assert got.splits["train"][0]["completion"] in {str(r[label]) for r in rows}
    note, = got.report.columns
    assert all(f"'{c}' left out" in note for c in columns if c not in (text, label))


def test_the_report_names_the_choice_of_columns(tmp_path):
    (tmp_path / "a.csv").write_text("nr,Kommentar,Klasse\n" + "".join(f"{i},{say(i)},{'bad' if i % 3 else 'good'}\n" for i in range(30)))
    assert prepare(tmp_path / "a.csv", progress=False, task="classify").report.columns == (
        "a.csv: 'Kommentar' used as the text (the longest texts), 'Klasse' used as the label (2 values: bad, good), 'nr' left out",)
    got = prepare(held("premise", "hypothesis", "label"), progress=False, task="classify")
    assert got.report.columns == ("rows: 'premise' and below it 'hypothesis' used as the text, 'label' used as the label (2 values: 0, 1)",)
    row = got.splits["train"][0]
    i = int(row["source"].split(":")[1]) - 1
    assert row["prompt"] == f"{say(i // 3)}\n\n{say(i + 60)}" and row["completion"] == str(i % 3 % 2)
    assert match_columns(["id", "qid1", "qid2", "question1", "question2", "is_duplicate"], task="classify", completion="is_duplicate") == {
        "prompt": "question1", "completion": "is_duplicate", "input": "question2"}


@pytest.mark.parametrize("columns, task, said, role, best", [
    (("review", "rating", "sentiment"), "classify", "has two columns that could be the label, 'rating' and 'sentiment': write prepare: {completion: sentiment} (or --completion sentiment)", "completion", "sentiment"),
    (("title", "body", "Klasse"), "classify", "has two columns that could be the text, 'title' and 'body': write prepare: {prompt: ", "prompt", None),
    (("body", "size", "Klasse", "spam"), "classify", "has 3 columns that could be the label, 'size', 'Klasse' and 'spam': write ", "completion", "Klasse"),
    (("review", "sentiment"), None, "has the columns 'review', 'sentiment', and no prompt and no completion among them: write prepare: {prompt: review, completion: sentiment}, or model: {task: classify} to train a classifier", None, None),
    (("review", "rating", "sentiment", "nr"), "seq2seq", ": write prepare: {prompt: review, completion: sentiment}, or model: {task: classify} to train", None, None),
    (("premise", "hypothesis", "label"), "causal", "no prompt among them: write model: {task: classify} to train a classifier", None, None),
    (("title", "body"), "classify", "and no text and no label among them: write prepare: {prompt: title, completion: body}", None, None),
    (("review", "nr"), "classify", "has the columns 'review', 'nr', and no label among them: a classifier needs both, so call the columns text and label, or write ", None, None),
    (("review", "same", "key", "link"), "classify", "and no label among them: a classifier needs both, so call the columns text and label, or write prepare: {prompt: ..., completion: ...} with their names.", None, None)])
def test_columns_that_a_person_has_to_name(columns, task, said, role, best):
    import shlex
    import yaml
    rows = held(*columns)
    with pytest.raises(UserError) as e: match_columns(columns, table="reviews.csv", task=task, rows=rows)
    assert str(e.value).startswith("reviews.csv has ") and said in str(e.value) and "\n" not in str(e.value)
    if "write prepare: " in str(e.value) and "..." not in str(e.value):      # what it says to write is enough, and names columns of the file
        line = re.search(r"prepare: \{.*?\}", str(e.value))[0]
        got = match_columns(columns, **yaml.safe_load(line)["prepare"], task=task, rows=rows)
        assert {"prompt", "completion"} <= set(got) and set(got.values()) <= set(columns)
        if role: assert shlex.split(str(e.value).split("(or ")[1].rstrip(")")) == [f"--{role}", got[role]] and best in (None, got[role])


@pytest.mark.parametrize("text, task", [
    ("I like it,positive\nSo bad,negative\nWell made,positive\nBroke at once,negative\n", "classify"), ("Great,1\nBad,0\nFine,1\nNo,0\n", "classify"),
    ("Question 0,Answer 0\nQuestion 1,Answer 1\n", None)])
def test_the_first_row_of_a_file_without_names_is_not_lost(text, task, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match="^a.csv begins with a row, as '.*' is like the values below it: write a line of names above it, such as (text,label|prompt,completion).$"):
        prepare(tmp_path, progress=False, task=task)
    (tmp_path / "a.csv").write_text(("text,label\n" if task else "prompt,completion\n") + text)
    assert sum(prepare(tmp_path, progress=False, task=task).report.kept.values()) == text.count("\n")
    rows = [{"body": say(i), "spam": ("spam", "ham")[i % 3 == 0]} for i in range(30)]     # a name may be a value
    assert match_columns(["body", "spam"], task="classify", rows=rows)["completion"] == "spam"
    rows = [{"0": say(i), "1": i % 3 % 2} for i in range(30)]                             # as pandas names columns that have no names
    assert match_columns(["0", "1"], task="classify", rows=rows) == {"prompt": "0", "completion": "1"}


def test_the_line_to_write_survives_odd_names():
    import yaml
    columns = ["it's", "b: c, #", "text"]
    rows = [{"it's": "ab"[i % 2], "b: c, #": "xy"[i % 3 % 2], "text": say(i)} for i in range(20)]
    with pytest.raises(UserError) as e: match_columns(columns, task="classify", rows=rows)
    line = str(e.value).split("write ")[1].split(" (or ")[0]
    assert match_columns(columns, **yaml.safe_load(line)["prepare"], task="classify", rows=rows)["completion"] in columns[:2]


def test_all_splits_of_a_source_are_read_by_the_columns_of_the_training_rows(tmp_path):
    lines = lambda name, rows: (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    lines("train.jsonl", [{"Body": say(i), "klasse": "ab"[i % 2]} for i in range(30)])
    lines("test.jsonl", [{"body": say(i + 40), "klasse": "ab"[i % 2], "label": "no"} for i in range(2)])        # too few rows to tell; and another name
    lines("val.jsonl", [{"body": "short", "klasse": "a"}])
    got = prepare(tmp_path, progress=False, task="classify")
    assert got.splits.num_rows == {"train": 30, "validation": 1, "test": 2} and set(got.splits["test"]["completion"]) == {"a", "b"}
    assert "test.jsonl: 'body' used as the text (the longest texts), 'klasse' used as the label (2 values: a, b), 'label' left out" in got.report.columns
    lines("other.jsonl", [{"text": "of its own", "label": "a"}])
    assert prepare(tmp_path, progress=False, task="classify").splits["train"].num_rows == 31


def test_a_label_that_alternates_with_the_rows_is_found_in_large_files():
    rows = [{"body": f"{say(i % 90)} {i}", "klasse": "ab"[i % 2]} for i in range(20_000)]
    assert match_columns(["body", "klasse"], task="classify", rows=rows) == {"prompt": "body", "completion": "klasse"}


def test_numbers_as_labels_are_one_class_however_they_are_written(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"text {i},{('1.0', '0.0', '')[i % 3]}\n" for i in range(30)))
    plain = prepare(tmp_path, progress=False, task="classify")
    assert label_names(plain) == ["0.0", "1.0"] and len(plain.report.columns) == 1           # as the file says
    (tmp_path / "test.csv").write_text("text,label\na,1\nb,0\nc,nan\n")
    got = prepare(tmp_path, progress=False, task="classify")
    assert label_names(got) == ["0", "1"] and got.splits["test"]["completion"][:] == ["1", "0"]
    assert got.report.columns[-1] == "labels read as others: '0.0' as '0', '1.0' as '1', 'nan' as no label"
    assert got.report.dropped == {"empty": 11} and "(2 values: 0, 1)" in got.report.columns[0]
    assert set(prepare(tmp_path, progress=False).splits["train"]["completion"]) == {"0.0", "1.0"}      # not a classifier's: left alone
    words = prepare([{"text": say(i), "label": ("nan", "1.0", "one")[i % 3]} for i in range(9)], progress=False, task="classify")
    assert label_names(words) == ["1.0", "nan", "one"]


@pytest.mark.parametrize("seed", range(6))
def test_the_last_training_row_of_a_label_is_not_put_aside(seed):
    rows = [{"text": f"message number {i}", "label": "rare" if i == 7 else ("usual", "common")[i % 2]} for i in range(40)]
    got = prepare(rows, DataConfig(test_size=0.5, validation_size=0.5, seed=seed), progress=False, task="classify")
    assert label_names(got) == ["common", "rare", "usual"] and got.splits.num_rows == {"train": 10, "validation": 10, "test": 20}
    assert prepare([{"text": f"t {i}", "label": f"l {i}"} for i in range(4)], progress=False, task="classify").splits.num_rows == {"train": 4}


def test_what_a_classifier_needs_is_said_in_its_words(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\nc,x\nd,y\n")
    (tmp_path / "test.csv").write_text("text,label\ne,z\n")
    got = prepare(tmp_path, progress=False, task="classify")
    with pytest.raises(UserError, match="test.csv:2 has the label 'z', which is not one of x, y: mend the row, or add training rows with it."): label_names(got)
    with pytest.raises(UserError, match="train.csv:3 has the label 'y', .* x, z: mend the row, or name the label among labels."): label_names(got, ["x", "z"])
    texts = prepare([{"text": "a"}, {"text": "b"}], progress=False, task="classify")
    with pytest.raises(UserError, match="rows:1 is a text alone, but a classifier needs a text and a label: give the rows two columns, text and label."): label_names(texts)
    with pytest.raises(UserError, match="this task needs a prompt and a completion: give the rows two columns, prompt and completion."): data.need_prompts(texts)


# ---- the Hub

@pytest.fixture
def repo(me, request):
    name = f"you/{request.node.name[:60].replace('_', '-')}"
    yield name
    me.api.delete_repo(name, repo_type="dataset", missing_ok=True)


def test_registering_twice_is_one_commit_and_the_plain_client_loads_it(me, repo, tmp_path):
    from datasets import load_dataset
    for name in ("train-1.jsonl", "test_values.jsonl", "test_handwritten.jsonl"):
        (tmp_path / name).write_text("\n".join(json.dumps({"request": f"{name} {i}", "config": f"a: {i}\nb: é|*"}) for i in range(20)))
    p = ready(tmp_path)
    first = register(p, repo)
    assert register(p, repo) == first == register(ready(tmp_path), repo.split("/")[1]) and first.repo_id == repo
    assert [c.title for c in me.api.list_repo_commits(repo, repo_type="dataset")] == ["Data: 60 rows", "initial commit"]
    splits = load_dataset(repo)
    assert splits.num_rows == {"train": 19, "validation": 1, "test_handwritten": 20, "test_values": 20}
    assert splits["test_values"].to_list() == p.splits["test_values"].to_list()
    assert load(first)["train"].to_list() == p.splits["train"].to_list()
    assert list(stream(first, "test_values")) == p.splits["test_values"].to_list()
    note = json.loads(open(me.api.hf_hub_download(repo, "lineage.json", repo_type="dataset")).read())
    assert note["kind"] == "dataset" and note["report"]["kept"] == p.report.kept
    assert str(tmp_path.parent) not in json.dumps(note)
    info = me.api.dataset_info(repo)
    assert "size_categories:n<1K" in info.tags and not info.private
    assert ready(repo).report.digest == ready(first).report.digest == p.report.digest      # a repo is a source as well
    with pytest.raises(UserError, match="has no split 'tset'"): stream(first, "tset")

    changed = register(ready(ROWS), repo)                       # fewer splits: the old files go in the same commit
    assert changed.revision != first.revision
    assert load(repo).num_rows == {"train": 34, "validation": 2, "test": 4}
    assert load(first).num_rows["test_values"] == 20
    with pytest.raises(UserError, match="cannot be loaded"): load(Artifact("dataset", repo, "0" * 40, "http://x"))
    assert {f for f in me.api.list_repo_files(repo, repo_type="dataset") if "values" in f} == set()


def test_a_data_file_that_somebody_removed_is_put_back(me, repo):
    p = ready(ROWS)
    a = register(p, repo)
    me.api.delete_file("data/test-00000-of-00001.parquet", repo, repo_type="dataset")
    me.api.upload_file(path_or_fileobj=b"x", path_in_repo="notes.txt", repo_id=repo, repo_type="dataset")      # not ours: it stays
    b = register(p, repo)
    assert b != a and load(b)["test"].to_list() == p.splits["test"].to_list()
    assert "notes.txt" in me.api.list_repo_files(repo, repo_type="dataset") and register(p, repo) == b


def test_the_card_says_what_is_in_it(me):
    labels = data.dataset_card(ready(ROWS, validation_size=0), "you/card", "mit", labels=("a", "b"))
    assert "license: mit" in labels and "answer `completion`, one of `a`, `b`. The column" in labels and "text-classification" in labels
    assert "| train | 36 |\n| test | 4 |\n\nThe first" in labels and '\n    {\n     "prompt": "question' in labels
    assert "from 1 raw file; `lineage.json`" in labels and "@" not in data.dataset_card(ready(ROWS), "you/card").split("---")[1]


def test_conversations_survive_the_hub(me, repo):
    turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]
    p = ready([{"messages": turns}, *({"messages": turns[:1] + [{"role": "assistant", "content": "x"}]} for _ in range(1))],
              test_size=0, validation_size=0)
    assert load(register(p, repo))["train"].to_list() == p.splits["train"].to_list()


def test_several_shards(me, repo, monkeypatch):
    p = ready([{"prompt": f"{i}", "completion": "x" * 50} for i in range(50)])
    monkeypatch.setattr(registering, "SHARD", 1000)
    a = register(p, repo)
    assert len([f for f in me.api.list_repo_files(repo, repo_type="dataset") if "train" in f]) > 1
    assert load(a)["train"].to_list() == p.splits["train"].to_list()


def test_private_stays_private(me, repo):
    p = ready(ROWS)
    a = register(p, repo)
    assert register(p, repo, private=True) == a and me.api.dataset_info(repo).private
    register(p, repo)
    assert me.api.dataset_info(repo).private


def test_two_at_once(me, repo):
    got = []
    threads = [threading.Thread(target=lambda p=p: got.append(register(p, repo))) for p in (ready(ROWS), ready(ROWS[:20]), ready(ROWS))]
    [t.start() for t in threads]; [t.join() for t in threads]
    assert len(got) == 3
    assert len(me.api.list_repo_commits(repo, repo_type="dataset")) in (3, 4)      # the initial one, and one for each change


def test_refused_repos_leave_nothing(me, repo, monkeypatch):
    p = ready(ROWS[:5])
    with pytest.raises(UserError, match="You may not write to 'somebody/x'.*such as you/x"): register(p, "somebody/x")
    with pytest.raises(UserError, match="is no name for a repo"): register(p, "a/b/c")
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(registering, "_parquets", full)
    with pytest.raises(UserError, match="could not be written .No space left on device., and nothing was published"): register(p, repo)
    assert not me.api.repo_exists(repo, repo_type="dataset")


@pytest.mark.parametrize("text", ["a|b\n---\n# x", "é 😀 <script>", "```"])
def test_cards_are_valid(me, text):
    from huggingface_hub import DatasetCard
    p = ready([{"prompt": text, "completion": text}, {"prompt": text + "?!x", "completion": "y"}, {"prompt": text, "completion": "z"}])
    card = DatasetCard(data.dataset_card(p, "you/card"))
    card.validate(repo_type="dataset")
    assert card.data.to_dict()["configs"][0]["data_files"][0]["split"] == "train"


def test_classes_and_objects():
    from datasets import ClassLabel, Dataset, Features, Value
    ds = Dataset.from_dict({"text": ["good", "bad", "what"], "label": [0, 1, -1]},
                           features=Features(text=Value("string"), label=ClassLabel(names=["yes", "no"])))
    got = ready(ds, test_size=0, validation_size=0)
    assert list(got.splits["train"]["completion"]) == ["yes", "no"] and got.report.dropped == {"empty": 1}


def test_calls_of_tools_and_thoughts_stay_with_their_turns():
    call = [{"type": "function", "function": {"name": "rain", "arguments": {"city": "Rome"}}}]
    tools = [{"type": "function", "function": {"name": "rain"}}]
    turn = lambda r, c, **kw: {"role": r, "content": c, **kw}
    rows = [{"messages": [turn("user", "Rain?"), turn("assistant", None, tool_calls=call), turn("tool", "no", tool_call_id="1"),
                          turn("assistant", "dry", reasoning_content="hm")], "tools": tools},
            {"messages": [turn("user", "Call it"), turn("assistant", "", tool_calls=json.dumps(call))], "tools": json.dumps(tools)},
            {"messages": [turn("user", "q"), turn("assistant", "a", weight=0), turn("user", "r"), turn("assistant", "b")]},
            {"messages": [turn("user", "plain"), turn("assistant", "answer")]}]
    got = ready(rows, test_size=0, validation_size=0)
    first, second, third, last = got.splits["train"]
    assert json.loads(first["messages"][1]["tool_calls"]) == call and first["messages"][3]["reasoning_content"] == "hm"
    assert json.loads(first["tools"]) == tools == json.loads(second["tools"]) and third["tools"] is None
    assert second["completion"] == second["messages"][1]["tool_calls"] and "rain" in second["completion"]
    assert third["messages"][1]["weight"] == "0" and last["completion"] == "answer"
    again = prepare(got.splits, DataConfig(test_size=0, validation_size=0), progress=False)
    assert again.report.digest == got.report.digest
    import test_tokens as t
    tok = t.tokenizer(t.LATEST, t.IM)
    assert [t.runs(t.encode(r, tok), tok) for r in got.splits["train"]] == [
        ['<think>\n\n</think>\n\n<call>rain{"city": "Rome"}</call><|im_end|>', "<think>\nhm\n</think>\n\ndry<|im_end|>"],
        ['<think>\n\n</think>\n\n<call>rain{"city": "Rome"}</call><|im_end|>'], ["<think>\n\n</think>\n\nb<|im_end|>"],
        ["<think>\n\n</think>\n\nanswer<|im_end|>"]]
