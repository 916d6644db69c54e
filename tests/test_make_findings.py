"""Check what the pages in front say was found: numbers derived anew from recorded answers, and their sentences."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from rcblib.evaluate.guessing import kinds_of
from rcblib.records import ParameterError
from rcblib.runs.files import read_json, write_json
from tools import make_findings
from tools.judged import judge
from tools.make_findings import DRAWN, DROPPED, PHOTOGRAPHS, SCENES

REPOSITORY = Path(__file__).resolve().parents[1]
RECORDED = REPOSITORY / "data/recorded"


def states(cls, attention):
    """Return results of a signal's page, of both kinds of tokens; an interval is a tenth to either side."""
    found = {}
    for kind in ("recognisable", "influential"):
        for name, value in {"cls": cls, "attention": attention}.items():
            ends = {"n": 7, "n_clusters": 3, "interval": [value - 0.1, value + 0.1]}
            shares = {"low_share": value, "random": 0.5, "best": 0.0, "reversed": 1.0}
            found[f"{name}_low_share_of_{kind}"] = {"value": value} | ends
            reliable = 1 - 2 * value
            found[f"{name}_reliability_for_{kind}"] = {"value": reliable} | shares | ends
            found[f"{name}_reliability_for_{kind}"]["interval"] = [reliable - 0.1, reliable + 0.1]
    return found


def of_pixels(value):
    """Return what another page found of the pixel baseline."""
    return {make_findings.PIXELS: {"value": value, "n": 12, "interval": [value - 0.1, value + 0.1]}}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Lay out what the tool reads: recorded results, claims and words, and made-up results of one notebook."""
    root = tmp_path_factory.mktemp("project")
    (root / "data").mkdir()
    (root / "book").mkdir()
    (root / "data/recorded").symlink_to(RECORDED)
    for name in ("data/claims.yml", "data/gates.yml", "book/what_we_found.yml"):
        shutil.copy(REPOSITORY / name, root / name)
    content = {"config": {"model": PHOTOGRAPHS}, "results": states(0.55, 0.02)}
    write_json(root / "results/intermediate_states.json", content)
    content = {"config": {"model": PHOTOGRAPHS}, "results": of_pixels(0.7)}
    write_json(root / "results/photographs/signals_against_truth.json", content)
    return root


@pytest.fixture(scope="module")
def judged(project):
    return judge(project, [PHOTOGRAPHS], [make_findings.TRUTH])


def scored(model, method, ratio=None):
    """Average a method's score over the tasks of a model that pass, from the recorded answers alone."""
    answers = pd.read_parquet(RECORDED / model / "pruning.parquet")
    answers = answers[answers["method"] == method].assign(kind=lambda rows: kinds_of(rows))
    answers = answers if ratio is None else answers[answers["retain_ratio"] == ratio]
    return answers.groupby("kind")["score"].mean(), answers


@pytest.mark.parametrize("model", [PHOTOGRAPHS, *DRAWN, DROPPED])
def test_scores_are_those_of_the_recorded_answers(judged, model):
    told, tasks = make_findings.scores(judged, model), judged.models[model].tasks["images"]
    methods = {
        "codebook": ("codebook", 0.2), "random": ("random tokens", 0.2), "oracle": ("oracle by masks", 0.2),
        "unpruned": ("all tokens", None),
    }  # fmt: skip
    for name, (method, ratio) in methods.items():
        assert told[name] == f"{scored(model, method, ratio)[0][tasks].mean():.2f}", name
    _, answers = scored(model, "all tokens")
    assert told["guessing"] == f"{answers.groupby('kind')['guess'].mean()[tasks].mean():.2f}"


