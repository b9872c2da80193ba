import ast
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_what_a_benchmark_takes_of_geomim_is_there(script):
    for line in ast.walk(ast.parse(script.read_text())):
        if isinstance(line, ast.ImportFrom) and line.module.split(".")[0] == "geomim":
            exec(compile(ast.Module([line], []), str(script), "exec"), {})  # raises where it is not
