"""The notebook of the docs: it runs, and its outputs are those of one run from top to bottom."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs/first_metric.ipynb"


@pytest.fixture(scope="module")
def cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_the_outputs_are_of_one_run_without_errors(cells):
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result"}
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) >= 5
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert NOTEBOOK.stat().st_size < 200_000


@pytest.mark.slow
def test_it_runs(cells, tmp_path, weights_dir, monkeypatch):
    """As Jupyter does: a last expression is shown, so that its pictures are made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    names, shown = {"__name__": "__main__"}, 0
    for cell in cells:
        *body, last = ast.parse("".join(cell["source"])).body
        if not isinstance(last, ast.Expr):
            body.append(last)
        exec(compile(ast.Module(body, []), NOTEBOOK.name, "exec"), names)
        if isinstance(last, ast.Expr):
            result = eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)
            if picture := getattr(result, "_repr_jpeg_", None):
                shown += picture().startswith(b"\xff\xd8")
            elif table := getattr(result, "_repr_html_", None):
                assert "not known" not in table()
    assert shown >= 5
    assert (tmp_path / "runs/first/metric.safetensors").exists()
