"""The README keeps its word: two commands, and an example that runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def test_two_commands_are_two():
    section = README.split("\n## Two commands\n")[1].split("\n## ")[0]
    commands = blocks("sh", section)
    assert len(commands) == 2
    assert all(command.count("\n") == 1 for command in commands)
    assert "treadle train" in commands[0]
    assert "pytest" in commands[1]


@pytest.mark.parametrize("code", blocks("python"))
def test_the_examples_run(code, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_what_it_links_to_is_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target


def test_every_dependency_is_in_the_table():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", line).group(0) for line in project["dependencies"]}
    assert names <= set(re.findall(r"^\| `([\w-]+)`", README, flags=re.M))
