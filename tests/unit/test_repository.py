"""What is around the code keeps its promises too: documents, scripts, requirements, what git tracks."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import banger
from banger.host.config import Config
from banger.model.errors import BangerError
from banger.model.machine import VmPaths
from banger.network.record import Files

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAX_LINES = 500
CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
GENERATED = re.compile(
    r"(^|/)(build|dist|\.venv|__pycache__|\.[a-z_]+_cache|\.hypothesis|\.?runtime|[^/]*\.egg-info)/"
    r"|\.(pyc|img|qcow2|db|log|whl|tmp|orig|rej|swp)$|(^|/)(uv\.lock|\.coverage|nohup\.out|core)$"
)
# Written in pieces, so that this file does not name what no file may name.
FOREIGN = re.compile(
    "|".join(
        [
            r"(py" + r"pi\.org|python" + r"hosted|registry\.npm" + r"js|deb\.deb" + r"ian\.org)",
            r"(--(extra-)?index" + r"-url|--find" + r"-links)\s",
            r"(?<![\w.}$\"'])/(wo" + r"rk|home/(?!dev\b|me\b|you\b)[a-z]+)/",
        ]
    )
)


def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def documents():
    return [name for name in tracked() if name.endswith(".md")]


def adrs():
    return sorted((ROOT / "docs" / "adr").glob("*.md"))


def promises():
    """Rows of the specification's tables: number, promise, target, measured, proofs."""
    for line in (ROOT / "SPECIFICATION.md").read_text().splitlines():
        if re.match(r"\|\s*\d+\s*\|", line):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_changelog_keeps_its_format():
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    assert lines[0] == "# Changelog"
    releases = [line for line in lines if line.startswith("## ")]
    assert releases[0] == "## [Unreleased]"
    assert all(re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", r) for r in releases[1:])
    kinds = [line[4:] for line in lines if line.startswith("### ")]
    assert kinds
    assert set(kinds) <= CHANGES


def test_decisions_are_numbered_without_gaps():
    assert [int(path.name[:4]) for path in adrs()] == list(range(1, len(adrs()) + 1))


@pytest.mark.parametrize("path", adrs(), ids=lambda path: path.stem)
def test_a_decision_has_context_decision_and_consequences(path):
    text = path.read_text()
    assert text.startswith(f"# {int(path.name[:4])}. ")
    assert re.search(
        r"^Status: (proposed|accepted|superseded by \d+)\. Date: \d{4}-\d\d\.$", text, re.MULTILINE
    )
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_every_promise_is_numbered_in_order():
    numbers = [int(cells[0]) for cells in promises()]
    assert numbers
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("cells", list(promises()), ids=lambda cells: cells[0])
def test_a_promise_names_a_target_a_measurement_and_a_proof_that_exists(cells):
    _, promise, target, measured, proofs = cells
    assert promise
    assert target
    assert measured
    for proof in proofs.split(","):
        path, _, test = proof.strip().strip("`").partition("::")
        assert (ROOT / path).is_file(), path
        assert not test or re.search(
            rf"^(async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE
        )


@pytest.mark.parametrize("cells", list(promises()), ids=lambda cells: cells[0])
def test_a_promise_that_is_left_to_long_runs_says_so(cells):
    if all(wholly_long(proof.strip().strip("`")) for proof in cells[-1].split(",")):
        assert "long run" in cells[3]


def wholly_long(proof):
    """Whether all of the test, or all tests of the file, are marked ``long`` and so not in ``make test``."""
    path, _, test = proof.partition("::")
    if not path.startswith("tests/"):
        return False
    text = (ROOT / path).read_text()
    if re.search(r"^pytestmark\b.*\blong\b", text, re.MULTILINE):
        return True
    return bool(test) and bool(
        re.search(rf"^@pytest\.mark\.long\b.*\n(@.*\n)*(async )?def {test}\(", text, re.MULTILINE)
    )


def test_every_file_that_the_code_names_is_in_internals():
    """Paths come from the classes that hold them; a new file cannot be forgotten."""
    config = Config(Path("/s"), Path("/r"))
    paths, network = VmPaths(Path("/v"), Path("/v")), Files(Path("/r"), Path("/s"))
    names = {
        value.name
        for holder in (config, paths, network)
        for name in dir(type(holder))
        if isinstance(getattr(type(holder), name), property)
        for value in [getattr(holder, name)]
        if isinstance(value, Path)
    }
    text = (ROOT / "docs" / "internals.md").read_text()
    assert len(names) > 15
    assert [name for name in sorted(names) if name not in text] == []


@pytest.mark.parametrize(
    ("script", "document"),
    [("cli_reference.py", "cli.md"), ("configuration.py", "configuration.md")],
)
def test_the_reference_is_what_the_code_says(script, document):
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / script], capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs" / "reference" / document).read_text() == made, "run: make reference"


def test_every_configuration_key_has_a_meaning_and_no_other_word_has_one():
    from banger.host.config import KEYS
    from banger.host.config_help import FOUND, MEANINGS, explain

    assert list(MEANINGS) == list(KEYS)
    assert set(FOUND) < set(KEYS)
    assert all(one.kind and one.default and one.meaning for one in explain())


