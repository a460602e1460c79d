"""Tuning: planted wrong kernels, killed tunes, resuming, modes that tune, recording, ranks."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from tilesmith import autotune, kernels, nn
from tilesmith.autotune.bench import Bench
from tilesmith.autotune.calls import Call, Recording
from tilesmith.autotune.lookup import Tables, latest_choices
from tilesmith.autotune.planning import plan_job
from tilesmith.autotune.resolve import look_up
from tilesmith.autotune.rows import Row, filed_of, text_of
from tilesmith.autotune.runner import InProcess, Isolated, Replay, Result
from tilesmith.autotune.store import Store
from tilesmith.autotune.tuner import Summary, geometric_gain, jobs_of, tune_jobs
from tilesmith.kernels import _precision
from tilesmith.nn import functional

from .planted._numpy import RIGHT, TUNABLE, WRONG, Doubling
from .tuning import PRETENDED, Size, every_time, in_directory, in_memory, job, planted_call, seconds_of, using

SIZES = [Size(rows, columns) for rows in (64, 200, 512, 1500) for columns in (32, 256)]
REASONS = {
    "half": ("incorrect", "500 of 1000 elements were not written"),
    "off": ("incorrect", "error 0.01"),
    "before": ("outside", "memory beside an output (1000) was written to"),
    "outside": ("incorrect", "1 of 1000 elements were not written"),
    "beyond": ("outside", "memory beside an output (1000) was written to"),
    "input": ("outside", "input 0 (1000) was written to"),
    "dice": ("nondeterministic", "two runs differ"),
    "hang": ("timeout", "no answer within 3"),
    "crash": ("crash", "exit code -6"),
    "raise": ("runtime", "RuntimeError: an illegal memory access was encountered"),
    "uncompilable": ("compile", "CompilationError: at 12:8: invalid operand"),
}


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[Tables]:
    with using(in_memory()) as tables:
        yield tables


def choices(tables: Tables) -> dict[Any, autotune.Config]:
    return {filed_of(row): row["config"] for row in latest_choices(tables.cache.rows())}


# ---- what is wrong is never chosen


def test_planted_wrong_kernels_are_reported_each_with_its_reason_and_never_chosen(tmp_path: Path) -> None:
    """Measured in a worker process: what hangs or crashes costs one row."""
    with using(in_directory(tmp_path)) as tables:
        calls = [planted_call(1000, RIGHT + WRONG[:6]), planted_call(4000, RIGHT + WRONG[6:])]
        summaries = tune_jobs(jobs_of(calls), Isolated(seconds=3), tables)
        assert [(s.how, s.config) for s in summaries] == [("tuned", {"WAY": "quick"})] * 2
        assert all(s.gain > 1.5 for s in summaries)
        told = {json.loads(text)["WAY"]: why for s in summaries for text, why in s.reasons.items()}
        assert told.keys() == REASONS.keys() == set(WRONG)
        for way, (status, why) in REASONS.items():
            assert told[way].startswith(f"{status}: "), told[way]
            assert why in told[way].replace("4000", "1000")
        assert autotune.resolve(TUNABLE, Doubling(1000)) == {"WAY": "quick"}
        rows = {row["config"]["WAY"]: row for row in Store(tmp_path).rows() if row["kind"] == "time"}
        assert {way: rows[way]["status"] for way in REASONS} == {way: status for way, (status, _) in REASONS.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("way", [w for w in REASONS if w not in ("hang", "crash")])
def test_a_verdict_of_each(way: str, dtype: str) -> None:
    """Of half types too, which NumPy computes in arrays of its own."""
    bench = Bench(planted_call(dtype=dtype))
    verdict = bench.verdict(TUNABLE.name, {"WAY": way}, {"WAY": "plain"})
    assert (verdict.status, REASONS[way][1] in verdict.reason) == (REASONS[way][0], True), verdict
    for right in RIGHT:
        assert bench.verdict(TUNABLE.name, {"WAY": right}, {"WAY": "plain"}).status == "ok"


def test_a_wrong_default_is_said() -> None:
    verdict = Bench(planted_call()).verdict(TUNABLE.name, {"WAY": "quick"}, {"WAY": "half"})
    assert verdict.status == "runtime"
    assert "the default configuration is wrong" in verdict.reason


@pytest.mark.parametrize("default", ["uncompilable", "crash"])
def test_a_default_that_does_not_run_is_nobodys_measure(default: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are compared with NumPy alone, and one of them is chosen."""
    call = planted_call(ways=(*RIGHT, default))
    (one,) = jobs_of([call])
    broken = replace(TUNABLE, default=lambda _: {"WAY": default})
    one = replace(one, tunable=broken, default={"WAY": default})
    with using(in_memory()) as tables:
        (summary,) = tune_jobs([one], Isolated(seconds=20), tables)
        assert (summary.how, summary.config) == ("tuned", {"WAY": "quick"})
        assert sum(summary.failed.values()) == 1
        assert "default_us" not in latest_choices(tables.cache.rows())[0]


