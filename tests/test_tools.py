"""Check the tools of the build on small inputs: lists, configuration, expectations, pages, workflow."""

import copy
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
import yaml
from papermill import inspect_notebook

from rcblib.records import ParameterError
from tools import book_extension, check_expected, make_config, make_pages
from tools.notebook_list import Notebook, read_notebook_list

REPOSITORY = Path(__file__).resolve().parents[1]


def write_list(folder, text):
    path = folder / "notebooks.yml"
    path.write_text(text, encoding="utf-8")
    return path


def test_notebook_list_is_read_in_order_with_defaults(tmp_path):
    path = write_list(
        tmp_path,
        "inputs: ['data/{model}/*']\n"
        "modules: [worlds.datasets]\n"
        "default_model: small\n"
        "notebooks:\n"
        "  - {name: first}\n"
        "  - {name: second, needs: [first], threads: 2, parameters: {n_images: 5}, inputs: [data/claims.yml]}\n",
    )
    found = read_notebook_list(path)
    assert found.modules == ("worlds.datasets",) and found.stages == ()
    assert found.notebooks == (
        Notebook("first", "", "small", "small", inputs=("data/small/*",)),
        Notebook(
            "second",
            "",
            "small",
            "small",
            ("first",),
            2,
            {"n_images": 5},
            ("data/small/*", "data/claims.yml"),
        ),
    )


STAGES = """
default_model: small
models: {other-model: Other, third-model: Third}
stages:
  - name: probing
    command: probe
    options: {positions: all, retain_ratio: [0.1, 0.2], no_attention: true}
    models: {other-model: {positions: grid}}
notebooks:
  - {name: first, reads: {probed: probing}, models: {other-model: {}}}
"""


def test_a_stage_runs_on_each_of_its_models_for_the_notebooks_that_read_it(tmp_path):
    found = read_notebook_list(write_list(tmp_path, STAGES))
    assert [(stage.run, stage.folder) for stage in found.stages] == [
        ("probing", "results/probing"),
        ("probing-other-model", "results/other-model/probing"),
    ]
    assert " ".join(found.find("probing-other-model").arguments()) == (
        "probe --folder results/other-model/probing --model other-model --positions grid "
        "--retain-ratio 0.1 0.2 --no-attention"
    )
    assert found.find("probing").options["model"] == "small"
    own, other = found.notebooks
    assert (own.reads, own.parameters) == ({"probed": "probing"}, {"probed": "results/probing"})
    assert own.settings == {}  # elsewhere nobody has filled that folder
    assert other.reads == {"probed": "probing-other-model"}
    assert other.parameters["probed"] == "results/other-model/probing"


def test_notebooks_ask_about_what_their_stages_compute():
    found = read_notebook_list(REPOSITORY / "workflow" / "notebooks.yml")
    others = {"n_per_task": "n_questions", "retain_ratio": "budgets", "random_seeds": "n_seeds"}
    for notebook in found.notebooks:
        given = inspect_notebook(str(REPOSITORY / "notebooks" / f"{notebook.name}.ipynb"))
        for parameter, stage in ((name, found.find(run)) for name, run in notebook.reads.items()):
            # Beside the model's own world a notebook may read another one, by parameters of their own.
            elsewhere = {"images": "other_images", "split": "other_split", "n_images": "n_other"}
            named = others | (elsewhere if parameter.endswith("_elsewhere") else {})
            chosen_by_itself = {"positions": "codebook", "codebook": stage.options["model"]}
            for option, value in stage.options.items():
                name = named.get(option, option)
                if name in given and value != chosen_by_itself.get(name):
                    default = yaml.safe_load(given[name]["default"])
                    assert notebook.parameters.get(name, default) == value, (notebook.run, name)


def test_notebooks_run_by_default_on_the_model_that_leads_their_pages():
    for notebook in read_notebook_list(REPOSITORY / "workflow" / "notebooks.yml").notebooks:
        given = inspect_notebook(str(REPOSITORY / "notebooks" / f"{notebook.name}.ipynb"))
        if "model" in given and not notebook.model:
            default = yaml.safe_load(given["model"]["default"])
            assert f"data/models/{default}/**/*" in notebook.inputs, notebook.name


