"""The rules of the code: imports run one way, the quick modules stay quick, and functions fit a screen."""

import ast
import fnmatch
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "Project7"

# A module imports only from the lines above its own.
ORDER = """
__init__ errors invocation
program
console settings sheet sixteen_bit mark working_size array_sampler array_color
counting atomic_file cache_folder answer_config loss_config training_config color processes
model_config
config
photo_files tiff
answer_options flags model_folder photo metrics batch brush guided_filter export_parts learning_rate
array_picture
array_hints
squares remote_file
tar_index photo_storage
hub_photos
photo_source on_the_fly
image_set
image_cache
dataset download palette layers discriminator samplers augment candidates hints painting provenance
scan onnx_colorizer
feature_networks color_head
perceptual_loss encoder
losses neck feature_cache diffusion_export
diffusion_model classification_model regression_model
methods
checkpoints health comparison
critic run_history hub
objective collapse precision
validation
opened transfer
reference
trainer colorize resume
colorize_files
retouch
frechet
evaluate export
run_summary run_time doctor_report evaluation_report
report
prompts
request preparation
recipe
demo
jobs
studio
guard
web
cli train_*
__main__
"""
LINES = [line.split() for line in ORDER.strip().splitlines()]
NO_NOUNS = {"util", "utils", "helper", "helpers", "base", "core", "manager", "common", "misc", "tools"}
QUICK = "config flags model_folder prompts cli recipe request preparation photo metrics dataset".split()
QUICK += [path.stem for path in PACKAGE.glob("train_*.py")]  # so that the first question appears at once
QUICK += ["onnx_colorizer", "colorize_files"]  # they run where there is no torch
HEAVY = ["torch", "torchvision", "diffusers", "accelerate"]
LONGEST_FUNCTION = 45
LAB = {50, 100, 110}

FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {path.stem: path.read_text(encoding="utf-8") for path in FILES}


def line_of(module: str) -> int | None:
    """The line of ORDER that contains a module; None if there is none."""
    places = [n for n, line in enumerate(LINES) if any(fnmatch.fnmatch(module, pattern) for pattern in line)]
    return places[0] if places else None


def imports(source: str) -> Iterator[tuple[str, int]]:
    """(module of Project7, line number) for all imports of a source, including those inside functions."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = "Project7" if node.level else node.module
            package = f"{package}.{node.module}" if node.level and node.module else package
            names = [f"{package}.{a.name}" for a in node.names] if package == "Project7" else [package]
        for name in names:
            top, module = [*name.split("."), "__init__"][:2]
            if top == "Project7":
                yield "__init__" if module in ("__version__", "Colorizer") else module, node.lineno


def uphill(module: str, source: str) -> list[str]:
    """The imports of a module that do not run down. Importing the package itself is for users, and counts as well."""
    if module == "__init__":
        return []
    return [
        f"{module}.py:{number} imports {name}"
        for name, number in imports(source)
        if line_of(name) is None or line_of(module) is None or line_of(name) >= line_of(module)
    ]


def run_python(code: str, *, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


# -- one way down ----------------------------------------------------------------------------------------------------


def test_the_package_is_flat():
    assert [str(path) for path in FILES if path.parent != PACKAGE] == []
    assert len(FILES) > 20


def test_every_module_has_a_place():
    assert [module for module in MODULES if line_of(module) is None] == [], "in no line of ORDER"


def test_imports_run_one_way():
    assert [wrong for module, source in MODULES.items() for wrong in uphill(module, source)] == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("color", "from Project7.trainer import train", ["color.py:1 imports trainer"]),
        ("color", "def f():\n    from Project7 import cli, errors", ["color.py:2 imports cli"]),
        ("color", "import Project7.config", ["color.py:1 imports config"]),  # of the same line
        ("color", "from . import report\nfrom .web import x", ["color.py:1 imports report", "color.py:2 imports web"]),
        ("color", "from Project7 import brand_new", ["color.py:1 imports brand_new"]),
        ("color", "from Project7 import __version__\nimport torch, Project7\nfrom Project7.errors import sentence", []),
        ("train_diffusion", "from Project7 import recipe, errors", []),
    ],
)
def test_an_import_that_runs_back_up_is_found(module, source, wrong):
    assert uphill(module, source) == wrong


def test_the_tree_in_the_documentation_lists_every_room_once():
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^  (\w+)\.py", tree, re.MULTILINE)
    assert sorted(named) == sorted(set(MODULES) - {"__init__", "__main__"})


def test_a_file_name_is_a_noun_of_the_subject():
    assert [module for module in MODULES if set(module.split("_")) & NO_NOUNS] == []


# -- importing -------------------------------------------------------------------------------------------------------


def test_what_a_person_waits_for_imports_no_torch(tmp_path):
    there = [name for name in QUICK if name in MODULES]
    assert len(there) >= len(QUICK) - 1
    code = f"""
