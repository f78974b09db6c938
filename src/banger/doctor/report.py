"""Runs the checks and tells their answers: ``ok``, ``warn`` (something is lost) or ``fail`` (no VM can be had)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from banger.doctor.checks import Check
from banger.host.config import Config
from banger.host.probe import Answer


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome; ``detail`` is what was found or what is wrong, ``hint`` one next step."""

    name: str
    status: str
    detail: str
    without: str = ""
    hint: str = ""


def examine(checks: Iterable[Check], config: Config) -> list[Finding]:
    """Ask every check; one that breaks is a failure of its own and keeps no other from being asked."""
    return [_finding(check, config) for check in checks]


def _finding(check: Check, config: Config) -> Finding:
    try:
        answer = check.ask(config)
    except Exception as error:  # noqa: BLE001  said as the outcome of this check
        answer = Answer(
            ok=False, why=f"the check itself failed: {error}", hint="banger --debug doctor"
        )
    if answer.ok:
        return Finding(check.name, "ok", answer.found)
    status = "fail" if check.needed else "warn"
    return Finding(check.name, status, answer.why, check.without, answer.hint)


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
        lines += [f"{'':<6}{'':<{width}}  {line}" for line in told]
    return "\n".join(lines)
