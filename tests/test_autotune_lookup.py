"""The ladder of look-ups: which rung answers, how near is near, what is never answered, modes, digests."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tilesmith import autotune
from tilesmith.autotune import lookup
from tilesmith.autotune.lookup import MOST_DOUBLINGS, Tables, as_in_space
from tilesmith.autotune.resolve import look_up, watched
from tilesmith.autotune.resolve import mode as looking_up
from tilesmith.autotune.rows import distance, filed, is_stale, source_of, text_of, without_comments
from tilesmith.autotune.store import Store

from .tuning import PRETENDED, Size, choice, in_memory, using

DEFAULT = {"BLOCK": 16, "WARPS": 1}
GOOD, OTHER, THIRD = ({"BLOCK": block, "WARPS": 4} for block in (64, 32, 128))
HERE = Size(512)


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    """Each test starts with an empty cache, and leaves none behind."""
    with using(in_memory()):
        yield


def answered(*rows: Any, shipped: tuple[Any, ...] = (), problem: Size = HERE) -> tuple[str, autotune.Config]:
    with using(in_memory(*rows, shipped=shipped)):
        answer = look_up(PRETENDED, problem)
        assert autotune.resolve(PRETENDED, problem) == answer.config
        return answer.rung, answer.config


def test_the_rungs_in_their_order() -> None:
    near = choice(Size(700), THIRD)
    assert answered() == ("default", DEFAULT)
    assert answered(near) == ("nearest", THIRD)
    assert answered(near, shipped=(choice(HERE, OTHER),)) == ("table", OTHER)
    assert answered(near, choice(HERE, GOOD), shipped=(choice(HERE, OTHER),)) == ("cache", GOOD)
    with autotune.pin(PRETENDED.name, THIRD):
        assert answered(choice(HERE, GOOD)) == ("pinned", THIRD)


def test_near_is_near_in_all_sizes_together() -> None:
    assert distance(filed(PRETENDED, Size(512, 64)), filed(PRETENDED, Size(2048, 64))) == 2.0
    assert distance(filed(PRETENDED, Size(512, 64)), filed(PRETENDED, Size(1024, 128))) == pytest.approx(2**0.5)
    assert MOST_DOUBLINGS == 2.0
    assert answered(choice(Size(2048), GOOD)) == ("nearest", GOOD)
    assert answered(choice(Size(2049), GOOD)) == ("default", DEFAULT)
    assert answered(choice(Size(128), OTHER), choice(Size(700), GOOD)) == ("nearest", GOOD)


def test_a_neighbour_whose_configuration_cannot_run_here_is_passed_over() -> None:
    small = Size(100)
    assert answered(choice(Size(140), THIRD), problem=small) == ("default", DEFAULT)
    assert answered(choice(Size(140), THIRD), choice(Size(200), OTHER), problem=small) == ("nearest", OTHER)


def test_no_row_of_another_family_answers() -> None:
    assert answered(choice(replace(HERE, dtype="float16"), GOOD)) == ("default", DEFAULT)
    assert answered(choice(HERE, GOOD) | {"key": {**choice(HERE, GOOD)["key"], "abi": 2}}) == ("default", DEFAULT)
    row = choice(HERE, GOOD)
    row["key"]["sizes"]["depth"] = 3.0
    assert answered(row) == ("default", DEFAULT)


@pytest.mark.parametrize(
    "config",
    [{"BLOCK": 48, "WARPS": 4}, {"BLOCK": 64}, {"BLOCK": 64, "WARPS": 4, "STAGES": 2}, {"BLOCK": "64", "WARPS": 4}],
)
def test_a_configuration_that_the_space_does_not_have_is_never_used(config: Any) -> None:
    assert as_in_space(PRETENDED, config) is None
    assert answered(choice(HERE, config)) == ("default", DEFAULT)


def test_a_configuration_that_the_problem_refuses_is_never_used() -> None:
    small = Size(40)
    assert answered(choice(small, GOOD), problem=small) == ("default", DEFAULT)


def test_values_come_from_the_space_not_from_the_file() -> None:
    tunable = autotune.Tunable("test.kinds", {"WHOLE": (False, True), "AT": (None, 1.0)}, default=lambda _: {})
    found = as_in_space(tunable, {"WHOLE": True, "AT": None})
    assert found == {"WHOLE": True, "AT": None}
    assert as_in_space(tunable, {"WHOLE": 1, "AT": None}) is None


def test_stale_rows_answer_as_neighbours_do() -> None:
    """Of other sources or another compiler: worth more than a guess, less than what was measured with these."""
    assert not is_stale(choice(HERE, GOOD), PRETENDED)
    assert is_stale(choice(HERE, GOOD, versions={}), PRETENDED)
    old = choice(HERE, GOOD, source="0" * 12)
    assert answered(old) == ("nearest", GOOD)
    assert answered(old, shipped=(choice(HERE, OTHER),)) == ("table", OTHER)
    assert answered(old, choice(Size(700), OTHER)) == ("nearest", GOOD)


def test_a_newer_row_of_other_sources_hides_no_fresh_one() -> None:
    """Two versions share a cache: each finds its own rows."""
    fresh, newer = choice(HERE, GOOD), choice(HERE, OTHER, generation=5, source="0" * 12)
    assert answered(fresh, newer) == ("cache", GOOD)
    assert answered(newer, fresh) == ("cache", GOOD)
    assert answered(fresh, choice(HERE, OTHER, generation=2)) == ("cache", OTHER)
    gone = choice(HERE, {"BLOCK": 48, "WARPS": 4}, generation=5, versions={})
    assert answered(fresh, gone) == ("cache", GOOD)


@pytest.mark.parametrize("versions", [None, [], "3.9"])
def test_a_row_without_versions_is_stale(versions: Any) -> None:
    assert answered(choice(HERE, GOOD, versions=versions)) == ("nearest", GOOD)


@pytest.mark.parametrize(
    ("suffix", "one", "other", "same"),
    [
        (".py", "k = n // 32 * m", "k = n // 64 + 7", False),
        (".py", "# why\nk = 1\n\n", "k = 1", True),
        (".py", "    # why\nk = 1", "k = 2", False),
        (".cu", "int k = n; // why", "int k = n; // why not", True),
        (".cu", "#include <a>", "#include <b>", False),
        (".cu", "int k = n;", "int k = m;", False),
    ],
)
def test_what_counts_of_a_source(suffix: str, one: str, other: str, same: bool) -> None:
    assert (without_comments(one, suffix) == without_comments(other, suffix)) == same


def test_the_source_of_a_kernel_is_all_that_it_is_made_of() -> None:
    """Its own op's files for the backend, and what backends share."""
    from tilesmith.autotune.rows import _SHARED

    root = Path(__file__).parent.parent / "kernels"
    assert all((root / name).is_file() for names in _SHARED.values() for name in names)
    named = {t.name: source_of(t) for t in every_tunable()}
    assert named["triton.conv2d.forward"] == named["triton.conv2d.weight_grad"]
    assert named["triton.conv2d.forward"] != named["numpy.conv2d.forward"] != named["cupy.conv2d.fprop"]