LEADING = """
default_model: &leading small
inputs: ["data/{model}/*"]
models: {small: Small, other-model: Other}
stages:
  - name: probing
    command: probe
    options: {n: 5, codebook: "{model}"}
    models: {other-model: {}, *leading : {n: 2}}
  - name: evaluating
    command: probe
    default_model: other-model
    options: {asked: ["all", "some:of={model}"]}
    models: {other-model: {}}
notebooks:
  - name: first
    reads: {probed: probing}
    parameters: {n: 5}
    models: {other-model: {}, *leading : {n: 2, table: "recorded/{model}.parquet"}}
  - {name: second, default_model: other-model, models: {other-model: {n: 3}, small: {}}}
"""


def test_the_leading_model_has_settings_of_its_own_and_a_notebook_may_choose_another(tmp_path):
    found = read_notebook_list(write_list(tmp_path, LEADING))
    assert [(stage.run, stage.options) for stage in found.stages] == [
        ("probing", {"model": "small", "n": 2, "codebook": "small"}),
        ("probing-other-model", {"model": "other-model", "n": 5, "codebook": "other-model"}),
        ("evaluating", {"model": "other-model", "asked": ["all", "some:of=other-model"]}),
    ]
    assert [entry.run for entry in found.notebooks] == [
        "first",
        "first-other-model",
        "second",
        "second-small",
    ]
    first, second = found.find("first"), found.find("second")
    assert first.parameters == {"n": 2, "table": "recorded/small.parquet", "probed": "results/probing"}
    assert (second.parameters, second.inputs) == ({"n": 3}, ("data/other-model/*",))
    assert found.find("second-small").inputs == ("data/small/*",)


BY_MODEL = """
models: {other-model: Other, third-model: Third}
notebooks:
  - {name: first, models: {other-model: {}}}
  - {name: second, needs: [first], parameters: {a: 1, b: 1}, models: {other-model: {b: 2}, third-model: {}}}
  - {name: third, needs: [first, second]}
"""


def test_a_notebook_runs_on_each_of_its_models_with_what_that_model_has_run(tmp_path):
    found = read_notebook_list(write_list(tmp_path, BY_MODEL))
    assert {notebook.run: notebook.needs for notebook in found.notebooks} == {
        "first": (),
        "first-other-model": (),
        "second": ("first",),
        "second-other-model": ("first-other-model",),
        "second-third-model": ("first",),
        "third": ("first", "first-other-model", "second", "second-other-model", "second-third-model"),
    }
    other = found.find("second-other-model")
    assert other.parameters == {
        "a": 1,
        "b": 2,
        "model": "other-model",
        "results_folder": "results/other-model",
    }
    assert (other.title, other.page) == ("Other", "notebooks/second")
    assert other.results == "results/other-model/second.json"
    assert found.find("second").results == "results/second.json"


def test_a_notebook_may_need_stages_on_every_model(tmp_path):
    text = """
models: {other-model: Other}
stages:
  - {name: asking, command: evaluate, models: {other-model: {}}}
notebooks:
  - {name: first, models: {other-model: {}}}
  - {name: last, needs: [asking, first]}
"""
    found = read_notebook_list(write_list(tmp_path, text))
    needs = found.find("last").needs
    assert needs == ("asking", "asking-other-model", "first", "first-other-model")
    assert [found.output(run) for run in needs[1:3]] == [
        "results/other-model/asking.parquet",
        "results/first.json",
    ]


def test_the_contents_list_one_page_an_experiment(tmp_path):
    found = read_notebook_list(write_list(tmp_path, BY_MODEL))
    pages = [{"file": f"notebooks/{name}"} for name in ("first", "second", "third")]
    assert make_config.notebook_entries(found) == pages
    runs = {name: [entry.run for entry in entries] for name, entries in found.experiments.items()}
    assert runs["second"] == ["second", "second-other-model", "second-third-model"]


