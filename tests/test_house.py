"""The house: small modules and functions, few parameters, and a root that shows the way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS, MOST_ROOT_MODULES = 350, 50, 8, 8

FILES = sorted(path for folder in ("fastdps", "bench", "tools", "tests") for path in (ROOT / folder).rglob("*.py"))


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [extra.arg for extra in (given.vararg, given.kwarg) if extra]
    return [name for name in names if name not in ("self", "cls")]


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, which may be long."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_are_small(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= MOST_LINES
    for function in functions(ast.parse(source)):
        assert code_lines(function) <= MOST_FUNCTION_LINES, function.name


@pytest.mark.parametrize("path", [p for p in FILES if "tests" not in p.parts], ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_have_few_parameters(path):
    for function in functions(ast.parse(path.read_text(encoding="utf-8"))):
        assert len(parameters(function)) <= MOST_PARAMETERS, function.name


def test_the_root_has_few_modules():
    assert len(list((ROOT / "fastdps").glob("*.py"))) <= MOST_ROOT_MODULES


def test_each_package_says_what_it_is_for():
    for path in (ROOT / "fastdps").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_tests_have_a_folder_for_each_package():
    packages = {path.parent.name for path in (ROOT / "fastdps").glob("*/__init__.py")}
    listed = {path.name for path in (ROOT / "tests").iterdir()}
    assert packages <= listed


def test_classes_have_one_owner():
    owners: dict[str, list[str]] = {}
    for path in FILES:
        if "tests" in path.parts:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                owners.setdefault(node.name.lstrip("_"), []).append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in owners.items() if len(paths) > 1}