def test_finalists_that_fail_together_are_timed_alone() -> None:
    size = SIZES[4]

    class Spoilt(Replay):
        def measure(self, job: Any, configs: Any, rung: str, *more: Any) -> list[Result]:
            if rung == "final":
                return [Result("crash", "one of them did")] * len(configs)
            return super().measure(job, configs, rung, *more)

    (summary,) = tune_jobs([job(size)], Spoilt(every_time(size)))
    assert summary.how == "tuned"
    assert math.isfinite(summary.time_s)

    class Broken(Replay):
        def measure(self, job: Any, configs: Any, rung: str, *more: Any) -> list[Result]:
            if rung != "first":
                return [Result("crash", "always")] * len(configs)
            return super().measure(job, configs, rung, *more)

    with using(in_memory()) as tables:
        (summary,) = tune_jobs([job(size)], Broken(every_time(size)), tables)
        assert summary.how == "failed"
        assert not choices(tables), "a choice without a time would be a damaged row"


def test_candidates_are_tried_in_this_thread_only() -> None:
    """Another thread's look-ups must not get what is being tried: it may be wrong."""
    (one,) = jobs_of([planted_call(ways=RIGHT)])
    seen = set()
    done = threading.Event()

    def other() -> None:
        while not done.is_set():
            seen.add(autotune.resolve(TUNABLE, one.problem)["WAY"])

    thread = threading.Thread(target=other)
    thread.start()
    try:
        tune_jobs([one], InProcess(), in_memory())
    finally:
        done.set()
        thread.join()
    assert seen == {"plain"}


def test_a_worker_computes_as_its_parent_does() -> None:
    """With as many threads as the key says, and the same precision of float32."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        told = _precision.settings()
        torch.set_num_threads(2)
        kernels.set_float32_precision("tf32x3")
        _precision.use_settings(told)
        assert torch.get_num_threads() == 1
        assert _precision.settings() == told
    finally:
        torch.set_num_threads(before)
        kernels.set_float32_precision(None)


def test_a_worker_that_died_while_idle_is_replaced() -> None:
    runner = Isolated(seconds=20)
    (one,) = jobs_of([planted_call()])
    try:
        assert runner.measure(one, [{"WAY": "quick"}], "first", 3, math.inf)[0].status == "ok"
        runner._process.kill()
        runner._process.join()
        assert runner.measure(one, [{"WAY": "quick"}], "first", 3, math.inf)[0].status in ("ok", "crash")
        assert runner.measure(one, [{"WAY": "quick"}], "first", 3, math.inf)[0].status == "ok"
    finally:
        runner.close()


def test_a_worker_that_died_is_replaced() -> None:
    runner = Isolated(seconds=20)
    (one,) = jobs_of([planted_call()])
    try:
        ((crashed,), (fine,)) = (
            runner.measure(one, [{"WAY": way}], "first", 3, math.inf) for way in ("crash", "quick")
        )
    finally:
        runner.close()
    assert (crashed.status, fine.status) == ("crash", "ok")
    assert len(fine.samples) == 3
    assert fine.protocol.startswith("cpu")


def test_a_worker_in_a_kernel_that_hangs_does_not_outlive_a_killed_parent_for_long() -> None:
    """Nobody is left to end it: the parent was killed while it waited."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    parent = context.Process(target=_wait_for_a_kernel_that_hangs, args=(theirs,))
    parent.start()
    worker = ours.recv()
    time.sleep(0.5)  # it has been asked by then
    parent.kill()
    parent.join()
    assert _runs(worker), "it hangs"
    ends = time.monotonic() + 60
    while _runs(worker) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not _runs(worker)


