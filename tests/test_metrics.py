"""Metrics equal the libraries' own, intervals cover, comparisons are paired, nothing stands without a control."""
import json
import math
import random
import string
import time
from collections import Counter

import numpy as np
import pytest
import tinychat
from hfflow import evaluate as ev, metrics as mt
from hfflow.engine import extras, figures, metrics
from hfflow.hub import UserError
from hypothesis import given, settings, strategies as st

WORDS = "the a fox dog quick brown lazy sleeps runs über 東京 мир don't x-ray 12".split()


def texts(n, seed=0, words=WORDS):
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=rng.randint(0, 9))) for _ in range(n)]


# --- text metrics -------------------------------------------------------------------------------
def test_chrf_is_sacrebleus_of_corpus_and_sentence():
    from sacrebleu.metrics import CHRF

    answers, first, second = texts(80), texts(80, 1), texts(80, 2)
    refs = [[a, b] if i % 3 else [a] for i, (a, b) in enumerate(zip(first, second))]
    streams = [first, [b if i % 3 else None for i, b in enumerate(second)]]
    assert mt.measure(answers, refs, "chrf").value == pytest.approx(CHRF().corpus_score(answers, streams).score, abs=1e-9)
    one = [CHRF().sentence_score(a, r).score for a, r in zip(answers, refs)]
    assert mt.per_row(answers, refs, "chrf") == pytest.approx(one, abs=1e-9)


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_the_librarys_on_ascii_and_reads_every_script(kind):
    from rouge_score.rouge_scorer import RougeScorer

    plain = [w for w in WORDS if w.isascii()] + ["_x_", "a.b", "(c)", "$5", "Fox"]
    answers, refs = texts(60, 3, plain), [[a, b] for a, b in zip(texts(60, 4, plain), texts(60, 5, plain))]
    scorer = RougeScorer([kind])
    assert mt.per_row(answers, refs, kind) == [scorer.score_multi(r, a)[kind].fmeasure for a, r in zip(answers, refs)]
    same = ["東京は日本の首都です", "столица России", "हिन्दी भाषा", "ภาษาไทย", "naïve café"]
    assert mt.per_row(same, same, kind) == [1] * 5


def squad_f1(prediction, truth):
    """The official script's F1 (evaluate-v1.1.py), written from its definition."""
    def words(s):
        s = "".join(c for c in s.lower() if c not in string.punctuation)
        return [w for w in s.split() if w not in ("a", "an", "the")]

    a, b = words(prediction), words(truth)
    same = sum((Counter(a) & Counter(b)).values())
    if not a or not b: return float(a == b)
    return 0.0 if not same else 2 * (same / len(a)) * (same / len(b)) / (same / len(a) + same / len(b))


@given(st.lists(st.sampled_from("the a fox Dog don't x-ray . , 12 an".split()), max_size=8).map(" ".join),
       st.lists(st.sampled_from("the a fox Dog don't x-ray . , 12 an".split()), max_size=8).map(" ".join))
@settings(max_examples=200, deadline=None)
def test_f1_is_squads_in_english(a, b):
    assert mt.measure([a], [b], "f1").value == pytest.approx(squad_f1(a, b))


