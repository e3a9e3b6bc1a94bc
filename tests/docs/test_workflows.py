"""The workflows of the repository: what they promise is what the package says, and their commands exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from arcsm import __version__
from arcsm.cli import application

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="a source distribution has no workflows")


def read(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def read_project() -> dict[str, Any]:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert isinstance(found, dict)
    return found


def commands(workflow: dict[str, Any]) -> list[str]:
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_jobs_end_may_read_only_unless_they_say_more_and_find_their_scripts(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 240
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    for script in re.findall(r"\.ci/\w+", "\n".join(commands(workflow))):
        assert os.access(ROOT / script, os.X_OK), script


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_others_write_is_not_part_of_a_script(path: Path) -> None:
    """A branch or title with shell commands in its name would run; environment variables do not."""
    assert not re.findall(r"\$\{\{[^}]*(?:event|head_ref|ref_name)[^}]*\}\}", "\n".join(commands(read(path))))


def test_the_tests_run_on_every_promised_version() -> None:
    project = read_project()
    promised = {line.split()[-1] for line in project["classifiers"] if re.search(r"Python :: 3\.\d+$", line)}
    matrix = read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["platforms"]["strategy"]["matrix"]
    assert {*matrix["python"], *(one["python"] for one in matrix["include"])} == promised
    assert project["requires-python"] == f">={min(promised, key=lambda version: int(version.split('.')[1]))}"
    assert {system.split("-")[0] for system in matrix["system"]} == {"ubuntu", "macos", "windows"}


def test_extras_that_jobs_install_exist() -> None:
    project = read_project()
    lines = "\n".join(line for path in WORKFLOWS for line in commands(read(path)))
    extras = {extra for found in re.findall(r"\.\[([\w,]+)\]", lines) for extra in found.split(",")}
    assert extras
    assert extras <= set(project["optional-dependencies"])


def test_release_notes_are_a_section_of_the_changelog() -> None:
    script = [sys.executable, str(ROOT / ".ci" / "notes")]
    done = subprocess.run([*script, "0.1.0"], capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.startswith("First version.\n")
    missing = subprocess.run([*script, "9.9"], capture_output=True, text=True, encoding="utf-8", check=False)
    assert (missing.returncode, missing.stderr) == (1, "CHANGELOG.md has no section 9.9\n")


def test_the_image_serves_as_a_plain_user_where_its_health_check_looks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    last = dict(lines)  # of the last stage
    assert last["USER"] == "arcsm"
    assert last["ENTRYPOINT"] == '["arcsm"]'
    command = json.loads(last["CMD"])
    port = command[command.index("--port") + 1]
    assert last["EXPOSE"] == port
    assert f"http://127.0.0.1:{port}/" in last["HEALTHCHECK"]
    copied = [name for line, rest in lines if line == "COPY" for name in rest.split()[:-1] if not name.startswith("/")]
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for name in copied:
        if not name.startswith("--"):
            assert (ROOT / name).exists()
            assert f"!{name}" in kept
    missing = str(tmp_path / "model")
    assert application.run([missing if part == "/model" else part for part in command]) == 1
    assert "model" in capsys.readouterr().err


def test_the_conda_package_has_the_version_and_the_requirements_of_the_wheel() -> None:
    recipe, project = read(ROOT / "conda" / "recipe.yaml"), read_project()
    names = {"torch": "pytorch", "huggingface-hub": "huggingface_hub", "matplotlib": "matplotlib-base"}
    needed = [f"python {project['requires-python']}"]
    for requirement in project["dependencies"]:
        name, version = re.fullmatch(r"([\w-]+)(>=[\d.]+)", requirement).groups()  # type: ignore[union-attr]
        needed.append(f"{names.get(name, name)} {version}")
    assert recipe["requirements"]["run"] == needed
    assert recipe["context"]["version"] == __version__
    assert recipe["about"]["summary"] == project["description"]