import importlib, sys
for name in {there}:
    importlib.import_module("Project7." + name)
    heavy = [h for h in {HEAVY} if h in sys.modules]
    if heavy:
        sys.exit(f"{{name}} imports {{heavy}}")
"""
    result = run_python(code, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_colorizer_is_a_name_of_the_package(tmp_path):
    """And torch is imported only when the name is used."""
    code = "import sys, Project7; assert 'torch' not in sys.modules; from Project7 import Colorizer; print(Colorizer)"
    result = run_python(code, cwd=tmp_path)
    assert (result.stdout, result.returncode) == ("<class 'Project7.colorize.Colorizer'>\n", 0)
    assert "no attribute 'Colourizer'" in run_python("import Project7; Project7.Colourizer", cwd=tmp_path).stderr


def test_importing_does_nothing(tmp_path):
    """Importing prints nothing, writes nothing, and reads no arguments. `__main__` is the only file that is made to be
    run."""
    names = sorted(set(MODULES) - {"__init__", "__main__"})
    code = f"""
import importlib, json, sys
sys.argv = ["x", "--no-such-flag"]
failed = {{}}
for name in {names}:
    try:
        importlib.import_module("Project7." + name)
    except BaseException as error:
        failed[name] = repr(error)
with open("failed.json", "w") as file:
    json.dump(failed, file)
"""
    result = run_python(code, cwd=tmp_path)
    assert json.loads((tmp_path / "failed.json").read_text()) == {}
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert os.listdir(tmp_path) == ["failed.json"]


# -- the look --------------------------------------------------------------------------------------------------------


def long_functions(source: str) -> list[str]:
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f.name for f in functions if f.end_lineno - f.lineno + 1 > LONGEST_FUNCTION]


def test_a_function_fits_a_screen():
    assert long_functions("def f():\n" + "    pass\n" * LONGEST_FUNCTION) == ["f"]
    assert [f"{module}.py: {name}" for module in MODULES for name in long_functions(MODULES[module])] == []


def lab_constants(source: str) -> list[int]:
    """The lines that multiply or divide by 50, 100 or 110."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Mult | ast.Div):
            sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
            lines += [node.lineno for s in sides if isinstance(s, ast.Constant) and s.value in LAB]
    return sorted(lines)


def test_the_constants_of_lab_have_one_home():
    assert lab_constants(MODULES["color"]), "the test would see them"
    assert lab_constants("x / 50\n50.0 * x\nx /= 110\nx + 50\nx / 51\nf(50)") == [1, 2, 3]
    homes = {"color", "array_color"}  # for tensors and for arrays; tests/test_array_color.py compares them
    elsewhere = {module: lab_constants(source) for module, source in MODULES.items() if module not in homes}
    assert {module: lines for module, lines in elsewhere.items() if lines} == {}


def prints(source: str) -> list[int]:
    """The lines that print or make a console themselves, where a name with control codes could command the terminal."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("print", "Console")]


def test_what_is_printed_goes_through_one_door():
    assert prints("def f(name):\n    print(name)\n    Console().print(name)\n    say(name)") == [2, 3]
    rooms = {path.stem for path in PACKAGE.glob("*.py") if prints(path.read_text(encoding="utf-8"))}
    assert rooms <= {"console", "program"}


def test_every_fault_names_a_test_that_exists():
    text = (ROOT / "tests" / "FAULTS.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row[0].strip("| ")) for row in rows] == list(range(1, 113))
    for row in rows:
        named = re.findall(r"`(\w+)::(\w+)`", row[2])
        assert named, row
        for file, test in named:
            source = (ROOT / "tests" / f"test_{file}.py").read_text(encoding="utf-8")
            assert f"def test_{test}(" in source, (row[0], file, test)
