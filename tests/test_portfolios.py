"""The short lists that defaults are chosen among: they fit the kernels, and cost little on layers not made from.

After a change of a space or of the model: `make portfolios`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pytest
from tilesmith import autotune
from tilesmith.autotune import portfolio, space
from tilesmith.autotune.portfolio import PATH

from benchmarks import portfolios
from benchmarks.standard import LAYERS, UNTIMED


@pytest.fixture(scope="module")
def posed() -> portfolios.Problems:
    return portfolios.problems_of((*LAYERS[::3], *UNTIMED), ["sm_90"])


def test_every_configuration_is_in_its_space(posed: portfolios.Problems) -> None:
    written = json.loads(PATH.read_text(encoding="utf-8"))["kernels"]
    assert len(posed) > 40
    for name, (tunable, problems) in posed.items():
        assert tunable.key is not None
        assert written[name]["parameters"] == list(tunable.space), name
        for rows in written[name]["kinds"].values():
            assert 0 < len(rows) <= portfolios.LONGEST
            for row, centre in rows:
                assert all(v in values for v, values in zip(row, tunable.space.values(), strict=True)), (name, row)
                assert len(centre) == len(tunable.key(next(iter(problems))).sizes)


def test_a_default_asks_the_model_about_a_few_configurations(posed: portfolios.Problems) -> None:
    asked = 0
    for tunable, problems in posed.values():
        for problem in problems:
            counting = replace(tunable, cost=partial(_counted, tunable))
            _COUNT.clear()
            space.fastest(counting, problem, problem.device)
            assert 0 < len(_COUNT) <= portfolio.ASKED, (tunable.name, problem)
            asked += 1
    assert asked > 500


_COUNT: list[Any] = []


def _counted(tunable: autotune.Tunable, config: Any, problem: Any) -> Any:
    _COUNT.append(config)
    assert tunable.cost is not None
    return tunable.cost(config, problem)


def test_other_layers_lose_little_by_the_model() -> None:
    others = islice(portfolios.layers(seed=2, variations=1), 0, None, 4)
    losses = portfolios.checked(portfolios.problems_of(others, ["sm_90"]))
    together = portfolios.together(losses.values())
    assert together.problems > 400
    assert together.unserved <= together.problems * 0.01
    assert together.mean < 1.03
    assert together.worst < 3


def test_a_kind_without_a_list_asks_about_the_whole_space(monkeypatch: pytest.MonkeyPatch) -> None:
    tunable, problems = portfolios.problems_of(LAYERS[4:5], ["sm_90"])["triton.conv2d.forward"]
    problem = next(iter(problems))
    monkeypatch.setattr(space, "portfolio", lambda *_: [])
    assert space.fastest(tunable, problem, problem.device) == space.fastest_of_all(tunable, problem, problem.device)


def test_of_a_list_only_what_can_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    tunable, problems = portfolios.problems_of(LAYERS[4:5], ["sm_90"])["triton.conv2d.forward"]
    problem = next(iter(problems))
    by_time = sorted(tunable.every_config(), key=lambda c: tunable.predicted(c, problem) or 0.0)
    refused = next(c for c in by_time if tunable.refusal(c, problem) is not None)
    valid = [c for c in by_time if tunable.refusal(c, problem) is None][-1]
    assert (tunable.predicted(refused, problem) or 0.0) < (tunable.predicted(valid, problem) or 0.0)
    monkeypatch.setattr(space, "portfolio", lambda *_: [refused, valid])
    assert space.fastest(tunable, problem, problem.device) == valid


def test_what_no_longer_fits_a_space_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tunable, problems = portfolios.problems_of(LAYERS[4:5], ["sm_90"])["triton.conv2d.forward"]
    problem = next(iter(problems))
    assert list(portfolio.portfolio(tunable, problem))
    values = {name: values[:1] for name, values in tunable.space.items()}
    smaller = replace(tunable, space=values)
    assert all(all(v in values[n] for n, v in c.items()) for c in portfolio.portfolio(smaller, problem))
    renamed = replace(tunable, space={f"{name}_NEW": values for name, values in tunable.space.items()})
    assert not list(portfolio.portfolio(renamed, problem))


def test_a_problem_that_nothing_can_run_is_said() -> None:
    tunable, problems = portfolios.problems_of(LAYERS[4:5], ["sm_90"])["triton.conv2d.forward"]
    problem = next(iter(problems))
    full = replace(tunable, refusal=lambda *_: "no room")
    with pytest.raises(ValueError, match=r"triton\.conv2d\.forward: no configuration can run"):
        space.fastest(full, problem, problem.device)