def test_findings_tell_these_scores_with_their_controls(judged, project):
    text = make_findings.findings_text(judged, project)
    assert [line[:2] for line in text.splitlines() if line[:1].isdigit()] == ["1.", "2.", "3.", "4.", "5."]
    own = make_findings.scores(judged, PHOTOGRAPHS)
    controls = "; ".join(f"{name} {own[name]}" for name in ("unpruned", "guessing", "random", "oracle"))
    assert f"Score {own['codebook']}, which is" in text and f"Controls: {controls}." in text
    _, answers = scored(PHOTOGRAPHS, "all tokens")
    tasks = judged.models[PHOTOGRAPHS].tasks["images"]
    n = answers["kind"].isin(tasks).sum()
    kinds = f"those of the {len(tasks)} of {answers['kind'].nunique()} kinds"
    assert f"{n} of {len(answers)} questions, {kinds} that pass G1, on composed photographs" in text
    rows = pd.DataFrame(read_json(RECORDED / f"benchmarks/{make_findings.SPEED}.json")["pruning"])
    rows = rows[(rows["method"] == "codebook") & (rows["retain_ratio"] == 0.2)].sort_values("batch_size")
    one, four = rows.to_dict("records")
    assert (one["batch_size"], four["batch_size"]) == (1, 4)
    assert f"the prefill is {one['speed_up']:.1f} and {four['speed_up']:.1f} times as fast" in text
    ends = f"{one['end_to_end_speed_up']:.2f} and {four['end_to_end_speed_up']:.2f} times"
    measured = read_json(RECORDED / f"benchmarks/{make_findings.EVERY_SPEED}.json")
    every, new = pd.DataFrame(measured["pruning"]), measured["settings"]["new"]
    assert f"an answer of 16 tokens {ends}; one of {new} tokens" in text
    drawn = every[(every["method"] == "random tokens") & (every["retain_ratio"] == 0.2)]
    assert f"random {drawn['end_to_end_speed_up'].item():.2f} ({new} tokens)" in text


def test_sentences_follow_the_numbers(judged, project, monkeypatch):
    said = make_findings.signals(judged)
    assert "no better than random numbers; attention does" in said.headline
    assert "55% [45%, 65%] and 2% [-8%, 12%] of the tokens that are recognised alone" in said.measured
    assert "By the rules alone C1 holds, C2 does not hold" in said.measured
    assert "0.70 [0.60, 0.80] on 12 others" in said.measured and said.controls["random"] == "50%"
    monkeypatch.setitem(judged.models[PHOTOGRAPHS].results, "intermediate_states", states(0.2, 0.3))
    assert "differ from what the paper says" in make_findings.signals(judged).headline
    worse = {"above_random_retain_20": {"value": -0.2, "interval": [-0.3, -0.1]}}
    pruned = judged.models[PHOTOGRAPHS].results["pruning"]
    monkeypatch.setitem(judged.models[PHOTOGRAPHS].results, "pruning", pruned | worse)
    assert "worse than random tokens" in make_findings.on_photographs(judged).headline


def test_each_model_of_drawn_scenes_is_told_by_its_own_difference(judged, monkeypatch):
    said = make_findings.on_scenes(judged)
    for model in DRAWN:
        found = judged.result(model, "pruning", "above_random_retain_20")
        assert (
            f"{found['value']:+.2f} [{found['interval'][0]:+.2f}, {found['interval'][1]:+.2f}]"
            in said.measured
        )
    assert re.search(
        r"better than random tokens with LLaVA-NeXT-scenes, worse with LLaVA-OneVision-scenes", said.headline
    )
    assert said.headline.endswith("not seen to differ with LLaVA-scenes.")
    pruned = judged.models[SCENES].results["pruning"]
    better = {"above_random_retain_20": {"value": 0.2, "interval": [0.1, 0.3]}}
    monkeypatch.setitem(judged.models[SCENES].results, "pruning", pruned | better)
    headline = make_findings.on_scenes(judged).headline
    assert "better than random tokens with LLaVA-scenes and LLaVA-NeXT-scenes, worse" in headline


def test_what_was_not_measured_is_refused_in_one_line(judged):
    with pytest.raises(ParameterError, match=r"pruning of nobody.*score.*a result that was measured"):
        judged.result("nobody", "pruning", "score")
    with pytest.raises(ParameterError, match=r"gates of llava-photographs.*nothing.*was measured"):
        judged.gate(PHOTOGRAPHS, "nothing")