def _wait_for_a_kernel_that_hangs(pipe: Any) -> None:
    runner = Isolated(seconds=3)
    runner._ready()
    pipe.send(runner._process.pid)
    runner.measure(jobs_of([planted_call()])[0], [{"WAY": "hang"}], "first", 3, math.inf)


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


# ---- interrupted tunes


def rows_without_times(rows: list[Row]) -> list[str]:
    return sorted(text_of({k: v for k, v in row.items() if k != "written"}) for row in rows)


def replayed(path: Path, pause_s: float = 0.0) -> list[Summary]:
    times = [row for size in SIZES for row in every_time(size)]
    return tune_jobs([job(size) for size in SIZES], Replay(times, noise=0.03, pause_s=pause_s), in_directory(path))


def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    """Each time it goes on, no row is made twice, and what it comes to is what an undisturbed tune comes to."""
    undisturbed = tmp_path / "undisturbed"
    summaries = replayed(undisturbed)
    assert {s.how for s in summaries} == {"tuned"}
    expected = Store(undisturbed).rows()
    disturbed = tmp_path / "disturbed"
    dice = random.Random(3)

    def written() -> int:
        return sum(path.read_bytes().count(b"\n") for path in disturbed.glob("*.jsonl"))

    killed = 0
    for _ in range(20):
        enough = written() + dice.randint(0, 8)
        child = os.fork()
        if child == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                replayed(disturbed, pause_s=0.01)
            os._exit(0)
        while written() < enough:
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                pytest.fail("it ended by itself: the tune is too short")
            time.sleep(0.001)
        time.sleep(dice.uniform(0.0, 0.012))  # a measurement takes 10 ms
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    assert killed >= 15, "the tune was too short to be killed"
    last = replayed(disturbed)
    assert [s.config for s in last] == [s.config for s in summaries]
    rows = Store(disturbed).rows()
    assert sum(s.tried for s in last) < sum(s.tried for s in summaries), "it went on, it did not begin again"
    made = Counter((filed_of(r), text_of(r["config"]), r["rung"]) for r in rows if r["kind"] == "time")
    assert set(made.values()) == {1}
    assert rows_without_times(rows) == rows_without_times(expected)


def test_a_second_tune_measures_nothing() -> None:
    with using(in_memory()) as tables:
        runner = Replay(every_time(SIZES[0]))
        (first,) = tune_jobs([job(SIZES[0])], runner, tables)
        count = runner.measurements
        (second,) = tune_jobs([job(SIZES[0])], runner, tables)
        assert (first.how, second.how, runner.measurements) == ("tuned", "known", count)
        assert second.config == first.config
        assert second.gain == pytest.approx(first.gain, rel=1e-3)
        (third,) = tune_jobs([job(SIZES[0])], runner, tables, force=True)
        assert (third.how, third.reused, runner.measurements) == ("tuned", 0, 2 * count)
        assert [row["generation"] for row in tables.cache.rows() if row["kind"] == "choice"] == [1, 2]


def test_without_resume_earlier_measurements_do_not_count() -> None:
    with using(in_memory()) as tables:
        tune_jobs([job(SIZES[0])], Replay(every_time(SIZES[0])), tables)
        kept = [row for row in tables.cache.rows() if row["kind"] == "time"]
    for resume in (True, False):
        with using(in_memory(*kept)) as tables:
            (summary,) = tune_jobs([job(SIZES[0])], Replay(every_time(SIZES[0])), tables, resume=resume)
            assert (summary.tried == 0) == resume
            assert (summary.reused > 0) == resume


def test_stale_measurements_do_not_count() -> None:
    with using(in_memory()) as tables:
        tune_jobs([job(SIZES[0])], Replay(every_time(SIZES[0])), tables)
        kept = [row | {"source": "0" * 12} for row in tables.cache.rows()]
    with using(in_memory(*kept)) as tables:
        (summary,) = tune_jobs([job(SIZES[0])], Replay(every_time(SIZES[0])), tables)
        assert (summary.how, summary.reused) == ("tuned", 0)


