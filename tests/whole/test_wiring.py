"""dvc.yaml, the Snakefile and the packaging agree with the code: they cannot drift apart unseen."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import packages_distributions
from itertools import chain, product
from pathlib import Path
from typing import Any

import fake_pelap
import grimp
import pytest
from ruamel.yaml import YAML

import pelap
from pelap.commands.studies import load_study
from pelap.config.load import STAGE_KEYS, load_params, resolved
from pelap.config.rules import STAGES
from pelap.config.yaml import read_yaml
from pelap.core.paths import RunPaths, input_file, packed_dataset
from pelap.datasets.sources import READING

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RAW = read_yaml(ROOT / "params.yaml")
RUN = RunPaths(Path("results/default"))
STUDY_FILE = ROOT / "presets" / "collapse_study.yaml"
STUDY = resolved(STUDY_FILE)
SNAKEMAKE = ("snakemake", "--cores", "4")
CHOOSING_FILE = ROOT / "presets" / "choosing.yaml"
PRESETS = sorted((ROOT / "presets").rglob("*.yaml"))
TASKS = read_yaml(ROOT / "workflow" / "config.yaml")["tasks"]
PLUMBING = {"pelap.config", "pelap.stages"}
"""No dependencies of DVC: an edit of a check or a message would train anew. Nor is seen what a section works
out from its keys: `dvc repro --force`."""


def test_committed_results_are_of_the_code_and_parameters_beside_them() -> None:
    """Where this fails: `make demo`, look at what became of the numbers, and commit results/ and dvc.lock."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    command = [BIN / "dvc", "status", "--json"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    stages = {
        f"{stage}: {path}"
        for stage, findings in json.loads(result.stdout).items()
        for finding in findings
        if isinstance(finding, dict)
        for path, state in finding.get("changed deps", {}).items()
        # Data and models are not in Git: what is not there has not changed.
        if path.startswith(("pelap/", "params.yaml")) and state != "deleted"
    }
    assert not stages


def resolve(value: Any, context: Mapping[str, Any]) -> Any:
    """Fill in ``${a.b}`` as DVC does."""
    if isinstance(value, list):
        return [resolve(item, context) for item in value]
    if isinstance(value, Mapping):
        return {resolve(k, context): resolve(v, context) for k, v in value.items()}
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        found: Any = context
        for part in match[1].split("."):
            found = found[part]
        return str(found)

    return re.sub(r"\$\{([\w.]+)\}", look_up, value)


def dvc_stages() -> dict[str, dict[str, Any]]:
    """The stages of dvc.yaml with every template filled in."""
    stages = {}
    for name, stage in read_yaml(ROOT / "dvc.yaml")["stages"].items():
        if "foreach" in stage:
            assert stage["foreach"] == "${variants}"
            for key, item in RAW["variants"].items():
                stages[f"{name}@{key}"] = resolve(stage["do"], {**RAW, "key": key, "item": item})
        else:
            stages[name] = resolve(stage, RAW)
    return stages


DVC = dvc_stages()
INPUTS = DVC.pop("inputs")  # not a stage of a run: looks at what is outside of it


