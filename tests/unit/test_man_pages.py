"""The manual pages: one for each command, made from it, and such that groff has nothing to say."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from banger.cli.app import cli
from banger.cli.lazy import walk
from banger.host.config import KEYS

ROOT = Path(__file__).parents[2]
REQUESTS = {".TH", ".SH", ".PP", ".TP", ".B", ".BR", ".nf", ".fi"}


@pytest.fixture(scope="module")
def manual(tmp_path_factory):
    directory = tmp_path_factory.mktemp("man")
    script = ROOT / "scripts" / "man_pages.py"
    subprocess.run([sys.executable, script, directory], check=True, capture_output=True)
    return directory


def test_every_command_has_a_page_with_each_of_its_options(manual):
    for path, command in walk(cli, ["banger"]):
        text = (manual / "man1" / f"{'-'.join(path)}.1").read_text().replace("\\-", "-")
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert all(name in text for name in parameter.opts), (path, parameter.opts)
    assert {path.name for path in (manual / "man8").iterdir()} == {"bangerd.8", "banger-helper.8"}


def test_the_page_of_the_configuration_has_every_key_and_no_markdown(manual):
    text = (manual / "man5" / "banger-config.5").read_text()
    assert re.findall(r"^\.TP\n\.B ([a-z_]+)$", text, re.MULTILINE) == list(KEYS)
    assert "](" not in text
    assert "`" not in text


def test_pages_refer_to_pages_that_exist(manual):
    for page in manual.rglob("*.?"):
        found = re.findall(r"^\.BR (\S+) \((\d)\)", page.read_text(), re.MULTILINE)
        assert found, page
        for name, section in found:
            there = f"man{section}/{name}.{section}".replace("\\-", "-")
            assert (manual / there).is_file(), (page.name, there)


def test_pages_use_only_macros_that_man_knows_and_groff_has_no_warning(manual):
    pages = sorted(manual.rglob("*.?"))
    for page in pages:
        requests = {
            line.split()[0] for line in page.read_text().splitlines() if line.startswith((".", "'"))
        }
        assert requests <= REQUESTS, page
        assert page.read_text().isascii(), page
    if shutil.which("groff"):  # not on every host; the rest of this test needs none
        said = subprocess.run(
            ["groff", "-man", "-Tascii", "-ww", "-z", *pages], capture_output=True, text=True, check=True
        )  # fmt: skip
        assert said.stderr == ""