def test_the_copy_of_another_model_is_named_and_links_to_that_models_pages(tmp_path):
    found = read_notebook_list(write_list(tmp_path, BY_MODEL))
    cells = ["# A title\n\nText", "[](first.ipynb), [](third.ipynb), [code](first.py)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in cells])
    make_pages.name_run(notebook, "second", found)
    assert [cell.source for cell in notebook.cells] == cells
    make_pages.name_run(notebook, "second-other-model", found)
    assert [cell.source for cell in notebook.cells] == [
        "# A title: Other\n\nText",
        "[](first-other-model.ipynb), [](third.ipynb), [code](first.py)",
    ]


def test_commands_on_the_page_of_another_model_run_that_model(tmp_path):
    listed = (
        "models:\n  other: Other\nnotebooks:\n  - name: first\n    parameters: {n_images: 2}\n    models:\n"
    )
    found = read_notebook_list(
        write_list(tmp_path, listed + "      other: {n_images: 3, budgets: [0.1, 0.2]}\n")
    )
    command = "`papermill notebooks/first.ipynb out.ipynb`"
    cells = [
        f"# A title\n\n{command}",
        command,
        f"{command[:-1]} -p scale 4.0`",
        f"{command[:-1]} -p model a/b`",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in cells])
    leading = copy.deepcopy(notebook)
    make_pages.name_run(leading, "first", found)
    assert [cell.source for cell in leading.cells] == [
        f"# A title\n\n{command[:-1]} -p n_images 2`",
        *cells[1:],
    ]
    make_pages.name_run(notebook, "first-other", found)
    always = f"{command[:-1]} -p model other -p results_folder results/other"
    assert [cell.source for cell in notebook.cells] == [
        f'# A title: Other\n\n{always} -p n_images 3 -y "budgets: [0.1, 0.2]"`',
        f"{always}`",
        f"{always} -p scale 4.0`",
        cells[3],
    ]


def test_an_empty_list_is_a_list(tmp_path):
    assert read_notebook_list(write_list(tmp_path, "notebooks: []\n")).notebooks == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notebook: []", r"unknown \['notebook'\]; accepted: \['default_model', 'inputs', "),
        (
            "models: {b: B}\nstages: [{name: s, command: probe}]\n"
            "notebooks: [{name: a, reads: {probed: s}, models: {b: {}}}]",
            "a reads s, which is not run on b",
        ),
        (
            "stages: [{name: s}]\nnotebooks: [{name: a, reads: {x: t}}]",
            r"a reads \['t'\]; accepted: .*\['s'\]",
        ),
        ("notebooks: [first]", "got 'first'; accepted: an entry such as"),
        ("notebooks: [{name: first, need: []}]", r"first: unknown \['need'\]"),
        ("notebooks: [{name: First-One}]", "lower-case letters, digits and underscores"),
        ("notebooks: [{name: a}, {name: a}]", "a is listed twice"),
        ("notebooks: [{name: a, models: {b: {}}}]", r"models of a: unknown \['b'\]"),
        (
            "notebooks: [{name: a, needs: [b]}, {name: b}]",
            r"a needs \['b'\]; accepted: what is listed before it, \[\]",
        ),
    ],
)
def test_mistakes_in_the_list_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_notebook_list(write_list(tmp_path, text))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("git@github.com:group/name.git", "https://github.com/group/name"),
        ("ssh://git@host.example:2222/group/name.git", "https://host.example/group/name"),
        ("https://github.com/group/name.git\n", "https://github.com/group/name"),
        ("https://user:secret@host.example/group/name/", "https://host.example/group/name"),
        ("http://host.example:8080/group/name", "https://host.example:8080/group/name"),
        ("../elsewhere/name.git", None),
        ("file:///srv/name.git", None),
        ("", None),
    ],
)
def test_repository_addresses_become_web_pages_without_credentials(address, expected):
    assert make_config.normalize_repository(address) == expected


