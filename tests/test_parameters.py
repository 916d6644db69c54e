"""Parameters that pydantic checks: types, ranges, names, and errors of one line."""

import copy
import dataclasses
import math
import pickle
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Ge, Le
from messages import one_line
from pydantic import Strict

from rcblib.records import ParameterError
from rcblib.runs.files import config_hash
from rcblib.runs.parameters import AtLeast, Count, Positive, Retained, Seed, Share, checked, notebook_config

Ratio = Annotated[float, Ge(0), Le(1)]


@checked
class Parameters:
    model: str
    n_images: Annotated[int, Ge(1), Le(5000)] = 24
    max_divergence: Positive = 0.002
    retain_ratio: Ratio = 0.5
    budgets: Annotated[tuple[Ratio, ...], Strict(False)] = (0.1, 0.2)
    form: Literal["released", "textbook"] = "released"
    rule: Literal["max_cosine", "double_softmax"] = "max_cosine"
    photos: str | None = None
    quick: bool = False
    extra: Any = None


def test_defaults_and_conversions():
    config = Parameters(model="scenes", max_divergence=1, budgets=[1, 0.5])
    assert config == Parameters("scenes", max_divergence=1.0, budgets=(1.0, 0.5))
    assert type(config.max_divergence) is float and type(config.budgets) is tuple
    assert type(config.budgets[0]) is float
    assert type(Parameters("scenes", retain_ratio=np.float64(0.5)).retain_ratio) is float


def test_it_is_a_frozen_dataclass():
    config = Parameters("scenes", 5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_images = 3
    assert dataclasses.replace(config, quick=True) == Parameters("scenes", 5, quick=True)
    with pytest.raises(ParameterError, match="^n_images: got 0"):
        dataclasses.replace(config, n_images=0)
    assert vars(config) == dataclasses.asdict(config)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert config_hash(config) == config_hash(dataclasses.asdict(config))


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("model", None, "text"),
        ("model", 3, "text"),
        ("n_images", 0, "an integer, >= 1, <= 5000"),
        ("n_images", 5001, "an integer, >= 1, <= 5000"),
        ("n_images", 2.0, "an integer, >= 1, <= 5000"),
        ("n_images", True, "an integer, >= 1, <= 5000"),
        ("n_images", "24", "an integer, >= 1, <= 5000"),
        ("max_divergence", 0, "a finite number (in YAML write 0.002: 2e-3 is read as text), > 0"),
        ("max_divergence", True, "a finite number (in YAML write 0.002: 2e-3 is read as text), > 0"),
        ("max_divergence", "2e-3", "a finite number (in YAML write 0.002: 2e-3 is read as text), > 0"),
        ("max_divergence", math.nan, "a finite number (in YAML write 0.002: 2e-3 is read as text), > 0"),
        ("max_divergence", math.inf, "a finite number (in YAML write 0.002: 2e-3 is read as text), > 0"),
        ("retain_ratio", 1.01, "a finite number (in YAML write 0.002: 2e-3 is read as text), >= 0, <= 1"),
        *[
            ("budgets", value, "a list of (a finite number (in YAML write 0.002: 2e-3 is read as text), >= 0, <= 1)")
            for value in (0.1, [0.1, 1.1], [0.1, "a"], [True])
        ],
        ("form", "Released", "one of 'released', 'textbook'"),
        ("rule", "cosine", "one of 'max_cosine', 'double_softmax'"),
        ("photos", 3, "text or None"),
        ("quick", 1, "true or false"),
    ],
)  # fmt: skip
def test_values_that_are_not_accepted(name, value, accepted):
    with pytest.raises(ParameterError) as error:
        Parameters(**{"model": "scenes", name: value})
    assert one_line(error) == f"{name}: got {value!r}; accepted: {accepted}"


def test_missing_and_unknown_names():
    with pytest.raises(ParameterError, match="^model: got None; accepted: text$"):
        Parameters()
    with pytest.raises(ParameterError) as error:
        Parameters(model="scenes", n_imags=5)
    assert one_line(error).startswith("n_imags: got 5; accepted: no parameter of this name; known: budgets, ")
    assert str(error.value).endswith("(did you mean n_images?)")
    with pytest.raises(ParameterError) as error:
        Parameters(model="scenes", zzz=5)
    assert "did you mean" not in one_line(error)
    for positional, named in ((range(11), {}), (["scenes"], {"model": "scenes"})):
        with pytest.raises(TypeError, match="^Parameters: too many arguments for model, "):
            Parameters(*positional, **named)