@given(st.lists(st.tuples(st.none() | st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_no_text_gives_nan_or_leaves_the_scale(rows):
    answers, refs = zip(*rows)
    for name in ("exact_match", "f1", "chrf", "rouge1", "rougeL"):
        m = mt.measure(answers, refs, name, resamples=50)
        assert m.low <= m.lo <= m.hi <= m.high and m.low <= m.value <= m.high, (name, m)


def test_characters_where_there_are_no_spaces():
    assert mt.measure(["东京都"], ["東京都"], "f1").value == pytest.approx(4 / 6)
    assert mt.measure(["我喜欢猫。"], ["我喜欢猫"], "f1").value == 1
    assert mt.measure(["ภาษาไทย"], ["ภาษา"], "f1").value > 0.5


def test_odd_input():
    assert mt.per_row([None, float("nan"), 0, ""], ["x", "x", "0", ""], "f1") == [0, 0, 1, 1]
    assert mt.per_row(["b"], [["a", "b"]], "exact_match") == [1]
    for bad, say in [((["a"], []), "1 answers for 0"), (([], []), "no rows"), ((["a"], [[]]), "empty list")]:
        with pytest.raises(UserError, match=say): mt.measure(*bad, "f1")
    with pytest.raises(UserError, match="did you mean 'rougeL'"): mt.measure(["a"], ["a"], "rouge")
    with pytest.raises(UserError, match="one row has none"): mt.per_row(["a"], ["a"], "macro_f1")
    nan = mt.Metric("mine", "Mine", lambda a, r: np.ones((len(a), 1)), lambda s: s[..., 0] * np.nan)
    for n in (1, 2):
        with pytest.raises(UserError, match="no finite number"): mt.measure(["a"] * n, ["a"] * n, nan)
    with pytest.raises(UserError, match="2,000 different labels"): mt.measure(map(str, range(2000)), map(str, range(2000)), "mcc")


@pytest.mark.parametrize("name, package", [("chrf", "sacrebleu"), ("rougeL", "rouge_score")])
def test_a_missing_package_names_the_extra(monkeypatch, name, package):
    monkeypatch.setattr(extras, "find_spec", lambda module, real=extras.find_spec: None if module == package else real(module))
    asked = []
    with pytest.raises(UserError, match=r"pip install 'hfflow\[metrics\]'"):
        ev.evaluate({"a": lambda p: asked.append(p)}, {"s": [dict(prompt="x", completion="y")]}, metrics=mt.by_name(name))
    assert not asked, "it is refused before anything is generated"
    assert mt.measure(["a"], ["a"], "f1").value == 1


# --- labels -------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(6))
def test_label_metrics_are_scikit_learns(seed):
    import warnings

    from sklearn import metrics as skm

    rng = random.Random(seed)
    labels = list("abcde")[:2 + seed % 4]
    truth = rng.choices(labels, k=60)
    said = [t if rng.random() < 0.5 else rng.choice([*labels, "nothing", ""]) for t in truth]
    known = dict(labels=[l for l in labels if l in truth], zero_division=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = dict(accuracy=skm.accuracy_score(truth, said), balanced_accuracy=skm.balanced_accuracy_score(truth, said),
                    precision=skm.precision_score(truth, said, average="macro", **known),
                    recall=skm.recall_score(truth, said, average="macro", **known),
                    mcc=skm.matthews_corrcoef(truth, [s if s in labels else "none" for s in said]),
                    **{f"{a}_f1": skm.f1_score(truth, said, average=a, **known) for a in ("macro", "micro", "weighted")})
    assert {k: mt.measure(said, truth, k).value for k in want} == pytest.approx(want)
    got = mt.confusion(said, truth)
    each = skm.precision_recall_fscore_support(truth, said, **known)
    assert [[*d.values()] for d in got.measures().values()] == [pytest.approx(row) for row in zip(*each)]
    assert sum(map(sum, got.counts)) == 60 and sum(r[-1] for r in got.counts) == sum(s not in labels for s in said)


def test_a_label_that_is_named_but_never_occurs_has_no_say():
    from sklearn.metrics import f1_score

    truth, said = ["a", "a", "b", "b"], ["a", "b", "b", "c"]
    assert mt.measure(said, truth, "macro_f1", labels="abcd").value == pytest.approx(f1_score(truth, said, average="macro", zero_division=0))
    assert mt.measure(said, truth, "macro_f1").value == pytest.approx(f1_score(truth, said, average="macro", labels=["a", "b"]))
    with pytest.raises(UserError, match="label 'b', which is not among"): mt.confusion(said, truth, labels=["a"])
    with pytest.raises(UserError, match="one label per row"): mt.measure(["a"], [["a", "b"]], "accuracy")


def test_the_matrix_counts_what_is_no_label_and_is_drawn(tmp_path):
    c = mt.confusion([10, 2, "two", None], [10, 2, 2, 10])
    assert (c.labels, c.counts) == (("2", "10"), ((1, 0, 1), (0, 1, 1)))
    ax = c.plot().axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("answer", "reference")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["2", "10", "no label"]
    assert [t.get_text() for t in ax.texts][:3] == ["1\n50%", "0\n0%", "1\n50%"]
    many = mt.confusion([f"a long name of label {i % 40}" for i in range(200)], [f"a long name of label {i % 40}" for i in range(200)])
    many.plot().savefig(tmp_path / "many.png")
    mt.confusion(["a"], ["b"], labels=["a", "b"]).plot().savefig(tmp_path / "no-rows-of-a-label.png")
    assert "nan" not in c._repr_markdown_()


# --- intervals ----------------------------------------------------------------------------------
def test_the_interval_is_scipys_bca():
    from scipy.stats import bootstrap
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    x = rng.beta(0.5, 2, 50)
    want = bootstrap((x,), np.mean, n_resamples=20000, method="BCa", rng=1).confidence_interval
    assert metrics.interval(metrics._mean, np.c_[x, np.ones(50)], (0, 1), 0, 20000)[1:] == pytest.approx(want, abs=5e-3)
    truth = rng.choice(list("abc"), 120, p=[0.6, 0.3, 0.1])
    said = np.where(rng.random(120) < 0.7, truth, rng.permutation(truth))
    score = lambda t, s: f1_score(t, s, average="macro")
    want = bootstrap((truth, said), score, paired=True, vectorized=False, n_resamples=1500, method="BCa", rng=1).confidence_interval
    got = mt.measure(said.tolist(), truth.tolist(), "macro_f1", resamples=20000)
    assert (got.lo, got.hi) == pytest.approx(tuple(want), abs=0.02)


@pytest.mark.parametrize("kind", ["mean", "macro_f1"])
def test_a_95_percent_interval_covers_the_truth_95_times_of_100(kind):
    rng, hits, runs = np.random.default_rng(2), 0, 300
    if kind == "mean":
        for s in rng.beta(2, 3, (runs, 60)):
            _, lo, hi = metrics.interval(metrics._mean, np.c_[s, np.ones(60)], (0, 1), 0, 600)
            hits += lo <= 0.4 <= hi
    else:        # labels of three kinds, each answered right 7 times of 10 and else any other: macro F1 of all rows by counting
        p, wrong = np.array([0.5, 0.3, 0.2]), 0.3
        cells = np.array([[p[i] * (1 - wrong if i == j else wrong / 2) for j in range(3)] for i in range(3)])
        truth = np.mean(2 * cells.diagonal() / (cells.sum(0) + cells.sum(1)))
        sums = lambda i, j: np.r_[np.eye(3)[i] * (i == j), np.eye(3)[j], np.eye(3)[i]]
        kinds = np.array([sums(i, j) for i in range(3) for j in range(3)])
        for _ in range(runs):
            rows = np.repeat(kinds, rng.multinomial(150, cells.ravel()), axis=0)
            _, lo, hi = metrics.interval(mt.METRICS["macro_f1"].formula, rows, (0, 1), 0, 600)
            hits += lo <= truth <= hi
    assert 0.92 <= hits / runs <= 0.98, hits / runs


def test_the_edges_of_an_interval():
    for name, answers in [("f1", ["yes"] * 9), ("chrf", ["yes"] * 9), ("macro_f1", ["yes"] * 9)]:
        m = mt.measure(answers, answers, name)
        assert m.lo == m.value == m.hi == m.high
    one = mt.measure(["a"], ["b"], "mcc")
    assert (one.value, one.lo, one.hi) == (0, -1, 1)
    single = mt.compare(["a"], ["b"], ["b"], "exact_match")
    assert (single.value, single.lo, single.hi, single.p) == (1, -1, 1, 1)


def test_same_seed_same_interval_and_thousands_of_draws_take_no_time():
    rng = random.Random(0)
    answers, refs = texts(1000, 1), texts(1000, 2)
    rows = metrics.row_counts(mt.METRICS["f1"], *metrics.as_texts(answers, refs))
    start = time.process_time()
    first = metrics.interval(metrics._mean, rows, (0, 1), 0, 5000)
    assert time.process_time() - start < 1
    assert first == metrics.interval(metrics._mean, rows, (0, 1), 0, 5000) != metrics.interval(metrics._mean, rows, (0, 1), 1, 5000)
    order = rng.sample(range(1000), 1000)
    assert metrics.interval(metrics._mean, rows[order], (0, 1), 0, 5000)[1:] == pytest.approx(first[1:], abs=1e-9)


# --- paired -------------------------------------------------------------------------------------
def test_p_is_scipys_permutation_test():
    from scipy.stats import permutation_test

    rng = np.random.default_rng(0)
    mean = lambda x, y, axis: np.mean(y - x, axis=axis)
    for n, shift in ((9, 0.2), (60, 0.03)):
        x = rng.random(n)
        y = x + rng.normal(shift, 0.1, n)
        want = permutation_test((x, y), mean, permutation_type="samples", n_resamples=20000, rng=0).pvalue
        rows = [np.c_[v, np.ones(n)] for v in (x, y)]
        got = figures._swapped(metrics._mean, *rows, 0, 20000)
        assert got == pytest.approx(want, abs=1e-9 if n == 9 else 0.01)


def test_on_exact_match_the_swaps_are_mcnemars():
    rows = [dict(prompt=str(i), completion="y") for i in range(30)]
    right = lambda few: lambda prompts: ["y" if int(p) in few else "n" for p in prompts]
    report = ev.evaluate({"a": right(range(0, 12)), "b": right(range(4, 22))}, {"s": rows}, metrics=mt.by_name("exact_match"))
    p = ev.paired(report, "a", "b", "s").p
    assert mt.difference(report, "a", "b", "s", "exact_match").p == pytest.approx(p, rel=0.2)
    few = [["y" if i in r else "n" for i in range(12)] for r in (range(0, 3), range(1, 11))]
    d = mt.compare(*few, ["y"] * 12, "exact_match")
    assert d.p == pytest.approx(2 * sum(math.comb(9, i) for i in range(2)) / 2**9)


def test_under_the_null_p_is_uniform_and_a_real_gain_is_found():
    rng = random.Random(0)
    small = []
    for _ in range(200):
        truth = rng.choices("abc", k=60)
        a, b = ([t if rng.random() < 0.6 else rng.choice("abc") for t in truth] for _ in range(2))
        small.append(mt.compare(a, b, truth, "macro_f1", resamples=300).p)
    assert 0.01 <= np.mean(np.array(small) < 0.05) <= 0.10 and 0.4 <= np.mean(small) <= 0.6
    truth = rng.choices("abc", k=200)
    a = [t if rng.random() < 0.6 else rng.choice("abc") for t in truth]
    better = [t if rng.random() < 0.5 else x for t, x in zip(truth, a)]
    d = mt.compare(a, better, truth, "macro_f1")
    assert d.p < 0.01 and 0 < d.lo < d.value < d.hi and d.flip().value == -d.value


# --- the report ---------------------------------------------------------------------------------
ROWS = [dict(prompt=f"say {w}", completion=f"I say {w}.") for w in "red green blue red white black".split()]
ECHO = {"short": lambda ps: [p.split()[1] for p in ps], "long": lambda ps: ["I " + p for p in ps]}


def test_metrics_by_name_stand_in_the_report_beside_controls():
    report = ev.evaluate(ECHO, {"s": ROWS, "t": ROWS[:1]}, metrics=mt.by_name(("chrf", "f1")))
    systems = ["short", "long", "copy of the prompt", "most frequent answer"]
    assert [r["system"] for r in report.rows] == systems * 2
    got = report.row("long", "s")["metrics"]["chrf"]
    want = mt.measure(ECHO["long"]([r["prompt"] for r in ROWS]), [r["completion"] for r in ROWS], "chrf")
    assert (got["value"], got["lo"], got["hi"], got["n"]) == (want.value, want.lo, want.hi, 6)
    for text in (report.table(), str(report), report._repr_markdown_()):
        assert "chrF" in text and "Token F1" in text and ev.shown(got) in text and "nan" not in text.lower()
    again = ev.Report.from_dict(json.loads(json.dumps(report.as_dict(), allow_nan=False)))
    assert again == report
    d = mt.difference(again, "long", "short", "s", "f1")
    assert d.value == pytest.approx(report.row("short", "s")["metrics"]["f1"]["value"] - report.row("long", "s")["metrics"]["f1"]["value"])
    with pytest.raises(UserError, match="does not compare"): mt.difference(report, "long", "none", "s", "f1")
    assert report.plot()


def test_a_control_that_is_there_is_enough_and_without_metrics_nothing_changes():
    own = {**ECHO, "most frequent": ev.majority_control(ROWS)}
    assert {r["system"] for r in ev.evaluate(own, {"s": ROWS}, metrics=mt.by_name("f1")).rows} == set(own)
    plain = ev.evaluate(ECHO, {"s": ROWS})
    assert [r["system"] for r in plain.rows] == list(ECHO) and not plain.differences
    assert "metrics" not in plain.rows[0] and plain.table().count("|") == 6 * 4
    mine = {"copy of the prompt": lambda ps: ["mine"] * len(ps)}
    kept = ev.evaluate(mine, {"s": ROWS}, metrics=mt.by_name("f1"), samples=1).samples
    assert next(s for s in kept if s["system"] == "copy of the prompt")["answer"] == "mine"


def test_several_references_in_a_report():
    rows = [dict(prompt="x", completion=["yes", "yeah"]), dict(prompt="y", completion=["no"])]
    report = ev.evaluate({"a": lambda ps: ["yeah", "nope"]}, {"s": rows}, metrics=mt.by_name(("exact_match",)))
    row = report.row("a", "s")
    assert row["right"] == 1 and row["metrics"]["exact_match"]["value"] == row["exact"] == 0.5
    with pytest.raises(UserError, match="no rows"): ev.evaluate(ECHO, {"s": []}, metrics=mt.by_name("f1"))
    with pytest.raises(UserError, match="no metric 'bleurt'"): ev.evaluate(ECHO, {"s": ROWS}, metrics=mt.by_name(["bleurt"]))


# --- controls that learn ------------------------------------------------------------------------
PLACES = ["Rome", "Oslo", "Lima", "Kyiv", "Bonn", "Cork", "Graz", "Lyon", "Nice", "York"]
MAIL = [dict(prompt=f"my parcel to {p} came late, third time", completion="delivery") for p in PLACES] + \
       [dict(prompt=f"the price in {p} is too high for me", completion="money") for p in PLACES]


def test_tfidf_learns_what_words_say_from_twenty_rows():
    control = mt.tfidf_control(MAIL)
    assert control.control and control([]) == []
    got = control(["it came late to Bern", "price too high in Bern", [dict(role="system", content="price price"), dict(role="user", content="my parcel, late")]])
    assert got == ["delivery", "money", "delivery"] and all(type(g) is str for g in got)
    report = ev.evaluate({"c": control}, {"s": MAIL})
    assert report.row("c", "s")["right"] == 20
    chats = [dict(prompt=[dict(role="user", content="hello"), dict(role="user", content=[dict(type="text", text=r["prompt"])])], completion=r["completion"]) for r in MAIL]
    assert mt.tfidf_control(chats)(["price too high in Bern", ""])[0] == "money"


def test_tfidf_is_scikit_learns_pipeline_on_plain_words():
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rng = random.Random(0)
    words = {l: [f"{l}{i}" for i in range(30)] for l in "abc"}
    rows = [dict(prompt=" ".join(rng.choices(words[l], k=4) + rng.choices(sum(words.values(), []), k=6)), completion=l) for l in rng.choices("abc", k=400)]
    train, test = rows[:300], [r["prompt"] for r in rows[300:]]
    plain = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+"), LogisticRegression(C=10, max_iter=1000, tol=1e-6))
    want = plain.fit([r["prompt"] for r in train], [r["completion"] for r in train]).predict(test).tolist()
    got = mt.tfidf_control(train)(test)
    assert sum(a != b for a, b in zip(got, want)) <= 1           # two solvers, one optimum
    assert np.mean([g == r["completion"] for g, r in zip(got, rows[300:])]) > 0.6


@pytest.mark.parametrize("texts", [
    ["👍", "👎", "👍👍", "👎 👎", "❤", "💔"], ["好吃", "难吃", "很好吃", "很难吃", "真好吃", "真难吃"],
    ["x", "y", "x", "y", "x", "y"], ["!", "?", "!!", "??", "! !", "? ?"], ["ดีมาก", "แย่มาก", "ดี", "แย่", "ดีจริง", "แย่จริง"], [1, 2, 1, 2, 1, 2]])
def test_texts_that_hold_no_words_are_read_by_their_characters(texts):
    rows = [dict(prompt=t, completion="no" if i % 2 else "yes") for i, t in enumerate(texts)]
    labels = [r["completion"] for r in rows]
    assert mt.tfidf_control(rows)(texts)[:2] == labels[:2] == ["yes", "no"]
    assert mt.nearest_control(rows)(texts)[:2] == ["yes", "no"]


@pytest.mark.parametrize("make", [mt.tfidf_control, mt.nearest_control])
def test_a_control_with_nothing_to_learn_from_still_answers(make):
    blank = [dict(prompt=" ", completion="a"), dict(prompt="", completion="a"), dict(prompt="", completion="b")]
    assert make(blank)(["x", ""]) == ["a", "a"]
    assert make([dict(prompt="one", completion="only")] * 3)(["x", ""]) == ["only", "only"]
    assert make(MAIL)(["", "qzx"])[0] in ("delivery", "money")
    with pytest.raises(UserError, match="training split is empty"): make([])
    with pytest.raises(UserError, match="no column 'prompt'"): make([dict(text="x", completion="y")])


def test_tfidf_refuses_what_is_no_label():
    with pytest.raises(UserError, match="1,001 different answers.*nearest_control"):
        mt.tfidf_control([dict(prompt=f"p{i}", completion=str(i)) for i in range(1001)])


def test_the_nearest_row_is_the_one_of_largest_cosine_and_the_first_of_equal_ones():
    from sklearn.feature_extraction.text import TfidfVectorizer

    rng = random.Random(1)
    prompts = [" ".join(rng.choices("tune train qwen llama rank epochs four bit two data".split(), k=rng.randint(1, 6))) for _ in range(300)]
    train = [dict(prompt=p, completion=str(i)) for i, p in enumerate(prompts)]
    asked = [p + "s" for p in prompts[:150]] + prompts[150:] + ["zzz", ""]
    v = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    cosine = v.fit_transform(prompts).toarray() @ v.transform(asked).toarray().T
    got = [int(a) for a in mt.nearest_control(train)(asked)]
    best = (cosine >= cosine.max(0) - 1e-8)
    assert (best.sum(0) > 1).sum() > 20, "words in another order tie"
    assert got == best.argmax(0).tolist() and got[-2:] == [0, 0]
    again = mt.nearest_control(train)
    assert [int(a) for a in again(asked)] == got == [int(again([a])[0]) for a in asked], "one at a time or together"


def test_the_nearest_of_thousands_of_rows_is_found_in_seconds():
    rng, letters = random.Random(0), string.ascii_lowercase
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(4000)]
    rows = [dict(prompt=" ".join(rng.choices(words, k=20)), completion=str(i)) for i in range(8000)]
    start = time.process_time()
    assert mt.nearest_control(rows)([r["prompt"] for r in rows[:400]]) == [str(i) for i in range(400)]
    assert time.process_time() - start < 20


@pytest.mark.parametrize("task, name", [("classify", "TF-IDF + logistic regression"), ("causal", "nearest training row"), ("seq2seq", "nearest training row")])
def test_the_controls_of_a_task_and_what_is_said_where_one_is_missing(monkeypatch, task, name):
    said = []
    found = mt.task_controls(MAIL, task, said.append)
    assert list(found) == ["most frequent", name] and not said and all(c.control for c in found.values())
    report = ev.evaluate(found, {"s": MAIL}, metrics=mt.by_name("f1"))
    assert list(dict.fromkeys(r["system"] for r in report.rows)) == list(found) and name in report.table()
    assert (report.row("most frequent", "s")["right"], report.row(name, "s")["right"]) == (10, 20)

    monkeypatch.setattr(extras, "find_spec", lambda module, real=extras.find_spec: None if module == "sklearn" else real(module))
    assert list(mt.task_controls(MAIL, task, said.append)) == ["most frequent"]
    sentence, = said
    assert repr(name) in sentence and "needs scikit-learn, which is not installed" in sentence and sentence.endswith("pip install 'hfflow[metrics]'")
    with pytest.warns(UserWarning, match="needs scikit-learn, which is not installed"): mt.task_controls(MAIL, task)


# --- classifiers --------------------------------------------------------------------------------
def head(kind, tok, **more):
    import torch
    from transformers import AutoModelForSequenceClassification, BertConfig, GPT2Config, RobertaConfig

    ids = dict(vocab_size=len(tok), bos_token_id=None, eos_token_id=tok.eos_token_id, num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"}, pad_token_id=tok.pad_token_id, **more)
    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=48)
    cfg = {"bert": lambda: BertConfig(**size, **ids), "roberta": lambda: RobertaConfig(**size, **ids),
           "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=48, **ids)}[kind]()
    model = AutoModelForSequenceClassification.from_config(cfg)
    torch.manual_seed(1)
    for p in model.parameters():        # larger weights than the usual ones: labels that depend on the text
        if p.dim() > 1: torch.nn.init.normal_(p, std=0.2)
    return model


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_classify_is_the_model_one_text_at_a_time(kind):
    import torch

    tok = tinychat.tokenizer()
    tok.model_max_length = 40
    model, prompts = head(kind, tok).train(), [p or "x" for p in texts(23)] + ["long " * 60, [dict(role="user", content="a chat")]]
    got = mt.classify(model, tok, prompts, batch=5)
    assert model.training and len(set(got)) > 1
    model.eval()
    for p, label in zip(prompts, got):
        ids = tok(p if isinstance(p, str) else p[-1]["content"], return_tensors="pt", truncation=True, max_length=40)
        with torch.no_grad(): assert label == model.config.id2label[int(model(**ids).logits.argmax())]
    assert mt.classify(model, tok, []) == []


def test_classify_without_padding_and_what_it_refuses():
    tok = tinychat.tokenizer()
    model = head("gpt2", tok)
    want = mt.classify(model, tok, ["a fox", "the quick brown dog"])
    model.config.pad_token_id = None
    assert mt.classify(model, tok, ["a fox", "the quick brown dog"]) == want
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(UserError, match="one label of several"): mt.classify(model, tok, ["x"])
    report = ev.evaluate({"bert": mt.classifier_system(head("bert", tok), tok)}, {"s": [dict(prompt="x", completion="good")] * 3}, metrics=mt.by_name("accuracy"))
    assert report.row("bert", "s")["metrics"]["accuracy"]["value"] == report.row("bert", "s")["exact"]


# --- .eval_results ------------------------------------------------------------------------------
def test_entries_are_read_back_by_the_hubs_own_parser():
    import yaml
    from huggingface_hub import parse_eval_result_entries

    report = ev.evaluate(ECHO, {"s": ROWS}, metrics=mt.by_name(("chrf",)))
    made = mt.eval_results(report, "you/rows", "long", revision="a" * 40, date="2026-01-31T10:30:00Z", source_url="https://example.org/logs", source_name="Logs")
    assert parse_eval_result_entries(yaml.safe_load(mt.eval_results_yaml(made))) == made
    assert [(e.task_id, e.value) for e in made] == [("s_exact_match", 0.0), ("s_chrf", round(report.row("long", "s")["metrics"]["chrf"]["value"], 4))]
    assert "short 0" in made[0].notes and "copy of the prompt" in made[1].notes
    only, = mt.eval_results(report, "you/rows", "long", tasks={("s", "chrf"): "default"})
    assert only.task_id == "default"
    for bad, say in [(dict(dataset_id="rows"), "owner/name"), (dict(system="none"), "no figure of 'none'"), (dict(date="soon"), "ISO 8601"),
                     (dict(source_name="Logs"), "source_url"), (dict(tasks={}), "no figure")]:
        with pytest.raises(UserError, match=say): mt.eval_results(report, **{**dict(dataset_id="you/rows", system="long"), **bad})


def test_a_flow_takes_metrics_by_name_and_refuses_unknown_ones():
    from hfflow import flow

    assert flow.load({"evaluate": {"metrics": ["chrf", "rougel"]}}).evaluate.metrics == ("chrf", "rougeL")
    assert flow.load({"evaluate": {"metrics": "chrf, f1"}}).as_dict()["evaluate"]["metrics"] == ["chrf", "f1"]
    assert flow.load({}).evaluate.metrics == ()
    with pytest.raises(UserError, match="did you mean 'chrf'"): flow.load({"evaluate": {"metrics": ["chfr"]}})
    with pytest.raises(UserError, match="evaluate.metrics"): flow.load({"evaluate": {"metrics": 3}})
