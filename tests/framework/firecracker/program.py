"""The program: from the command line to the exit status."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from tests.framework.firecracker import command, host, official, schema
from tests.framework.firecracker.command import Arguments
from tests.framework.firecracker.ending import FatalError, die, panic
from tests.framework.firecracker.jsontext import JsonError
from tests.framework.firecracker.log import Log
from tests.framework.firecracker.play import Play, find
from tests.framework.firecracker.routes import FaultError
from tests.framework.firecracker.server import Server
from tests.framework.firecracker.shapes import LEVEL
from tests.framework.firecracker.vmm import Instance, Vmm

_LAST_ANSWER_S = 0.2  # the client gets to know why


def main(program: str, words: list[str], written: str = "{}") -> NoReturn:
    """Be Firecracker: ``program`` is argv[0], ``words`` the rest, ``written`` the play that the program brings along."""
    play = find(program, written)
    if play.exit_status is not None:
        sys.stderr.write(f"{play.exit_log}\n" if play.exit_log else "")
        sys.exit(play.exit_status)
    log = Log(command.DEFAULT_ID)
    try:
        status = _run(play, _arguments(words), log)
    except FatalError as error:
        log(error.message, "Error")
        sys.stderr.write(f"Error: {error.shown}\n")
        log(f"Firecracker exiting with error. exit_code={error.status}", "Error")
        sys.exit(error.status)
    if status < 0:
        die(signal.Signals(-status))
    log("Firecracker exiting successfully. exit_code=0")
    sys.exit(status)


def _arguments(words: list[str]) -> Arguments:
    try:
        return command.parse(words)
    except command.UsageError as error:
        # Firecracker does write backslashes.
        message = rf"Arguments parsing error: {error.message} \n\nFor more information try --help."
        raise FatalError(message, f"ParseArguments({error.shown})", command.ARG_PARSING) from error


def _run(play: Play, arguments: Arguments, log: Log) -> int:
    """The exit status, negative for a signal; FatalError."""
    shown = {"help": f"Firecracker v{play.version}\n\n{command.help_text()}", "version": f"Firecracker v{play.version}\n", "snapshot-version": f"v{play.snapshot_version}"}  # fmt: skip
    for flag, text in shown.items():
        if flag in arguments.flags:
            print(text, flush=True)  # before the log's line
            return command.OK
    if arguments["describe-snapshot"] is not None:
        raise FatalError("This stand-in has no snapshots of Firecracker's", "DescribeSnapshot")
    wrong = command.instance_id_error(arguments["id"] or "")
    if wrong:
        panic(f"Invalid instance ID: {wrong}", log)
    for name in command.NUMBERS:
        if not (arguments[name] or "0").isdigit():
            panic(f"'{name}' parameter expected to be of 'usize' type.", log)
    _configure_log(log, arguments)
    log(f"Running Firecracker v{play.version}")
    return asyncio.run(_serve(play, arguments, log))


def _configure_log(log: Log, arguments: Arguments) -> None:
    level = arguments["level"]
    try:
        known = None if level is None else LEVEL.check(level)
    except ValueError:
        why = f"Invalid value for logger level: Failed to parse string to level filter: {level}.Possible values: [Error, Warning, Info, Debug]"
        raise FatalError(why, f'InvalidLogLevel(LevelFilterFromStrError("{level}"))', command.BAD_CONFIGURATION) from None  # fmt: skip
    log.instance = arguments["id"] or ""
    flags = {name: True for name in ("show-level", "show-log-origin") if name in arguments.flags}
    shown = {name.replace("-", "_"): value for name, value in flags.items()}
    try:
        log.update(arguments["log-path"], known, module=arguments["module"], **shown)
    except OSError as error:
        why = f"Could not initialize logger: Failed to open target file: {host.said(error)}"
        raise FatalError(why, f"LoggerInitialization({error})") from error


async def _serve(play: Play, arguments: Arguments, log: Log) -> int:
    limit = int(arguments["http-api-max-payload-size"] or 0)
    mmds_limit = int(arguments["mmds-size-limit"] or limit)
    vmm = Vmm(Instance(arguments["id"] or "", play, log, mmds_limit))
    ended = _signals(log)
    server: asyncio.Task[None] | None = None
    try:
        _start_metrics(vmm, arguments)
        if "no-api" not in arguments.flags and play.binds:
            listener = _bind(arguments["api-sock"] or "", log)
            described = _official(log)
            server = asyncio.create_task(Server(vmm, play, log, described, limit).run(listener))
        if arguments["config-file"] is not None:
            await _boot_from_file(vmm, play, Path(arguments["config-file"]), log, "no-api" in arguments.flags)  # fmt: skip
        return await _until_the_end(vmm, ended, server, log)
    finally:
        if server is not None:
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)
        await vmm.close()


def _signals(log: Log) -> asyncio.Future[int]:
    """What Firecracker handles ends it with a status of its own; the rest does what it does by default."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(number: signal.Signals) -> None:
        log(f"Shutting down VM after intercepting signal {number.value}, code 0.", "Error")
        if not ended.done():
            ended.set_result(command.SIGNALS[number])

    for number in command.SIGNALS:
        loop.add_signal_handler(number, end, number)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return ended