def test_another_compiler_makes_rows_stale_only_of_its_own_kernels() -> None:
    of_numpy = autotune.Tunable("numpy.test", PRETENDED.space, PRETENDED.default, key=PRETENDED.key)
    row = choice(HERE, GOOD)
    assert not is_stale(row | {"versions": {**row["versions"], "triton": "0.1"}}, of_numpy)
    assert is_stale(row | {"versions": {**row["versions"], "numpy": "0.1"}}, of_numpy)


def test_blocks_that_end_in_another_order_leave_nothing_behind() -> None:
    first, second = autotune.pin(PRETENDED.name, GOOD), autotune.pin(PRETENDED.name, OTHER)
    first.__enter__()
    second.__enter__()
    assert autotune.resolve(PRETENDED, HERE) == OTHER
    first.__exit__(None, None, None)
    assert autotune.resolve(PRETENDED, HERE) == OTHER
    second.__exit__(None, None, None)
    assert autotune.resolve(PRETENDED, HERE) == DEFAULT


def test_modes() -> None:
    with using(in_memory(choice(HERE, GOOD))):
        assert autotune.resolve(PRETENDED, HERE) == GOOD
        with looking_up("off"):
            assert autotune.resolve(PRETENDED, HERE) == DEFAULT
            with autotune.pin(PRETENDED.name, OTHER):
                assert autotune.resolve(PRETENDED, HERE) == OTHER
        with looking_up("require"):
            assert autotune.resolve(PRETENDED, HERE) == GOOD
        assert autotune.resolve(PRETENDED, HERE) == GOOD
    with pytest.raises(ValueError, match="'lookup'"), looking_up("sometimes"):
        pass


@pytest.mark.parametrize(
    ("rows", "problem", "words"),
    [
        ((), HERE, "the cache has no row of this kernel"),
        ((choice(HERE, GOOD),), Size(600), r"0\.23 doublings away \(rows is 600, there 512\)"),
        ((choice(HERE, GOOD),), Size(512, 32, "float16"), "field 0 is 'float16', there 'float32'"),
        ((choice(HERE, GOOD, source="0" * 12),), HERE, "stale"),
        ((choice(HERE, GOOD) | {"key": {**choice(HERE, GOOD)["key"], "abi": 7}},), HERE, "abi is 1, there 7"),
    ],
)
def test_require_names_what_is_missing(rows: tuple[Any, ...], problem: Size, words: str) -> None:
    with using(in_memory(*rows)), looking_up("require"):
        for _ in range(2):
            with pytest.raises(autotune.NotTuned, match=words):
                autotune.resolve(PRETENDED, problem)
        with autotune.pin(PRETENDED.name, OTHER):
            assert autotune.resolve(PRETENDED, problem) == OTHER