def kinds_of_error(kind=BangerError):
    """Every class of error by its name, with the next step that it has of itself."""
    found = {kind.__name__: kind.next_step}
    for below in kind.__subclasses__():
        found |= kinds_of_error(below)
    return found


def test_every_error_has_a_next_step():
    """Where an error is made it is given a hint, unless its class has one."""
    for module in pkgutil.walk_packages(banger.__path__, "banger."):
        importlib.import_module(module.name)
    kinds = {**kinds_of_error(), "ErrorRecord": ""}
    found = []
    for name in tracked():
        if not name.startswith("src/banger/") or not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            made = (
                getattr(node.func, "id", getattr(node.func, "attr", ""))
                if isinstance(node, ast.Call)
                else ""
            )
            if kinds.get(made) == "" and len(node.args) < 4:
                hints = [word for word in node.keywords if word.arg in {"hint", None}]
                if not hints or getattr(hints[0].value, "value", "something") == "":
                    found.append(f"{name}:{node.lineno}: {ast.unparse(node)[:100]}")
    assert found == []


def test_no_module_has_outgrown_its_limit():
    long = {
        name: lines
        for name in tracked()
        if name.startswith(("src/", "bench/", "scripts/")) and name.endswith((".py", ".sh"))
        if (lines := len((ROOT / name).read_text().splitlines())) > MAX_LINES
    }
    assert long == {}


def test_nothing_generated_is_tracked():
    assert [name for name in tracked() if GENERATED.search(name)] == []


def test_no_file_names_a_registry_or_a_path_of_one_machine():
    found = []
    for name in tracked():
        text = (ROOT / name).read_text(errors="replace")
        found += [f"{name}: {match[0]}" for match in FOREIGN.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    "name",
    [n for n in [*tracked(), ".ci/run"] if n.endswith((".sh", "/run")) and "/profile.d/" not in n],
)
def test_a_script_stops_at_the_first_error(name):
    lines = (ROOT / name).read_text().splitlines()
    first = next(line for line in lines if line.strip() and not line.startswith("#"))
    assert first == ("set -euo pipefail" if "bash" in lines[0] else "set -eu")


@pytest.mark.parametrize("name", [n for n in tracked() if n.startswith(("scripts/", ".ci/"))])
def test_scripts_are_executable_if_they_say_so(name):
    path = ROOT / name
    assert path.read_bytes().startswith(b"#!") == bool(path.stat().st_mode & 0o100)


def test_make_commands_in_documents_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {
        word
        for name in documents()
        for word in re.findall(r"(?:`| {4}|\$ )make ([a-z-]+)", (ROOT / name).read_text())
    }
    assert {"demo", "test"} <= used
    assert used <= targets


def test_links_between_documents_lead_somewhere():
    broken = []
    for name in documents():
        broken.extend(
            f"{name}: {target}"
            for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / name).read_text())
            if "://" not in target and not (ROOT / name).parent.joinpath(target).exists()
        )
    assert broken == []


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("kind", ["run", "dev", "build", "npm", "fuzz"])
def test_requirements_are_exact_and_have_hashes(kind):
    text = (ROOT / "requirements" / f"{kind}.txt").read_text()
    entries = text.replace("\\\n", " ").splitlines()
    assert entries
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._\[\]-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry
        assert "://" not in entry


def test_requirements_hold_every_dependency():
    def names(kind):
        text = (ROOT / "requirements" / f"{kind}.txt").read_text()
        return {normal(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}

    def wanted(entries):
        return {normal(re.match(r"[A-Za-z0-9._-]+", entry)[0]) for entry in entries}

    run = wanted(PROJECT["project"]["dependencies"])
    assert run <= names("run")
    assert run | wanted(PROJECT["dependency-groups"]["dev"]) <= names("dev")
    assert wanted(PROJECT["build-system"]["requires"]) <= names("build")


def test_bootstrap_installs_the_package_of_every_program_that_the_code_looks_for():
    sources = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    asked = set(re.findall(r'find_program\([^)]*package="([a-z0-9-]+)"', sources))
    script = (ROOT / "scripts" / "bootstrap.sh").read_text()
    assert len(asked) > 5
    assert [package for package in sorted(asked) if f"|{package}|" not in script] == []


def test_systemd_units_lead_to_the_daemon_and_leave_vms_alone():
    units = ROOT / "src" / "banger" / "daemon" / "systemd"
    service, listener = (
        (units / name).read_text() for name in ("bangerd.service", "bangerd.socket")
    )
    assert re.search(r"^ExecStart=/?\S*/bangerd$", service, re.MULTILINE)
    assert "bangerd" in PROJECT["project"]["scripts"]
    assert "\nKillMode=process\n" in service
    assert (
        f"\nListenStream=%t/banger/{Config(Path('/s'), Path('/r')).socket_path.name}\n" in listener
    )
    assert "\nSocketMode=0600\n" in listener
    assert "\nDirectoryMode=0700\n" in listener