def test_every_claim_has_its_line_a_model_and_the_page_is_short(judged, project):
    words = make_findings.read_words(project)
    assert set(words) >= {claim.name for claim in judged.claims}
    text = make_findings.claims_text(judged, words)
    assert [line[3:5] for line in text.splitlines() if line.startswith("## ")] == list(words)
    own = make_findings.scores(judged, PHOTOGRAPHS)
    (line,) = re.findall(
        r"(?m)^\| LLaVA-photographs \| (0.\d\d\s·.*)$",
        text.partition("## C3")[2].partition("## C4")[0],
    )
    assert line.startswith(own["codebook"]) and own["random"] in line and own["oracle"] in line
    assert "| not testable (G5) | open |" in line and line.endswith("| 840 |")  # a tenth leaves it open
    (line,) = re.findall(r"(?m)^\| LLaVA-scenes \|.*$", text.partition("## C4")[2])
    found = judged.result(SCENES, "every_method", "above_intermediate_retain_10")
    assert found["retained"] > 0.1  # a method inside the LLM reads more than it is asked for
    assert f"| {found['value']:+.2f} [" in line
    assert f"LLaVA-scenes: SparseVLM at {found['retained']:.0%}" in text
    page = (REPOSITORY / "book/what_we_found.md").read_text(encoding="utf-8")
    assert len(re.findall(r"[^\s|*·#-]+", page + text)) <= 900


def test_controls_are_read_as_numbers(judged, monkeypatch):
    evidence, (claim, *_) = judged.models[PHOTOGRAPHS], judged.claims
    stored = {"value": 0.2, "n": 7, "low_share": 0.44, "random": 0.5, "best": 0.07, "reversed": 0.9}
    measured = evidence.results["intermediate_states"] | {rule.result: stored for rule in claim.rules}
    monkeypatch.setitem(evidence.results, "intermediate_states", measured)
    header, _, *lines = make_findings.claim_table(judged, claim).splitlines()
    assert header == "| model | in the lower half (random 0.50, perfect 0.07) | verdict | rules alone | n |"
    (line,) = (line for line in lines if line.startswith("| LLaVA-photographs |"))
    assert line.startswith("| LLaVA-photographs | 0.44\u202f·\u202f0.44 | ")
    assert re.search(r"\((G\d, )*G4(, G\d)*\) \| – \| 7 \|$", line)  # these have no interval
    others = [each for each in evidence.gates if each.what != "overlap of two seeds"]
    (overlap,) = (each for each in evidence.gates if each.what == "overlap of two seeds")
    monkeypatch.setattr(
        evidence, "gates", [*others, replace(overlap, about="", by_chance=0.375, matched=0.42)]
    )
    said = make_findings.seeds(judged)
    assert (
        said.controls["random"] == "sets 0.38" and "by 0.42 where each has levels of its own" in said.measured
    )


def test_words_hold_no_numbers():
    words = yaml.safe_load((REPOSITORY / "book/what_we_found.yml").read_text(encoding="utf-8"))
    for name, own in words.items():
        for text in own.values():
            assert not re.search(r"\d", re.sub(r"LLaVA-1\.5|\bG\d\b", "", text)), name


def test_an_entry_that_is_missing_or_unknown_is_refused(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book/what_we_found.yml").write_text("C1: {title: a, paper: b}\n", encoding="utf-8")
    with pytest.raises(ParameterError, match="C1.*title, paper, test, why and change"):
        make_findings.read_words(tmp_path)


def test_pages_include_every_part_and_the_build_writes_them():
    pages = "".join(
        (REPOSITORY / f"book/{name}.md").read_text(encoding="utf-8") for name in ("intro", "what_we_found")
    )
    workflow = (REPOSITORY / "workflow/Snakefile").read_text(encoding="utf-8")
    (written,) = re.findall(r"FINDINGS = expand\(.*part=\[(.*)\]\)", workflow)
    included = re.findall(r"_build/findings/(\w+)\.md", pages)
    assert sorted(included) == sorted(re.findall(r"\w+", written)) == ["claims", "findings", "summary"]
    assert '"{RUN} tools.make_findings"' in workflow
