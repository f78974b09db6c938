"""A reader of a document: runs its commands in a shell, and compares what they print with what the document says."""

import re
import subprocess
import sys
from pathlib import Path

from tests.framework.documents import GUEST_PROMPT, ROOT, commands
from tests.framework.installation import wait_until
from tests.framework.terminal import Terminal

NUMBER = re.compile(r"\d+(\.\d+)*")


class Reader:
    """A shell whose ``banger`` is that of ``installation``, in a home of its own."""

    def __init__(self, installation):
        self.home = Path(installation.directory) / "home"
        programs = self.home / "bin"
        programs.mkdir(parents=True)
        (programs / "banger").write_text(
            f'#!/bin/sh\nexec {sys.executable} -m banger.cli.main "$@"\n'
        )
        (programs / "banger").chmod(0o755)
        self.env = {
            **installation.env,
            "HOME": str(self.home),
            "PATH": f"{programs}:{installation.env['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
            "TERM": "dumb",
        }

    def follow(self, name, *, left_out=(), words=()):
        """Run the commands of ``name``, one after the other, but those that a pattern of ``left_out`` is found in. One that
        fails, or prints something else than the document says, is an AssertionError. ``words`` are placeholders and what
        stands for them. Returns the commands that were run, with what they printed.
        """
        told = []
        for command in commands(name):
            if any(re.search(pattern, command.text) for pattern in left_out):
                continue
            text = command.text
            for placeholder, value in words:
                text = re.sub(rf"(?<!\w){re.escape(placeholder)}(?!\w)", value, text)
            said = self._typed(text, command.typed) if command.typed else self.run(text)
            told.append((command, said))
            print(f"$ {text}\n{said}", end="")
            shown = "\n".join(command.output)
            assert alike(command.output, said), f"{command}\nsays:\n{shown}\nprinted:\n{said}"
        return told

    def run(self, text):
        """What ``text`` prints, on both streams. What it exports, the commands after it have."""
        if text.startswith("export "):
            after = self.run(f"true; {text}; env -0")
            self.env = dict(entry.split("=", 1) for entry in after.split("\0") if "=" in entry)
            return ""
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", text], env=self.env, cwd=self.home, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}: status {done.returncode}\n{done.stdout}"
        return done.stdout

    def _typed(self, text, lines):
        """What is on the terminal at the end of ``text``, when ``lines`` were typed at their prompts."""
        with Terminal(["bash", "-c", text], env=self.env, cols=200) as screen:
            for number, line in enumerate(lines):
                prompt = GUEST_PROMPT.match(line)[0]
                wait_until(
                    lambda prompt=prompt, number=number: screen.screen.count(prompt) > number, 60,
                    f"no prompt {prompt!r} for {line!r}",
                )  # fmt: skip
                screen.type(line.removeprefix(prompt) + "\r")
            assert screen.process.wait(60) == 0, screen.screen
            return screen.whole().replace("\r\n", "\n")


def alike(expected, said):
    """Whether what was printed has the lines ``expected``, in their order, but for numbers, ids, times, blanks and the details of
    stages: other hosts, other days. ``...`` stands for anything.
    """
    found = iter(said.splitlines())
    return all(any(_same(line, other) for other in found) for line in expected)


def _same(expected, said):
    parts = [_plain(part) for part in expected.split("...")]
    return re.fullmatch(r"\s?.*\s?".join(map(re.escape, parts)), _plain(said)) is not None


def _plain(line):
    line = re.sub(r"\b(?=[a-z]*\d)[0-9a-f]{12}\b|\d{4}-\d\d-\d\dT\S+", "#", line)
    line = NUMBER.sub("#", line)
    line = re.sub(r"# (min|h|d) # (s|min|h)\b|# (ms|s)\b", "# t", " ".join(line.split()))
    return re.sub(r"^(\w+ … # t) .*", r"\1", line)  # what a stage says of itself is the host's
