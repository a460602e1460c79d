"""The commands: plan, record, tune, explain, coverage, verify, diff, merge, compact, export, clear."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tilesmith import autotune, nn
from tilesmith.autotune import lookup
from tilesmith.autotune.lookup import Tables, latest_choices
from tilesmith.autotune.rows import text_of
from tilesmith.autotune.store import Store
from tilesmith.cli import make_app
from typer.testing import CliRunner, Result

from .tuning import Size, choice, every_time, in_directory, using

LAYER = '{"layer": "Softmax(1)", "input": [64, 2000]}\n'
NAME = "numpy.softmax.forward"


def network() -> Any:
    """What --model names."""
    return torch.nn.Sequential(torch.nn.Flatten(), nn.LogSoftmax(1)), torch.randn(64, 2000)


def no_network() -> Any:
    return torch.nn.Linear(2, 2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path) -> Iterator[Tables]:
    with using(in_directory(tmp_path / "cache")) as tables:
        yield tables
        tables.cache.close()


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(make_app(), [str(a) for a in arguments])
    assert result.exit_code == code, result.output + str(result.exception)
    return result


def told(*arguments: str | Path, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).stdout)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    path = tmp_path / "shapes.jsonl"
    path.write_text(LAYER)
    return path


def test_the_way_from_a_plan_to_an_explanation(shapes: Path, cache: Tables, tmp_path: Path) -> None:
    """plan, tune, tune again, explain, coverage, verify, export, diff, merge, compact, clear."""
    plans = told("plan", "--shapes", shapes)["plans"]
    assert [p["tunable"] for p in plans] == ["numpy.softmax.backward", NAME] or {p["tunable"] for p in plans} == {
        "numpy.softmax.backward",
        NAME,
    }
    assert all(p["shortlist"] and p["valid"] >= len(p["shortlist"]) for p in plans)

    first = told("tune", "--shapes", shapes, "--no-isolate")
    assert {k["how"] for k in first["keys"]} == {"tuned"}
    assert all(k["tried"] > 1 and not k["reasons"] for k in first["keys"])
    again = told("tune", "--shapes", shapes, "--no-isolate")
    assert {k["how"] for k in again["keys"]} == {"known"}
    assert [k["config"] for k in again["keys"]] == [k["config"] for k in first["keys"]]
    text = run("tune", "--shapes", shapes, "--no-isolate").output
    assert "2 known of 2 keys" in text

    found = {one["kernel"]: one for one in told("explain", "Softmax(1)", "--input", "64,2000")}
    config = {k["tunable"]: k["config"] for k in first["keys"]}[NAME]
    assert (found[NAME]["rung"], found[NAME]["configuration"], found[NAME]["doublings"]) == ("cache", config, 0.0)
    assert found[NAME]["measured_us"] > 0
    assert found[NAME]["predicted_us"] > 0
    assert found[NAME]["written_by"]["numpy"]
    near = {one["kernel"]: one for one in told("explain", "Softmax(1)", "--input", "64x2500")}
    assert near[NAME]["rung"] == "nearest"
    assert 0 < near[NAME]["doublings"] < 1
    assert "rung           cache" in run("explain", "Softmax(1)", "--input", "64,2000").output

    covered = told("coverage", "--shapes", shapes)
    assert covered["rungs"] == {"cache": 2}
    assert covered["regret"]["model"]["keys"] == 2
    assert covered["regret"]["model"]["typical"] >= 0
    assert "typical regret" in run("coverage").output

    verified = told("verify", "--share", "1", "--no-isolate", "--most-drift", "100")
    assert {one["verdict"] for one in verified} == {"ok"}
    assert len(verified) == 2

    table = tmp_path / "shipped" / "table.jsonl"
    assert "2 choices written" in run("export", table).output
    with using(Tables(Store(tmp_path / "empty"), [Store(table, writable=False)])):
        (shipped,) = [
            o for o in told("explain", "Softmax(1)", "--input", "64,2000", "--inference") if o["kernel"] == NAME
        ]
        assert (shipped["rung"], shipped["configuration"]) == ("table", config)

    assert told("diff", table, table) == []
    assert run("merge", table, "--into", tmp_path / "merged").output.startswith("2 rows added")
    assert run("merge", table, "--into", tmp_path / "merged").output.startswith("0 rows added")
    run("compact")
    before = len(cache.cache.rows())
    run("clear", code=1)
    assert len(cache.cache.rows()) == before
    run("clear", "--yes")
    assert not cache.cache.rows()


def test_a_model_is_recorded_forward_and_backward() -> None:
    keys = told("tune", "--model", "tests.test_autotune_commands:network", "--no-isolate")["keys"]
    assert {k["tunable"] for k in keys} == {NAME}  # nothing in it needs a gradient
    with_gradient = told("plan", "--model", "tests.test_autotune_commands:network", "--inference")["plans"]
    assert [p["tunable"] for p in with_gradient] == [NAME]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("tune",), 1, "say what to tune for"),
        (("tune", "--standard", "--budget", "soon"), 2, "90s, 10m or 2h"),
        (("tune", "--model", "tests.test_autotune_commands"), 1, "MODULE:CALLABLE"),
        (("tune", "--model", "tests.test_autotune_commands:nothing"), 1, "no 'nothing'"),
        (("tune", "--model", "tests.test_autotune_commands:no_network"), 1, "must return (model, example"),
        (("tune", "--model", "no_such_module:x"), 1, "no_such_module"),
        (("tune", "--recorded"), 1, "no call of a kernel"),
        (("tune", "--standard", "--gpus", "0,1", "--no-isolate"), 2, "a process for each"),
        (("plan", "--standard", "--arch", "sm_12"), 2, "sm_90"),
        (("tune", "--standard", "--arch", "sm_12"), 2, "sm_90"),
        (("explain", "Softmax(1)", "--input", "a,b"), 2, "whole numbers"),
        (("explain", "Softmax(", "--input", "2,3"), 1, "must look like"),
        (("explain", "Softmax(open('x'))", "--input", "2,3"), 1, "must look like"),
        (("explain", "Nothing(1)", "--input", "2,3"), 1, "no layer 'Nothing'"),
        (("explain", "Conv2d(3, 4)", "--input", "2,3,4,4"), 1, "Conv2d(3, 4)"),
        (("explain", "Softmax(1)", "--input", "2,3"), 1, "asks for no configuration"),
        (("explain", "Softmax(1)", "--input", "2,3", "--dtype", "int4"), 1, "int4"),
        (("explain", "Softmax(1)", "--input", "2,3", "--layout", "rows"), 1, "rows"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: tuple[str, ...], code: int, words: str) -> None:
    result = run(*arguments, code=code)
    assert " ".join(words.split()) in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    "line", ["{", '{"layer": "ReLU()"}', '{"layer": "ReLU()", "input": [2], "colour": 1}', '{"call": {}}']
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "shapes.jsonl"
    path.write_text(LAYER + line + "\n")
    assert "line 2" in run("tune", "--shapes", path, code=1).output


def test_recording_a_script(tmp_path: Path, cache: Tables) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, torch\nfrom tilesmith.nn import functional\n"
        "for _ in range(int(sys.argv[1])):\n    functional.softmax(torch.randn(64, 2000), 1)\n"
    )
    assert "1 different calls of 3" in run("record", script, "3").output
    (row,) = [r for r in cache.cache.rows() if r["kind"] == "call"]
    assert row["count"] == 3
    (key,) = told("tune", "--recorded", "--no-isolate")["keys"]
    assert (key["tunable"], key["calls"], key["how"]) == (NAME, 3, "tuned")
    run("record", "--output", tmp_path / "calls.jsonl", script, "2")
    assert [p["tunable"] for p in told("plan", "--shapes", tmp_path / "calls.jsonl")["plans"]] == [NAME]


def test_tuning_in_a_worker_process(shapes: Path) -> None:
    keys = told("tune", "--shapes", shapes, "--inference")["keys"]
    assert [(k["tunable"], k["how"]) for k in keys] == [(NAME, "tuned")]


def test_a_replayed_cache_is_a_device(shapes: Path, cache: Tables, tmp_path: Path) -> None:
    told("tune", "--shapes", shapes, "--no-isolate", "--inference")
    (made,) = latest_choices(cache.cache.rows())
    with using(in_directory(tmp_path / "replayed")) as tables:
        (key,) = told("tune", "--shapes", shapes, "--inference", "--replay", str(cache.cache.directory))["keys"]
        assert key["how"] == "tuned"
        assert {r["protocol"] for r in tables.cache.rows() if r["kind"] == "time"} == {"replayed"}
        assert key["time_us"] <= 1.05 * made["default_us"]


def test_planning_for_a_gpu_that_is_not_here(tmp_path: Path, cache: Tables) -> None:
    path = tmp_path / "layers.jsonl"
    path.write_text(
        '{"layer": "Conv2d(16, 32, 3, padding=1)", "input": [2, 16, 12, 12], "dtype": "float16", "training": false}'
    )
    arguments = ("plan", "--shapes", path, "--arch", "sm_90", "--backend", "triton", "--most", "2", "--jobs", "2")
    (plan,) = told(*arguments)["plans"]
    assert plan["tunable"].startswith("triton.conv2d.")
    assert plan["valid"] > 2
    assert plan["pruned"]
    assert len(plan["shortlist"]) + len(plan["refused"]) == 2
    rows = [r for r in cache.cache.rows() if r["kind"] == "plan"]
    assert all(r["resources"]["registers"] > 16 for r in rows if r["status"] == "ok")
    assert "H200" in text_of(rows[0]["key"]["exact"])
    (one,) = told("explain", "Conv2d(16, 32, 3, padding=1)", "--input", "2,16,12,12", "--dtype", "float16",
                  "--inference", "--arch", "sm_90", "--backend", "triton")  # fmt: skip
    assert (one["kernel"], one["rung"]) == (plan["tunable"], "default")


def test_a_difference_says_what_it_gains(tmp_path: Path) -> None:
    size = Size(512)
    slow, fast = {"BLOCK": 16, "WARPS": 1}, {"BLOCK": 64, "WARPS": 4}
    for name, config in (("old", slow), ("new", fast)):
        store = Store(tmp_path / name)
        for row in every_time(size):
            store.append(row)
        store.append(choice(size, config, time_us=512.0 if config == fast else 1000.0))
        store.append(choice(Size(64 if config == fast else 4096), slow))
        store.close()
    found = told("diff", tmp_path / "old", tmp_path / "new")
    changed = {(c["before"] is None, c["after"] is None): c for c in found}
    assert changed.keys() == {(False, False), (True, False), (False, True)}
    both = changed[False, False]
    assert (both["before"], both["after"]) == (slow, fast)
    assert both["gain"] > 1.5
    assert "3 keys differ" in run("diff", tmp_path / "old", tmp_path / "new").output


def test_regrets(tmp_path: Path) -> None:
    """On rows whose model is right the model has none, the default some; neighbours are worth more than nothing."""
    with using(in_directory(tmp_path / "made")) as tables:
        best = {"BLOCK": 64, "WARPS": 4}
        for rows in (256, 512, 1024):
            for row in every_time(Size(rows)):
                tables.cache.append(row)
            tables.cache.append(choice(Size(rows), {**best, "BLOCK": rows // 8}, default_us=30.0, time_us=10.0))
        told_ = told("coverage")
        assert told_["regret"]["model"] == {"keys": 3, "typical": 0.0, "worst": 0.0}
        nearest = next(v for k, v in told_["regret"].items() if k.startswith("nearest"))
        assert nearest["keys"] == 3
        assert nearest["worst"] == pytest.approx(0.2)
        assert told_["regret"]["default instead of the choice"]["typical"] == pytest.approx(2.0)
        assert told_["model_error"] == pytest.approx(1.0)
        assert lookup.tables() is tables
        assert autotune.digest() == tables.digest()


def test_a_table_that_nobody_watches_is_whole(shapes: Path) -> None:
    text = run("tune", "--shapes", shapes, "--no-isolate").output
    assert NAME in text
    assert "length=2000" in text


def test_ranks_of_torchrun_share_a_tune(tmp_path: Path) -> None:
    """Started as users do, with a cache of their own each: both end with every key, and were each asked for a part."""
    layers = ['{"layer": "Softmax(1)", "input": [64, 2000]}', '{"layer": "LogSoftmax(1)", "input": [96, 3000]}']
    (tmp_path / "shapes.jsonl").write_text("\n".join(layers) + "\n")
    (tmp_path / "rank.py").write_text(
        "import os, sys\n"
        "os.environ['TILESMITH_CACHE'] += os.environ['RANK']\n"
        "from tilesmith.cli import main\n"
        f"sys.stdout = open({str(tmp_path / 'told-')!r} + os.environ['RANK'], 'w')\n"
        f"sys.argv = ['tilesmith', 'tune', '--shapes', {str(tmp_path / 'shapes.jsonl')!r}, '--no-isolate', '--json']\n"
        "main()\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "TILESMITH_CACHE": str(tmp_path / "of-"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(tmp_path / "rank.py")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [len(json.loads((tmp_path / f"told-{rank}").read_text())["keys"]) for rank in (0, 1)] == [2, 2]
    caches = [latest_choices(Store(tmp_path / f"of-{rank}", writable=False).rows()) for rank in (0, 1)]
    assert [len(rows) for rows in caches] == [4, 4]
    assert {text_of(row) for row in caches[0]} == {text_of(row) for row in caches[1]}


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "tilesmith.cli", "tune", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--budget" in done.stdout