def test_several_fields_are_checked_together():
    @checked
    class Range:
        low: float = 0.0
        high: float = 1.0

        def __post_init__(self):
            if self.low > self.high:
                raise ParameterError("low, high", (self.low, self.high), "low <= high")

    assert type(Range(1).low) is float
    with pytest.raises(ParameterError, match=r"^low, high: got \(2.0, 1.0\); accepted: low <= high$"):
        Range(2)
    with pytest.raises(ParameterError, match="^low: got 'a'"):
        Range("a")


@pytest.mark.parametrize(
    ("hint", "fits", "does_not"),
    [
        (Count, [1, 9], [0, True]),
        (AtLeast[2], [2], [1]),
        (Seed, [0, 2**32 - 1], [-1, 1.5, True, 2**32]),
        (Share, [0.001, 1], [0, 1.01]),
        (Retained, [0.99], [0, 1]),
    ],
)
def test_short_types(hint, fits, does_not):
    read = checked(type("Read", (), {"__annotations__": {"value": hint}}))
    assert [read(value).value for value in fits] == fits
    for value in does_not:
        with pytest.raises(ParameterError, match="^value: got"):
            read(value)


def notebook_namespace(**injected):
    """What ``globals()`` of a notebook holds after its parameters and imports."""
    namespace = {"__name__": "__main__"}
    exec(
        'model: str = "scenes"\nn_images: AtLeast[2] = 3\nbudgets: list[Share] = [0.1]',
        {"AtLeast": AtLeast, "Share": Share},
        namespace,
    )
    ipython = {"_ih": [""], "_oh": {}, "_dh": [], "_": "", "_i1": "x = 1", "In": ["", "x = 1"], "Out": {}}
    shell = {"get_ipython": lambda: None, "exit": object(), "quit": object(), "open": open}
    imported = {"np": np, "Path": Path, "Parameters": Parameters, "ROOT": "folder", "checked": checked}
    return namespace | ipython | shell | imported | injected


def test_a_notebooks_annotated_variables_are_its_parameters():
    config = notebook_config(notebook_namespace())
    assert vars(config) == {"model": "scenes", "n_images": 3, "budgets": [0.1]}
    assert dataclasses.replace(config, model="other").model == "other"
    # What papermill injects comes after the declarations.
    assert notebook_config(notebook_namespace(n_images=7, budgets=[1])).budgets == [1.0]
    for name, value, accepted in (
        ("n_images", 1, "an integer, >= 2"),
        ("n_images", "7", "an integer, >= 2"),
        ("model", None, "text"),
        ("budgets", [0], "a list of "),
    ):
        with pytest.raises(ParameterError) as error:
            notebook_config(notebook_namespace(**{name: value}))
        assert one_line(error).startswith(f"{name}: got {value!r}; accepted: {accepted}")


@pytest.mark.parametrize("value", [5, "five", 0.5, True, None, [1], {"a": 1}])
def test_notebook_rejects_an_injected_misspelling(value):
    with pytest.raises(ParameterError) as error:
        notebook_config(notebook_namespace(n_image=value))
    assert one_line(error).startswith(f"n_image: got {value!r}") and "did you mean n_images?" in str(
        error.value
    )


def test_notebook_rejects_parameters_in_capitals():
    with pytest.raises(ParameterError, match="did you mean n_images"):
        notebook_config(notebook_namespace(N_IMAGES=3))
    notebook_config(notebook_namespace(COLAB=False))


def test_cells_may_be_run_again_when_later_ones_have_left_values():
    namespace = notebook_namespace()
    notebook_config(namespace)
    namespace |= {"n_simulated": 12, "n_images": 5}
    assert notebook_config(namespace).n_images == 5
    with pytest.raises(ParameterError, match="^n_simulated: got 12; accepted: no parameter of this name"):
        notebook_config(notebook_namespace(n_simulated=12))


def test_a_notebook_without_declarations():
    with pytest.raises(ParameterError, match="^parameters: got None; accepted: name: type = literal"):
        notebook_config({"n_images": 3})
