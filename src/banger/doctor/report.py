"""Runs the checks and tells their answers: ``ok``, ``warn`` (something is lost), ``fail`` (no VM can be had) or ``skip`` (the question does not
arise).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from banger.doctor.check import Check, Skip
from banger.host import probe
from banger.host.config import Config
from banger.host.probe import Answer
from banger.model.errors import BangerError


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome; ``detail`` is what was found or what is wrong, ``hint`` one next step, ``source`` where the advice is from."""

    name: str
    status: str
    detail: str
    without: str = ""
    hint: str = ""
    source: str = ""


def examine(checks: Iterable[Check], config: Config) -> list[Finding]:
    """Ask every check; one that breaks is a failure of its own and keeps no other from being asked."""
    return [_finding(check, config) for check in checks]


def _finding(check: Check, config: Config) -> Finding:
    answer: Answer | Skip
    try:
        answer = check.ask(config)
    except Exception as error:  # noqa: BLE001  said as the outcome of this check
        answer = Answer(
            ok=False, why=f"the check itself failed: {error}", hint="banger --debug doctor"
        )
    if isinstance(answer, Skip):
        return Finding(check.name, "skip", answer.why, source=check.source)
    if answer.ok:
        return Finding(check.name, "ok", answer.found, source=check.source)
    status = "fail" if check.needed else "warn"
    return Finding(check.name, status, answer.why, check.without, answer.hint, check.source)


def mend(checks: Sequence[Check], findings: Sequence[Finding], config: Config) -> list[str]:
    """Do what can be done without harm about what was found; a sentence each. The host has to be examined again."""
    said = []
    for check, finding in zip(checks, findings, strict=True):
        if finding.status in {"ok", "skip"} or check.fix is None:
            continue
        if check.fixed_by_root and os.geteuid() != 0:
            said.append(f"{check.name}: only root can mend that")
            continue
        try:
            said.append(f"{check.name}: {check.fix(config)}")
        except (OSError, BangerError) as error:
            said.append(f"{check.name}: could not be mended: {error}")
    probe.forget()
    return said


def failed(findings: Iterable[Finding]) -> bool:
    """Whether this host can run no VM as it is."""
    return any(finding.status == "fail" for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    """The findings for programs: a list of objects."""
    return json.dumps([asdict(finding) for finding in findings], indent=2)


def as_text(findings: Sequence[Finding]) -> str:
    """The findings for people: a line each, then what is lost and one next step."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        first, *more = finding.detail.splitlines() or [""]
        lines.append(f"{finding.status:<4}  {finding.name:<{width}}  {first}".rstrip())
        told = [*more, *([f"then {finding.without}"] if finding.without else [])]
        told += [f"hint: {finding.hint}"] if finding.hint else []
        told += [f"see:  {finding.source}"] if finding.source and finding.hint else []
        lines += [f"{'':<6}{'':<{width}}  {line}" for line in told]
    return "\n".join(lines)