def test_the_budget_ends_between_keys() -> None:
    times = [row for size in SIZES for row in every_time(size)]
    summaries = tune_jobs([job(size) for size in SIZES], Replay(times, pause_s=0.005), budget_s=0.15)
    hows = [s.how for s in summaries]
    assert hows == sorted(hows, key=["tuned", "left"].index)
    assert {"tuned", "left"} == set(hows)


def test_a_key_where_nothing_runs_has_failed() -> None:
    rows = [row | {"status": "compile", "reason": "no"} for row in every_time(SIZES[0])]
    (summary,) = tune_jobs([job(SIZES[0])], Replay(rows))
    assert (summary.how, summary.config) == ("failed", PRETENDED.default(SIZES[0]))
    assert summary.failed == {"compile": summary.tried}


def test_several_runners_share_the_keys() -> None:
    times = [row for size in SIZES for row in every_time(size)]
    runners = [Replay(times, pause_s=0.002) for _ in range(3)]
    told: list[tuple[int, int]] = []
    summaries = tune_jobs(
        [job(size) for size in SIZES], runners, progress=lambda done, total, _: told.append((done, total))
    )
    assert [s.job.problem for s in summaries] == SIZES
    assert {s.how for s in summaries} == {"tuned"}
    assert all(runner.measurements for runner in runners)
    assert told == [(i, len(SIZES)) for i in range(len(SIZES) + 1)]
    assert geometric_gain(summaries) > 1.1


def test_what_a_plan_refused_is_not_measured() -> None:
    size = SIZES[4]
    plan = plan_job(job(size))
    best = min(PRETENDED.configs(size), key=lambda c: seconds_of(c, size))
    assert dict(plan.ranked[0][0]) == dict(best)
    plan.refused[0] = "spill", "spills 64 bytes"
    with using(in_memory(*plan.rows())) as tables:
        runner = Replay(every_time(size))
        (summary,) = tune_jobs([job(size)], runner, tables)
        assert summary.config != best
        assert summary.pruned["planned: spill"] == 1
        tried = [row["config"] for row in tables.cache.rows() if row["kind"] == "time"]
        assert best not in tried