def test_the_environment_sets_the_mode_and_the_tables(tmp_path: Path) -> None:
    table = tmp_path / "app.jsonl"
    table.write_text(text_of(choice(HERE, THIRD)) + "\n")
    code = (
        "from tests.tuning import PRETENDED, Size; from tilesmith import autotune; "
        "print(autotune.resolve(PRETENDED, Size(512))['BLOCK'])"
    )

    def says(**environment: str) -> str:
        import os

        named = {**os.environ, "TILESMITH_CACHE": str(tmp_path / "none"), **environment}
        done = subprocess.run(
            [sys.executable, "-c", code], env=named, cwd=Path(__file__).parent.parent, capture_output=True, text=True
        )
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    assert says() == "16"
    assert says(TILESMITH_TABLES=str(table)) == "128"
    assert says(TILESMITH_TABLES=f"{tmp_path}/missing{':'}{table}") == "128"
    assert says(TILESMITH_TABLES=str(table), TILESMITH_AUTOTUNE="off") == "16"
    assert "NotTuned" in says(TILESMITH_AUTOTUNE="require")
    assert "'lookup'" in says(TILESMITH_AUTOTUNE="often")


def test_rows_of_others_are_seen_after_a_reload(tmp_path: Path) -> None:
    with using(Tables(Store(tmp_path))):
        assert autotune.resolve(PRETENDED, HERE) == DEFAULT
        Store(tmp_path).append(choice(HERE, GOOD))
        assert autotune.resolve(PRETENDED, HERE) == DEFAULT
        lookup.reload()
        assert autotune.resolve(PRETENDED, HERE) == GOOD


def test_pins_hold_in_other_threads() -> None:
    """Autograd runs backwards of CUDA tensors in threads of its own."""
    seen = []
    with autotune.pin(PRETENDED.name, OTHER):
        thread = threading.Thread(target=lambda: seen.append(autotune.resolve(PRETENDED, HERE)))
        thread.start()
        thread.join()
    assert seen == [OTHER]


def test_threads_look_up_alike() -> None:
    with using(in_memory(choice(HERE, GOOD), choice(Size(700), THIRD))):
        found: list[Any] = []

        def work() -> None:
            for _ in range(300):
                found.append(
                    (autotune.resolve(PRETENDED, HERE)["BLOCK"], autotune.resolve(PRETENDED, Size(700))["BLOCK"])
                )
                if len(found) % 50 == 0:
                    lookup.reload()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(found) == {(64, 128)}
    assert len(found) == 1200


def test_watchers_see_each_look_up() -> None:
    seen: list[Any] = []
    with watched(lambda *what: seen.append(what)):
        autotune.resolve(PRETENDED, HERE)
        with autotune.pin(PRETENDED.name, OTHER):
            autotune.resolve(PRETENDED, HERE)
    autotune.resolve(PRETENDED, HERE)
    assert [config for _, _, config in seen] == [DEFAULT, OTHER]
    assert {tunable.name for tunable, _, _ in seen} == {PRETENDED.name}


def test_digests_are_equal_where_answers_are() -> None:
    one, two = (
        in_memory(choice(HERE, GOOD), choice(Size(64), OTHER)),
        in_memory(choice(Size(64), OTHER), choice(HERE, GOOD)),
    )
    assert one.digest() == two.digest()
    assert one.digest() != in_memory(choice(HERE, GOOD)).digest()
    assert in_memory(choice(HERE, GOOD)).digest() != in_memory(shipped=(choice(HERE, GOOD),)).digest()
    later = in_memory(choice(HERE, OTHER), choice(HERE, GOOD, generation=2), choice(Size(64), OTHER))
    assert set(later.lines()) == set(one.lines())


def test_importing_touches_no_device_and_no_file(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from tilesmith import autotune; "
        "print(torch.cuda.is_initialized(), 'tilesmith.autotune.store' in sys.modules, "
        f"Path({str(tmp_path / 'cache')!r}).exists(), 'tilesmith.autotune.tuning' in sys.modules)"
    )
    import os

    environment = {**os.environ, "TILESMITH_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False", "False"]


def every_tunable() -> list[autotune.Tunable]:
    """Of every backend of every op."""
    found: list[autotune.Tunable] = []
    for name in ("activation", "conv2d", "conv_pool2d", "linear", "pool2d", "rnn", "softmax", "word2vec"):
        for backend in ("_numpy", "_triton", "_cupy", "_numpy_pairs"):
            try:
                module = import_module(f"tilesmith.kernels.{name}.{backend}")
            except ModuleNotFoundError:
                continue
            found += getattr(module, "TUNABLES", ())
    return found


def test_every_kernel_with_a_choice_is_for_the_tuner() -> None:
    """It has a name of its own, a key, a cost, a reason for each parameter's values, and sources that rows can name."""
    tunables = every_tunable()
    assert len(tunables) > 50
    assert len({t.name for t in tunables}) == len({id(t) for t in tunables})
    for tunable in tunables:
        assert tunable.key is not None, tunable.name
        assert tunable.cost is not None, tunable.name
        assert tunable.space.keys() <= tunable.reasons.keys(), tunable.name
        assert len(source_of(tunable)) == 12, tunable.name
        assert tunable.name.startswith(("numpy.", "triton.", "cupy.")), tunable.name