def test_environment_variable_comes_before_the_remote(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert make_config.repository_url(tmp_path, {}) is None
    remote = "git@github.com:group/name.git"
    subprocess.run(["git", "-C", str(tmp_path), "remote", "add", "origin", remote], check=True)
    assert make_config.repository_url(tmp_path, {}) == "https://github.com/group/name"
    given = {"RCB_REPOSITORY": "https://host.example/other"}
    assert make_config.repository_url(tmp_path, given) == "https://host.example/other"
    assert make_config.repository_url(tmp_path, {"RCB_REPOSITORY": ""}) is None


def test_buttons_need_a_repository_and_colab_needs_github():
    config = {"title": "Book", "html": {"home_page_in_navbar": True}}
    assert make_config.build_config(config, None, "main") == config
    github = make_config.build_config(config, "https://github.com/group/name", "dev")
    assert github["repository"] == {
        "url": "https://github.com/group/name",
        "branch": "colab",  # that of the stamped copies, which check out `dev`
        "path_to_book": "",
    }
    assert github["html"] == {"home_page_in_navbar": True, "use_repository_button": True}
    assert "colab_url" in github["launch_buttons"]
    opened = "https://colab.research.google.com/github/group/name/blob/colab/notebooks"
    assert github["sphinx"]["config"]["launch_folder"] == opened
    other = make_config.build_config(config, "https://host.example/name", "main")
    assert "launch_buttons" not in other and "sphinx" not in other
    assert "repository" not in config


def test_the_pages_on_running_say_what_to_set_where_no_address_is_known():
    unknown = make_config.address_note(None)
    assert "knows no address" in unknown and "RCB_REPOSITORY=https://github.com/<owner>/<name>" in unknown
    assert "a badge and a button" in make_config.address_note("https://github.com/group/name")
    other = make_config.address_note("https://host.example/name")
    assert "<https://host.example/name>" in other and "no badges" in other
    for page in ("how_to_run", "colab"):
        text = (REPOSITORY / "book" / f"{page}.md").read_text(encoding="utf-8")
        assert text.split("\n\n")[1].startswith("```{include} _build/address/note.md")


def test_contents_take_the_listed_files_and_lose_empty_parts():
    toc = {
        "root": "intro",
        "parts": [
            {"caption": "A", "chapters": [{"file": "method"}, {"glob": "notebooks/*"}]},
            {"caption": "B", "chapters": [{"file": "api/a", "sections": [{"glob": "api/a.*"}]}]},
            {"caption": "C", "chapters": [{"glob": "notebooks/*"}]},
        ],
    }
    built = make_config.build_toc(toc, {"notebooks/*": []})
    assert built["parts"] == [
        {"caption": "A", "chapters": [{"file": "method"}]},
        toc["parts"][1],
    ]
    assert toc["parts"][2]["chapters"] == [{"glob": "notebooks/*"}]


def test_source_lines_become_sections_after_any_other():
    docstring = [
        "Do it.",
        "",
        "Raises",
        "------",
        "ValueError",
        "    Always.",
        "",
        "Source: the paper, section 3.",
        "Differs: in one way,",
        "and another.",
    ]
    assert book_extension.add_headings(docstring) == [
        *docstring[:7],
        *["", "Source", "------", "the paper, section 3."],
        *["", "Differs", "-------", "in one way,", "and another."],
    ]
    indented = ["    Source: not at the margin", "The Source: inside a line"]
    assert book_extension.add_headings(indented) == indented


def test_a_sentence_with_a_colon_is_no_type_of_an_attribute():
    for what, wanted in (("data", ["Windows held at once:", "five of each.", ""]), ("function", None)):
        lines = ["Windows held at once: five of each.", ""]
        book_extension.process_docstring(None, what, "x", None, None, lines)
        assert lines == (wanted or ["Windows held at once: five of each.", ""])
    assert book_extension.keep_colon([]) == [] and book_extension.keep_colon(["Plain."]) == ["Plain."]


def test_a_repeated_script_is_kept_once():
    def script(filename, body=None):
        return types.SimpleNamespace(filename=filename, attributes={} if body is None else {"body": body})

    given = [
        script("a.js"),
        script(None, "const x = 1"),
        script("a.js"),
        script("", "const x = 1"),
        script(None, "y"),
    ]
    context = {"script_files": given}
    book_extension.keep_scripts_once(None, "page", "page.html", context, None)
    assert [(s.filename, s.attributes.get("body")) for s in context["script_files"]] == [
        ("a.js", None),
        ("", "const x = 1"),
        (None, "y"),
    ]


def folders(tmp_path, expected, results):
    for name, content in (("expected", expected), ("results", results)):
        (tmp_path / name).mkdir()
        for notebook, values in content.items():
            (tmp_path / name / f"{notebook}.json").write_text(json.dumps(values), encoding="utf-8")
    return ["--expected", str(tmp_path / "expected"), "--results", str(tmp_path / "results")]


def measured(**values):
    return {"results": {name: {"value": value, "n": 1} for name, value in values.items()}}


@pytest.mark.parametrize(
    ("entry", "value", "agrees"),
    [
        ({"value": 0.87, "absolute": 0.02}, 0.89, True),
        ({"value": 0.87, "absolute": 0.02}, 0.8901, False),
        ({"value": 200, "relative": 0.1}, 181, True),
        ({"value": 200, "relative": 0.1}, 179, False),
        ({"value": 10, "absolute": 1, "relative": 0.1}, 12, True),
        ({"value": 3}, 3, True),
        ({"value": 3}, 4, False),
        ({"value": "supported"}, "supported", True),
        ({"value": "supported"}, "not supported", False),
        ({"value": True}, True, True),
        ({"value": None}, None, True),
        ({"value": 0.5, "absolute": 1}, None, False),
    ],
)
def test_values_agree_within_their_tolerance(entry, value, agrees):
    (row,) = check_expected.compare("probing", {"x": entry}, measured(x=value)["results"])
    assert row.agrees is agrees


def test_a_difference_is_that_of_two_results():
    entry = {"value": 0.004, "absolute": 0.003, "difference": ["a", "b"]}
    for (a, b), agrees in {
        (0.70, 0.697): True,
        (0.697, 0.70): False,
        (None, 0.7): False,
        ("no", 1): False,
    }.items():
        (row,) = check_expected.compare("pruning", {"a_minus_b": entry}, measured(a=a, b=b)["results"])
        assert row.agrees is agrees
    (row,) = check_expected.compare("pruning", {"a_minus_b": entry}, measured(a=0.7)["results"])
    assert (row.measured, row.agrees) == ("missing", False)


def test_two_builds_are_shown_side_by_side(tmp_path, capsys):
    expected = {"a": {"x": {"value": 0.5, "absolute": 0.1}, "gone": {"value": "yes"}}}
    arguments = folders(tmp_path, expected, {"a": measured(x=0.5625, gone="yes")})
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.json").write_text(json.dumps(measured(x=0.5)), encoding="utf-8")
    assert check_expected.main([*arguments, "--against", str(other)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:3] == ["a\tx\t0.5\t0.5625\t+0.062\t0.1", "a\tgone\tmissing\tyes\t\t0"]


def test_no_verdict_can_swap_within_its_tolerance():
    for path in (REPOSITORY / "data" / "expected").rglob("*.json"):
        for name, entry in json.loads(path.read_text(encoding="utf-8")).items():
            if "difference" in entry or "_minus_" in name:
                assert abs(entry["value"]) > entry["absolute"], (path, name)


def test_a_nan_never_agrees():
    (row,) = check_expected.compare(
        "probing", {"x": {"value": 0.5, "absolute": 1}}, measured(x=float("nan"))["results"]
    )
    assert not row.agrees


def test_differences_fail_with_a_table(tmp_path, capsys):
    expected = {"a": {"x": {"value": 0.5, "absolute": 0.1}, "gone": {"value": 1}}, "b": {"y": {"value": 2}}}
    arguments = folders(tmp_path, expected, {"a": measured(x=0.7), "b": measured(y=2)})
    table = tmp_path / "table.tsv"
    assert check_expected.main([*arguments, "--table", str(table)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:3] == ["a\tx\t0.5\t0.7\t0.1\tFalse", "a\tgone\t1\tmissing\t0\tFalse"]
    assert printed[-1] == "1 of 3 key results agree with the committed expectations"
    assert len(table.read_text(encoding="utf-8").splitlines()) == 4


def test_agreement_passes_and_update_writes_measured_values(tmp_path):
    expected = {"a": {"x": {"value": 0.5, "absolute": 0.1}}}
    arguments = folders(tmp_path, expected, {"a": measured(x=0.7)})
    assert check_expected.main(arguments) == 1
    assert check_expected.main([*arguments, "--update"]) == 0
    written = json.loads((tmp_path / "expected" / "a.json").read_text(encoding="utf-8"))
    assert written == {"x": {"value": 0.7, "absolute": 0.1}}


def test_expectations_without_results_or_with_typos_are_errors(tmp_path):
    arguments = folders(tmp_path, {"a": {"x": {"value": 0.5}}}, {})
    with pytest.raises(ValueError, match="does not exist, but a.json holds expectations"):
        check_expected.main(arguments)
    for entry in ({"val": 1}, {"value": 1, "tolerance": 2}, {"value": 1, "absolute": -1}):
        with pytest.raises(ValueError, match="a: x: got"):
            check_expected.compare("a", {"x": entry}, measured(x=1)["results"])


@pytest.fixture
def project(tmp_path):
    """Make a project of three small notebooks around the real Snakefile; `b` needs `a`."""
    pytest.importorskip("snakemake")
    for name in ("workflow/Snakefile", "tools", "pyproject.toml"):
        source, target = REPOSITORY / name, tmp_path / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    shutil.copytree(REPOSITORY / "rcblib", tmp_path / "rcblib", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("notebooks", "book", "data/expected"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "_config.yml").write_text("title: Book\n", encoding="utf-8")
    (tmp_path / "book/_toc.yml").write_text("root: intro\n", encoding="utf-8")
    entries = [{"name": "a"}, {"name": "b", "needs": ["a"]}, {"name": "c"}]
    stages = [{"name": "probing", "command": "probe"}, {"name": "pruning", "command": "evaluate"}]
    listed = {"inputs": ["data/used/*"], "stages": stages, "notebooks": entries}
    (tmp_path / "workflow/notebooks.yml").write_text(yaml.safe_dump(listed), encoding="utf-8")
    for entry in entries:
        write_notebook(tmp_path, entry["name"])
    (tmp_path / "data/expected/c.json").write_text('{"x": {"value": 1}}', encoding="utf-8")
    # What the stage would find.
    (tmp_path / "rcblib/__main__.py").write_text(
        "import sys; print(*sys.argv[2:]); open(sys.argv[sys.argv.index('--table') + 1], 'w')",
        encoding="utf-8",
    )
    return tmp_path


def write_notebook(root, name, value=1, imports=""):
    source = (
        f"{imports}\nimport json, pathlib\n"
        f"pathlib.Path('results/{name}.json').write_text(json.dumps({{'results': {{'x': {{'value': {value}}}}}}}))"
    )
    cell = {
        "cell_type": "code",
        "id": "a",
        "source": source,
        "outputs": [],
        "execution_count": None,
        "metadata": {},
    }
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


def snakemake(root, *arguments):
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def planned(root, *targets):
    """Return the rules that a run would execute now."""
    answer = snakemake(root, *(targets or ["results/expected.tsv"]), "--dry-run")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    lines = answer.stdout.splitlines() + answer.stderr.splitlines()
    rules = [line.split()[1].rstrip(":") for line in lines if line.startswith(("rule ", "localrule "))]
    return sorted(rules)


def test_a_changed_notebook_runs_again_with_what_depends_on_it(project):
    assert planned(project) == ["a", "b", "c", "expected"]
    answer = snakemake(project, "results/expected.tsv")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    executed = json.loads((project / "results/executed/b.ipynb").read_text(encoding="utf-8"))
    assert executed["cells"][-1]["execution_count"] == 1
    assert "[b]" in answer.stdout + answer.stderr
    assert planned(project) == []

    write_notebook(project, "c", value=2)
    assert planned(project) == ["c", "expected"]
    write_notebook(project, "c")
    write_notebook(project, "a", value=2)
    assert set(planned(project)) >= {"a", "b", "expected"}
    assert "c" not in planned(project)


def test_a_change_of_words_makes_pages_only(project):
    site = "book/_build/html/index.html"
    for name in ("book/what_can_go_wrong.yml", "book/intro.md"):
        (project / name).write_text("", encoding="utf-8")
    assert snakemake(project, "results/expected.tsv").returncode == 0
    (project / site).parent.mkdir(parents=True)
    (project / "book/_build/parts").touch()
    (project / site).write_text("built", encoding="utf-8")
    assert planned(project, site) == []

    (project / "book/intro.md").write_text("In other words.", encoding="utf-8")
    assert planned(project, site) == ["book"]
    (project / site).write_text("built again", encoding="utf-8")
    path = project / "notebooks/b.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("# In other words"))
    nbformat.write(notebook, path)
    assert planned(project, site) == ["book"]
    assert make_pages.write_pages(project) == 3
    page = nbformat.read(project / "book/notebooks/b.ipynb", as_version=4)
    assert page.cells[0].source.startswith("# In other words\n") and "pathlib" in page.cells[0].source
    assert make_pages.write_pages(project) == 0

    notebook.cells[-1].metadata["tags"] = ["hide-input"]
    nbformat.write(notebook, path)
    assert planned(project, site) == ["b", "book", "expected"]
    notebook.cells[-1].source += "\nEDITED = True"
    nbformat.write(notebook, path)
    with pytest.raises(ParameterError, match="executed notebook: got 'other cells of code'"):
        make_pages.write_pages(project)


def test_words_are_the_source_s_and_injected_parameters_stay():
    code = nbformat.v4.new_code_cell
    parameters = code("n = 1", metadata={"tags": ["parameters"]})
    source = nbformat.v4.new_notebook(
        cells=[parameters, nbformat.v4.new_markdown_cell("New words."), code("n")]
    )
    injected = code("n = 2", metadata={"tags": ["injected-parameters"]})
    last = code("n", execution_count=3)
    executed = nbformat.v4.new_notebook(
        cells=[parameters, injected, nbformat.v4.new_markdown_cell("Old."), last]
    )
    make_pages.take_words(executed, source)
    assert [cell.source for cell in executed.cells] == ["n = 1", "n = 2", "New words.", "n"]
    assert executed.cells[-1].execution_count == 3


def test_a_change_of_code_runs_again_what_imports_it(project):
    write_notebook(project, "c", imports="from rcblib.reading.figures import style")
    targets = ["results/c.json", "results/probing.parquet", "results/pruning.parquet"]
    answer = snakemake(project, *targets)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "[probing] --folder results/probing --model" in answer.stdout + answer.stderr

    def edit(path, old, new):
        file = project / "rcblib" / path
        file.write_text(file.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")

    edit("reading/figures/style.py", '"""', '"""In other words: ')
    edit("tensors/divergence.py", '"""', '"""In other words: ')
    assert planned(project, *targets) == []
    edit("reading/figures/style.py", "\n\n\ndef ", "\n\nEDITED = True\n\n\ndef ")
    assert planned(project, *targets) == ["c"]
    edit("pruners/random.py", "\n\n\n@dataclass", "\n\nEDITED = True\n\n\n@dataclass")
    assert planned(project, *targets) == ["c", "pruning"]
    edit("tensors/divergence.py", "\n\n\ndef ", "\n\nEDITED = True\n\n\ndef ")
    assert planned(project, *targets) == ["c", "probing", "pruning"]


def test_an_unexpected_result_stops_the_build(project):
    (project / "data/expected/c.json").write_text('{"x": {"value": 3, "absolute": 0.5}}', encoding="utf-8")
    answer = snakemake(project, "results/expected.tsv")
    assert answer.returncode != 0
    assert "c\tx\t3\t1\t0.5\tFalse" in answer.stdout + answer.stderr


def test_a_failing_notebook_fails_the_build_and_stays_for_inspection(project):
    path = project / "notebooks/c.ipynb"
    path.write_text(
        path.read_text(encoding="utf-8").replace("import json", "1 / 0; import json"), encoding="utf-8"
    )
    answer = snakemake(project, "results/c.json")
    assert answer.returncode != 0
    assert "ZeroDivisionError" in answer.stdout + answer.stderr
    assert (project / "results/logs/c.ipynb").is_file()
    assert not (project / "results/executed/c.ipynb").exists()


@pytest.mark.parametrize(
    ("minor", "works", "environment"),
    [(10, False, "env"), (11, True, "env"), (13, True, "my env"), (14, True, "a b/c d")],
)
def test_make_says_in_one_line_which_python_it_needs(tmp_path, minor, works, environment):
    """Stand in for the environment's interpreter, which claims a version and does nothing else."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "photographs-parts.txt"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / environment / "bin").mkdir(parents=True)
    stand_in = tmp_path / environment / "bin/python"
    stand_in.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        f'*version_info*) exec {sys.executable} -c "$(printf %s "$2" | sed \'s/sys.version_info/(3, {minor})/\')" ;;\n'
        "esac\n",
        encoding="utf-8",
    )
    stand_in.chmod(0o755)
    command = ["make", "-C", str(tmp_path), "install", f"RCB_VENV={environment}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (answer.returncode == 0) is works, answer.stdout + answer.stderr
    assert ("Python 3.11 or newer needed" in answer.stderr) is not works
    assert ("constraints.txt is for Python 3.11 to 3.13" in answer.stdout) is (minor == 14)
    assert (tmp_path / environment / ".rcblib-installed").exists() is works
    if works:
        again = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "pip install" not in again.stdout