def test_a_drifting_clock_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is timed again beside each configuration: a machine that became twice as slow is not the kernel."""
    runner = InProcess(verify=False)
    (one,) = jobs_of([planted_call(ways=RIGHT)])
    speed = [1.0]

    def slower(self: Bench, name: str, config: autotune.Config, count: int, *more: Any) -> tuple[list[float], str]:
        seconds = {"plain": 2.0, "quick": 1.0, "slow": 3.0}[config["WAY"]]
        return [seconds * speed[0]] * count, "pretended"

    monkeypatch.setattr(Bench, "samples", slower)
    first: Result = runner.measure(one, [{"WAY": "quick"}], "first", 5, math.inf)[0]
    speed[0] = 2.0
    second = runner.measure(one, [{"WAY": "slow"}], "first", 5, math.inf)[0]
    assert (first.time_s, first.drift) == (1.0, 1.0)
    assert (second.time_s, second.drift) == (3.0, 2.0)


# ---- real kernels


def test_recording_takes_down_forwards_and_backwards() -> None:
    layer = nn.Conv2d(3, 8, 3)
    with autotune.record() as recording:
        for _ in range(2):
            layer(torch.randn(2, 3, 12, 12, requires_grad=True)).sum().backward()
    functional.relu(torch.randn(3))
    found = {(call.module.split(".")[-2], call.function): n for call, n in recording.counts.items()}
    assert found == {("conv2d", "forward"): 2, ("conv2d", "input_grad"): 2, ("conv2d", "weight_grad"): 2}
    with autotune.record() as inner, autotune.record() as outer:
        functional.relu(torch.randn(3))
    assert len(inner) == len(outer) == 1


def test_recorded_calls_survive_a_file(tmp_path: Path) -> None:
    model = torch.nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), torch.nn.Flatten(), nn.Linear(200, 5), nn.Softmax(1)
    )
    recording = autotune.recorded(model, torch.randn(2, 3, 12, 12))
    recording.save(tmp_path / "calls.jsonl")
    loaded = Recording.load(tmp_path / "calls.jsonl")
    assert loaded.counts == recording.counts
    assert len({hash(call) for call in loaded}) == len(loaded)
    for call in loaded:
        assert Bench(call).asks() is not None, "each can be made again"
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "row",
    [
        {"module": "os", "function": "system", "problem": "true", "inputs": [], "outputs": []},
        {"module": "tilesmith.kernels.activation._numpy", "function": "forward", "inputs": [], "outputs": [],
         "problem": {"class": "subprocess:Popen", "fields": {"args": ["true"]}}},
        {"module": "tilesmith.kernels.activation._numpy", "function": "forward", "inputs": [], "outputs": [],
         "problem": {"class": "tilesmith.kernels._compile:serve", "fields": {}}},
        {"module": "tilesmith.kernels._compile", "function": "_launches_of", "inputs": [], "outputs": [],
         "problem": {"class": "tilesmith.kernels._compile:Call",
                     "fields": {"function": "os:system", "arguments": ["true"], "target": "sm_90"}}},
        {"module": "tilesmith.cli.cache", "function": "clear", "problem": True, "inputs": [], "outputs": []},
        {"module": "tilesmith.kernels.conv2d._numpy", "function": "replace", "problem": 1, "inputs": [], "outputs": []},
        {"module": "tilesmith.kernels.conv2d._numpy", "function": "_stage", "problem": 1, "inputs": [], "outputs": []},
        {"module": "tilesmith.kernels.softmax._numpy", "function": "forward", "problem": [1, False], "outputs": [],
         "inputs": [{"shape": [2], "strides": [1], "dtype": "load"}]},
        {"function": "forward"},
    ],
)  # fmt: skip
def test_a_file_cannot_name_what_is_not_ours(row: Any) -> None:
    with pytest.raises(ValueError, match="recorded call"):
        Call.from_json(row)


def test_every_kernel_of_a_network_is_tuned_right(tmp_path: Path) -> None:
    """Each call is verified in each configuration tried: none of ours is wrong, and all find a choice."""
    model = torch.nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.MaxPool2d(3, 2, 1),
        nn.ConvPool2d(16, 24, 3),
        nn.AvgPool2d(2),
        nn.AdaptiveMaxPool2d(3),
        torch.nn.Flatten(),
        nn.Linear(24 * 9, 32, activation="sigmoid"),
        nn.LogSoftmax(1),
    )
    x = torch.randn(8, 3, 48, 48).requires_grad_()
    with using(in_directory(tmp_path)) as tables:
        summaries = autotune.tune(model, x, runner=InProcess())
        assert summaries
        assert {s.how for s in summaries} == {"tuned"}
        assert not any(s.reasons for s in summaries)
        assert len(choices(tables)) == len(summaries)
        for s in summaries:
            assert dict(autotune.resolve(s.job.tunable, s.job.problem)) == dict(s.config)
        y = model(x)
        with autotune.mode("off"):
            torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("layer", [nn.LSTM(16, 64), nn.GRU(16, 48, bidirectional=True)], ids=["LSTM", "GRU"])
def test_backwards_of_recurrent_layers_are_tuned_right(layer: Any) -> None:
    (summary,) = autotune.tune(layer, torch.randn(40, 8, 16), runner=InProcess())
    assert summary.job.tunable.name == "numpy.rnn.backward"
    assert (summary.how, summary.reasons) == ("tuned", {})
    assert summary.tried > 2


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("layer", "dtype"), [(nn.SkipGram, torch.float32), (nn.SkipGram, torch.bfloat16), (nn.CBOW, torch.float32)]
)
def test_word_vectors_are_tuned_right(layer: Any, dtype: torch.dtype, sparse: bool) -> None:
    """Both directions, on ids that are drawn anew: an embedding has no gradient of one size."""
    counts = torch.arange(400, 0, -1)
    model = layer(400, 64, counts=counts, sparse=sparse, dtype=dtype)
    words, windows = torch.randint(0, 400, (6000,)), torch.randint(0, 400, (6000, 4))
    example = (words, windows[:, 0]) if layer is nn.SkipGram else (windows, words)
    with using(in_memory()):
        summaries = autotune.tune(model, *example, runner=InProcess())
        assert {s.job.tunable.name for s in summaries} == {f"numpy.word2vec.pairs_{d}" for d in ("forward", "backward")}
        assert {s.how for s in summaries} == {"tuned"}
        assert not any(s.reasons for s in summaries)
        for s in summaries:
            answer = look_up(s.job.tunable, s.job.problem)
            assert (answer.rung, dict(answer.config)) == ("cache", dict(s.config))
    assert all(p.grad is None for p in model.parameters())


def test_what_is_recorded_leaves_the_model_as_it_was() -> None:
    model = torch.nn.Sequential(nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(), nn.ReLU())
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [torch.ones_like(p) for p in model.parameters()]
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        p.grad = gradient
    state = torch.get_rng_state()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert len(autotune.recorded(model, x)) == 4
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_tuning_on_a_miss() -> None:
    x = torch.randn(64, 64, 40, 40)
    with using(in_memory()) as tables:
        functional.sigmoid(x)
        assert not tables.cache.rows()
        with autotune.mode("tune_on_miss"):
            y = functional.sigmoid(x)
            count = len(tables.cache.rows())
            assert choices(tables)
            functional.sigmoid(x)
            assert len(tables.cache.rows()) == count
        torch.testing.assert_close(y, torch.sigmoid(x))
        with autotune.mode("force"):
            functional.sigmoid(x)
            functional.sigmoid(x)
        assert [r["generation"] for r in tables.cache.rows() if r["kind"] == "choice"] == [1, 2]
        with autotune.mode("require"):
            functional.sigmoid(x)
            with pytest.raises(autotune.NotTuned, match="doublings away"):
                functional.sigmoid(x[:40])
        with autotune.mode("tune_on_miss"), autotune.mode("off"):
            count = len(tables.cache.rows())
            functional.sigmoid(x[:30])
            assert len(tables.cache.rows()) == count
        with autotune.record() as recording, autotune.mode("tune_on_miss"):
            functional.sigmoid(x[:30])
        assert sum(recording.counts.values()) == 1, "the tuner's own calls are nobody's business"


def test_a_call_that_cannot_be_tuned_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError("no room for a second input")

    monkeypatch.setattr("tilesmith.autotune.tuning.tune_jobs", fails)
    x = torch.randn(64, 64, 40, 40)
    with autotune.mode("tune_on_miss"), pytest.warns(UserWarning, match="could not be tuned: no room"):
        y = functional.sigmoid(x)
    torch.testing.assert_close(y, torch.sigmoid(x))


# ---- ranks


def _rank(rank: int, port: int, folder: str, shared: bool, done: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    path = Path(folder) / ("both" if shared else str(rank))
    from tilesmith.autotune.tuning import check_ranks, exchange, share

    times = [row for size in SIZES for row in every_time(size)]
    with using(in_directory(path)) as tables:
        jobs = [job(size) for size in SIZES]
        mine = share(jobs if rank == 0 else jobs[::-1])  # each rank has an order of its own
        tune_jobs(mine, Replay(times), tables)
        exchange(tables)
        check_ranks()
        digest = tables.digest()
        if rank == 1:
            tables.cache.append(latest_choices(tables.cache.rows())[0] | {"generation": 9, "time_us": 1.0})
            tables.reload()
        if shared:
            message = ""
        else:
            try:
                check_ranks()
                message = ""
            except RuntimeError as error:
                message = str(error)
        done.put((rank, len(mine), digest, len(choices(tables)), message))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    done.close()
    done.join_thread()
    os._exit(0)


@pytest.mark.parametrize("shared", [True, False])
def test_ranks_share_a_tune_and_end_alike(tmp_path: Path, shared: bool) -> None:
    context = mp.get_context("fork")
    done = context.Queue()
    port = 20000 + random.randrange(20000)
    ranks = [context.Process(target=_rank, args=(i, port, str(tmp_path), shared, done)) for i in range(2)]
    for process in ranks:
        process.start()
    told = sorted(done.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
    assert [count for _, count, *_ in told] == [4, 4]
    assert told[0][2] == told[1][2]
    assert [n for _, _, _, n, _ in told] == [8, 8]
    if not shared:
        assert told[0][4] == ""
        assert "rank 1 has another row [layer 0: test.pretended" in told[1][4]