def paths(stage: Mapping[str, Any], *kinds: str) -> set[str]:
    entries = [entry for kind in kinds for entry in stage.get(kind, [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def outputs(stage: Mapping[str, Any]) -> set[str]:
    return paths(stage, "outs", "metrics", "plots")


def within(inner: str, outer: str) -> bool:
    return f"{inner}/".startswith(f"{outer}/")


def test_dvc_looks_at_what_the_parameters_name_outside() -> None:
    assert INPUTS["always_changed"]
    assert outputs(INPUTS) == {str(input_file(Path("data"), stage)) for stage in READING}
    for name, stage in DVC.items():
        file = str(input_file(Path("data"), name.partition("@")[0]))
        assert (file in paths(stage, "deps")) == (file in outputs(INPUTS))


def test_dvc_has_the_stages_in_order() -> None:
    assert tuple(dict.fromkeys(name.partition("@")[0] for name in DVC)) == STAGES


@pytest.mark.parametrize("name", DVC)
def test_dvc_lists_the_parameters_that_the_stage_reads(name: str) -> None:
    stage, _, variant = name.partition("@")
    expected = set(STAGE_KEYS[stage])
    if variant:
        expected -= {"lambda", "variants"}
        expected |= {f"variants.{variant}", RAW["variants"][variant]["sparsity_key"]}
    assert set(DVC[name]["params"]) == expected


@pytest.mark.parametrize("name", DVC)
def test_dvc_outputs_are_what_the_stage_leaves(name: str) -> None:
    """Each declared file or folder has something, and nothing is outside of them."""
    stage, _, variant = name.partition("@")
    left = fake_pelap.outputs(stage, RUN, Path("data"), variant, RAW["dataset"])
    declared = [[out for out in outputs(DVC[name]) if within(str(path), out)] for path in left]
    assert all(declared)
    assert set(chain(*declared)) == outputs(DVC[name])


@pytest.mark.parametrize("name", DVC)
def test_dvc_reads_what_earlier_stages_wrote(name: str) -> None:
    names = list(DVC)
    written = {path for before in names[: names.index(name)] for path in outputs(DVC[before])}
    stage = name.partition("@")[0]
    written |= {str(input_file(Path("data"), stage))} & outputs(INPUTS)
    read = {path for path in paths(DVC[name], "deps") if not path.startswith("pelap/")}
    orphans = {path for path in read if not any(within(out, path) or within(path, out) for out in written)}
    assert orphans == set()


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("pelap", cache_dir=None, exclude_type_checking_imports=True)


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_depends_on_the_packages_that_the_stage_imports(stage: str, imports: grimp.ImportGraph) -> None:
    module = f"pelap.stages.{stage}"
    packages = {".".join(name.split(".")[:2]) for name in imports.find_upstream_modules(module)}
    expected = {name.replace(".", "/") for name in packages - PLUMBING if name != "pelap"}
    definition = next(DVC[name] for name in DVC if name.partition("@")[0] == stage)
    listed = {path for path in paths(definition, "deps") if path.startswith("pelap/")}
    assert listed - {"pelap/core"} == {f"pelap/stages/{stage}.py", *expected} - {"pelap/core"}
    assert "pelap/core" in listed
    late = {f"pelap/{name}" for name in ("surgery", "scoring", "pruning", "evaluation", "report")}
    assert stage != "train" or not late & listed  # it takes longest


def test_dvc_plots_draw_declared_files() -> None:
    written = {path for stage in DVC.values() for path in outputs(stage)}
    for entry in read_yaml(ROOT / "dvc.yaml")["plots"]:
        for plot in entry.values():
            assert all(any(within(path, out) for out in written) for path in plot["y"])


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_have_the_keys_of_the_default(preset: Path) -> None:
    load_params(preset)
    assert set(resolved(preset)) == set(RAW)


def test_versions_agree() -> None:
    version = pelap.__version__
    assert read_yaml(ROOT / "CITATION.cff")["version"] == version
    for file in ("Snakefile", "Dockerfile"):
        assert f"pelap:{version}" in (ROOT / file).read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def named(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~!; ]", requirement)[0]).lower()


def test_what_is_imported_is_declared() -> None:
    """Not left to other packages to bring along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {*map(named, chain(project["dependencies"], *project["optional-dependencies"].values()))}
    imported = set()
    for path in chain((ROOT / "pelap").rglob("*.py"), (ROOT / "workflow").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    brought_by = packages_distributions()
    others = imported - sys.stdlib_module_names - {"pelap", "workflow"}
    assert [name for name in sorted(others) if not declared & {*map(named, brought_by[name])}] == []


def test_lock_pins_every_dependency() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    assert {*map(named, wanted)} - {"pelap"} <= {*map(named, lines)}


@pytest.mark.slow
def test_the_package_can_be_imported_without_its_extras() -> None:
    """Whoever prunes a pipeline installs no study, no sound and no tests."""
    modules = [path.with_suffix("") for path in (ROOT / "pelap").rglob("*.py") if path.stem != "__main__"]
    names = sorted(".".join(path.relative_to(ROOT).parts).removesuffix(".__init__") for path in modules)
    absent = ["dvc", "jsonschema", "librosa", "pytest", "skimage", "snakemake", "transformers"]
    code = f"import importlib, sys; sys.modules.update(dict.fromkeys({absent}))\n"
    code += f"for name in {names}: importlib.import_module(name)"
    result = run(ROOT, sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr


def test_imports_go_one_way() -> None:
    result = run(ROOT, "lint-imports", "--no-cache")
    assert result.returncode == 0, result.stdout


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project without results, in a Git repository of its own."""
    folder = tmp_path_factory.mktemp("my project")
    for name in ("dvc.yaml", "params.yaml", "Snakefile", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    for name in ("pelap", "workflow", "profiles", "presets"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc")
    helper = ROOT / "tests" / "helpers" / "fake_pelap.py"
    tool(folder / "bin" / "pelap", f'exec "{sys.executable}" -S "{helper}" "$@"')
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


@pytest.fixture
def project(copied: Path) -> Iterator[Path]:
    """The same with the parameters that it had at first."""
    yield copied
    shutil.copy(ROOT / "params.yaml", copied)
    shutil.copytree(ROOT / "presets", copied / "presets", dirs_exist_ok=True)


def tool(path: Path, line: str) -> None:
    """A command that does this."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(folder / "bin"), str(BIN), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(folder),
        "PELAP_CALLS": str(folder / "calls.txt"),
        "DVC_NO_ANALYTICS": "1",
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def calls(folder: Path, *command: str) -> set[str]:
    """The stages that a command runs."""
    log = folder / "calls.txt"
    log.write_text("")
    result = run(folder, *command)
    assert result.returncode == 0, result.stdout + result.stderr
    return set(log.read_text().split())


def edit(folder: Path, old: str, new: str) -> None:
    file = folder / "params.yaml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


TRAINED = {f"train@{variant}" for variant in RAW["variants"]}
PENALISED = {f"train@{name}" for name, own in RAW["variants"].items() if own["sparsity_key"] == "lambda"}
AFTER_PRUNE = {"prune", "distill", "evaluate", "report"}
AFTER_TRAIN = {"collapse", "score", *AFTER_PRUNE}
OWN_VARIANT = (
    "\nvariants:\n",
    "\nvariants:\n  own: {normalise: before_mask, encoder_losses: [reconstruction], sparsity_key: seed}\n",
)
LAMBDA = (f"\nlambda: {RAW['lambda']}", "\nlambda: 0.02")
NUM_IMAGES = (f"  num_images: {RAW['evaluate']['num_images']} ", "  num_images: 1400 ")
SHARE = (f"time_reduction: {RAW['prune']['time_reduction']}", "time_reduction: 0.31")


@pytest.mark.slow
def test_dvc_reruns_what_a_change_affects_and_nothing_else(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calls(project, "dvc", "repro") == {"download", *TRAINED, *AFTER_TRAIN}
    assert calls(project, "dvc", "repro") == set()
    monkeypatch.setenv("PELAP_INPUTS", "pictures, prompts and weights are others now")
    assert {"download", *TRAINED, "evaluate"} <= calls(project, "dvc", "repro")
    edit(project, *SHARE)
    assert calls(project, "dvc", "repro") == AFTER_PRUNE
    edit(project, *LAMBDA)
    assert PENALISED < calls(project, "dvc", "repro") <= PENALISED | AFTER_TRAIN
    edit(project, *OWN_VARIANT)
    assert calls(project, "dvc", "repro") == {"train@own", "collapse", "evaluate", "report"}
    edit(project, *NUM_IMAGES)
    assert calls(project, "dvc", "repro") == {"evaluate", "report"}
    append(project / "pelap" / "scoring" / "score.py")
    assert calls(project, "dvc", "repro") == {"score", *AFTER_PRUNE}
    append(project / "pelap" / "report" / "tables.py")
    assert calls(project, "dvc", "repro") == {"report"}


@pytest.mark.slow
def test_snakemake_reruns_what_a_change_affects_and_nothing_else(project: Path, tmp_path: Path) -> None:
    """With its memory, and without: .snakemake is lost by a clone, a copy, a tidied folder."""
    picture = tmp_path / "my pictures" / "train" / "a" / "1.png"
    for split in ("train", "test"):
        file = picture.parents[2] / split / "a" / "1.png"
        file.parent.mkdir(parents=True)
        file.write_text("x")
    edit(project, "  folders: ", f"  folders:\n    mine: {picture.parents[2]}\n    # ")
    grid = {"datasets": "[mine]", "seeds": "[3,4]"}

    def again(forgetful: bool = False) -> set[str]:
        if forgetful:
            shutil.rmtree(project / ".snakemake")
        return calls(project, *SNAKEMAKE, "all_seeds", "--config", *map("=".join, grid.items()))

    everything = {"download", *TRAINED, *AFTER_TRAIN, "compare"}
    assert again() == everything
    assert (project / "results/sweep/summary.csv").read_text() == "mine/seed3 mine/seed4"
    for path in (RUN.metrics, RUN.report_page, *(RUN.train(name).model for name in RAW["variants"])):
        assert (project / "results/sweep/mine/seed3" / path.relative_to(RUN.root)).exists()
    edit(project, *SHARE)
    assert again() == {*AFTER_PRUNE, "compare"}
    edit(project, *LAMBDA)
    assert again(forgetful=True) == {*PENALISED, *AFTER_TRAIN, "compare"}
    append(project / "pelap" / "stages" / "collapse.py")
    assert again() == {"collapse", "report"}
    assert again(forgetful=True) == set()
    picture.write_text("another")
    append(project / "pelap" / "stages" / "report.py")
    assert again(forgetful=True) == everything
    grid["seeds"] = "[3]"
    assert again(forgetful=True) == {"compare"}
    assert (project / "results/sweep/summary.csv").read_text() == "mine/seed3"


def append(module: Path) -> None:
    with module.open("a") as file:
        file.write("# edited\n")


@pytest.mark.slow
def test_snakemake_notices_code_that_was_edited_and_looked_at_during_a_job(project: Path) -> None:
    """The look writes down the new code; the job, which runs the old, ends later."""
    data, download = project / "data/sweep/shared", (*SNAKEMAKE, "data/sweep/shared/params/digits.yaml")
    assert calls(project, *download) == {"download"}
    append(project / "pelap" / "stages" / "download.py")
    assert calls(project, *download, "-n") == set()
    key = data / "params" / "digits.key"
    for file in filter(Path.is_file, data.rglob("*")):
        os.utime(file, ns=(0, key.stat().st_mtime_ns + int(1e9) * (file != key)))
    assert calls(project, *download) == {"download"}
    assert calls(project, *download) == set()


def planned(result: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """How often a dry run would run each rule."""
    table = re.search(r"^job +count\n[- ]+\n(.*?)\n\n", result.stdout + result.stderr, re.S | re.M)
    assert table is not None, result.stdout + result.stderr
    return {name: int(count) for name, count in (line.split() for line in table[1].splitlines())}


@pytest.mark.slow
def test_snakemake_plans_every_cell_of_every_grid(project: Path) -> None:
    """Photos and sounds are packed for each seed, other data once in a grid, for all parts of the paper."""
    prefixes = {"": "params.yaml", "pruning_": "presets/study.yaml", "study_": "presets/collapse_study.yaml"}
    grids = [f"{name}datasets=[photos,cifar10]" for name in (*prefixes, "choosing_")]
    seeds = [f"{name}seeds=[7,8]" for name in (*prefixes, "choosing_", "task_")]
    targets = ("all_seeds", "pruning_study", "collapse_study", "choosing", "all_tasks", "paper")
    result = run(project, *SNAKEMAKE, "-n", *targets, "--config", *grids, *seeds)
    variants = {name: len(resolved(ROOT / file)["variants"]) for name, file in prefixes.items()}
    tasks = [len(resolved(ROOT / task["params"])["variants"]) for task in TASKS.values()]
    paper = load_study(ROOT / "workflow" / "paper.yaml")
    stages = [stage for cell in paper.cells for stage in cell.stages]
    train = 4 * (sum(variants.values()) + 1) + 2 * sum(tasks)
    whole = 4 + 4 + 2 * len(tasks)
    assert planned(result) == {
        "download": 4 * 3 + 2 * len(tasks) + 1,
        "train": train + sum(len(cell.params.variants) for cell in paper.cells),
        "collapse": whole + 4 + stages.count("collapse"),
        "score": whole + 4 + stages.count("score"),
        "prune": whole + 4 + stages.count("prune"),
        "distill": whole + 4 + stages.count("distill"),
        "evaluate": whole + 4 + 4 + stages.count("evaluate"),
        "report": whole + stages.count("report"),
        "compare": 2,
        **dict.fromkeys(("study", "tasks", *targets), 1),
        "total": sum(planned(result).values()) - planned(result)["total"],
    }


@pytest.mark.slow
def test_another_task_is_one_more_entry(project: Path) -> None:
    """It gets data, a run folder and a place in the summary of its own; the others are left alone."""
    tasks = (*SNAKEMAKE, "all_tasks", "--config", "task_seeds=[3]")
    calls(project, *tasks)
    own = "tasks={own: {params: presets/study.yaml, dataset: cifar10}}"  # merged with those of the file
    assert calls(project, *tasks, own) == {"download", "train@dense", *AFTER_TRAIN, "tasks"}
    assert packed_dataset(project / "data/tasks/own/shared", "cifar10").exists()
    cell = RunPaths(project / "results/tasks/own/cifar10/seed3")
    assert cell.report_page.exists()
    written = read_yaml(cell.root / "params" / "evaluate.yaml")
    assert (written["dataset"], written["seed"]) == ("cifar10", 3)


@pytest.mark.slow
def test_another_study_is_a_folder_and_an_entry(project: Path) -> None:
    folder = project / "workflow" / "studies" / "own"
    shutil.copytree(project / "workflow" / "studies" / "seeds", folder)
    own = "studies={own: {params: presets/study.yaml, datasets: [photos], seeds: [3]}}"
    result = run(project, *SNAKEMAKE, "-n", "-p", "own", "--config", own)
    wanted = ("download", "train", "score", "prune", "distill", "evaluate", "own")
    assert planned(result) == {**dict.fromkeys(wanted, 1), "total": len(wanted)}
    command = "python -m workflow.studies.own --root results/own --cells photos/seed3"
    assert command in result.stdout + result.stderr
    shutil.rmtree(folder)


@pytest.mark.slow
def test_another_way_to_choose_does_not_score_again(project: Path) -> None:
    choosing = (*SNAKEMAKE, "choosing", "--config", "choosing_seeds=[3]")
    pruned = {"prune", "distill", "evaluate", "choosing"}
    assert calls(project, *choosing) == {"download", "train@dense", "score"} | pruned
    change(project, CHOOSING_FILE, lambda raw: raw["prune"]["methods"]["avg"].update(selection="knapsack"))
    assert calls(project, *choosing) == pruned
    append(project / "pelap" / "pruning" / "selection.py")
    assert calls(project, *choosing) == pruned


@pytest.mark.slow
def test_study_reruns_what_a_change_affects_and_nothing_else(project: Path) -> None:
    study = (*SNAKEMAKE, "collapse_study", "--config", "study_seeds=[3]")
    trained = {f"train@{name}" for name in STUDY["variants"]}
    assert calls(project, *study) == {"download", *trained, "collapse", "evaluate", "study"}
    cell = RunPaths(project / "results/collapse_study/photos/seed3")
    written = read_yaml(cell.root / "params" / "evaluate.yaml")
    assert (written["dataset"], written["seed"], written["variants"]) == ("photos", 3, STUDY["variants"])
    assert packed_dataset(project / "data/collapse_study/seed3", "photos").exists()
    control = next(name for name, fields in STUDY["variants"].items() if fields.get("sparsity_weight"))
    change(project, STUDY_FILE, lambda raw: raw["variants"][control].update(sparsity_weight=0.0123))
    assert calls(project, *study) == {f"train@{control}", "collapse", "evaluate", "study"}
    append(project / "workflow" / "studies" / "common.py")
    assert calls(project, *study) == {"study"}


def change(project: Path, preset: Path, edited: Callable[[dict[str, Any]], None]) -> None:
    file = project / "presets" / preset.name
    raw = read_yaml(file)
    edited(raw)
    with file.open("w") as stream:
        YAML().dump(raw, stream)


@pytest.mark.slow
def test_snakemake_lint_is_clean(project: Path) -> None:
    result = run(project, "snakemake", "--lint")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_snakemake_refuses_a_wrong_grid(project: Path) -> None:
    """In one line; tests/workflow has the messages."""
    result = run(project, *SNAKEMAKE, "-n", "all_seeds", "--config", "study_datasets=[nope]")
    assert result.returncode != 0
    assert "presets/collapse_study.yaml: dataset: 'nope' is unknown" in result.stdout + result.stderr


def test_profiles_know_the_rules() -> None:
    profile = read_yaml(ROOT / "profiles" / "slurm" / "config.yaml")
    assert {*profile["set-threads"], *profile["set-resources"]} < set(STAGES)


def test_jobs_set_both_numbers_of_threads_that_torch_looks_at() -> None:
    # Snakemake exports MKL_NUM_THREADS; with OMP_NUM_THREADS alone two jobs took six times as long.
    rules = (ROOT / "workflow" / "rules" / "cell.smk").read_text()
    assert rules.count("PREPARE") == rules.count("pelap {params.stage}") == 1  # of all stages
    prepare = (ROOT / "workflow" / "rules" / "common.smk").read_text().partition("PREPARE = ")[2]
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        assert f"{name}={{resources.torch_threads}}" in prepare


TARGETS = re.findall(r"^\.PHONY: (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
TOOLS = ("python", "dvc", "pelap", "snakemake", "pytest", "ruff", "lint-imports", "mypy")


@pytest.mark.parametrize("target", TARGETS)
def test_targets_work_in_a_folder_with_a_space(target: str, tmp_path: Path) -> None:
    """Stand-ins for the tools note that they were called; nothing is installed."""
    clone = tmp_path / "my projects" / "pelap"
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements.lowest"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone)
    for name, environment in product(TOOLS, (".venv", ".venv-lowest")):
        (clone / environment / "bin").mkdir(parents=True, exist_ok=True)
        tool(clone / environment / "bin" / name, f'echo "{name} $*" >> "{tmp_path}/calls"')
    given = clone / ".venv" / "bin" / "python" if target == "gpu-check" else sys.executable
    result = run(tmp_path, "make", "-C", str(clone), target, f"PYTHON={given}")
    assert result.returncode == 0, result.stdout + result.stderr
    noted = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
    if target == "gpu-check":  # with what is there
        assert noted == "python benchmarks --gpu-check\n"
    elif target not in ("help", "clean"):
        assert "python -m pip" in noted
        assert noted.count("\n") > 1
        assert [*clone.glob(".venv*/.installed")]