def _start_metrics(vmm: Vmm, arguments: Arguments) -> None:
    if arguments["metrics-path"] is not None:
        try:
            vmm.init_metrics(arguments["metrics-path"])
        except FaultError as error:
            why = error.message.removeprefix("Metrics error: ")
            raise FatalError(f"Could not initialize metrics: {why}", f'MetricsInitialization("{why}")') from error  # fmt: skip


def _bind(path: str, log: Log) -> socket.socket:
    try:
        listener = host.listen(path)
    except ValueError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE:
            why = f"Failed to open the API socket at: {path}. Check that it is not already used."
            raise FatalError(f"RunWithApiError error: {why}", f'RunWithApi(FailedToBindSocket("{path}"))') from error  # fmt: skip
        why = f"Failed to bind and run the HTTP server: IO error: {error}"
        raise FatalError(f"RunWithApiError error: {why}", f"RunWithApi(FailedToBindAndRunHttpServer({error}))") from error  # fmt: skip
    log(f'Listening on API socket ("{path}").')
    return listener


def _official(log: Log) -> official.Official | None:
    """The official description, if it is on this machine."""
    answer = official.there()
    if not answer:
        log(f"{answer.why}: requests are checked by the stand-in's own rules alone", "Warn")
        return None
    return official.read(Path(answer.found))


async def _boot_from_file(vmm: Vmm, play: Play, path: Path, log: Log, without_api: bool) -> None:
    kind, prefix = ("RunWithoutApiError", "BuildMicroVMFromJson") if without_api else ("RunWithApi", "BuildFromJson")  # fmt: skip
    try:
        text = path.read_bytes()
    except OSError as error:
        panic(f"Unable to open or read from the configuration file: {host.said(error)}", log)
    what = "Configuration for VMM from one single json failed:"
    try:
        _configure(vmm, schema.CONFIG_FILE.decode(text, play.numbers))
        what = "Could not Start MicroVM from one single json:"
        await vmm.start()
    except (FaultError, JsonError) as error:
        why = (
            f"Invalid JSON: {error.placed(text)}" if isinstance(error, JsonError) else error.message
        )
        message = f"{kind.removesuffix('Error')}Error error: Failed to build MicroVM from Json: {what} {why}"  # fmt: skip
        raise FatalError(message, f"{kind}({prefix}({json.dumps(why)}))") from error


def _configure(vmm: Vmm, values: dict[str, object]) -> None:
    """What the file says, in Firecracker's order."""
    put = vmm.file_handlers()
    for key, handler in put.items():
        value = values.get(key)
        for entry in value if isinstance(value, list) else [value] if value is not None else []:
            handler(entry)


async def _until_the_end(
    vmm: Vmm, ended: asyncio.Future[int], server: asyncio.Task[None] | None, log: Log
) -> int:
    """The exit status: the guest's end, a signal, or a server that has broken; FatalError."""
    started = asyncio.create_task(vmm.started.wait(), name="started")
    waiting: set[asyncio.Future[Any]] = {ended, vmm.broken, *([server] if server else [])}
    try:
        await asyncio.wait({started, *waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        started.cancel()
    if vmm.machine is not None:
        await asyncio.wait({vmm.machine.ended, *waiting}, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        return ended.result()
    if vmm.broken.done():
        await asyncio.sleep(_LAST_ANSWER_S)
        why = f"Failed to build MicroVM: {vmm.broken.result()}."
        raise FatalError(f"RunWithApiError error: {why}", "RunWithApi(BuildMicroVmError(Restore))")
    if vmm.machine is not None and vmm.machine.ended.done():
        log("Vmm is stopping.")
        return vmm.machine.ended.result()
    if server is not None:
        server.result()
    return command.UNEXPECTED_ERROR
