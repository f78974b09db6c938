"""What goes into every guest."""

import io
import json
import marshal
import subprocess
import sys
import tarfile
import zipfile

from banger.images.customize import write_payload
from banger.images.pack import EXECUTABLE, agent_zip, payload_files
from banger.images.recipe import load_recipe
from banger.images.resources import agent_dir, config_dir, payload_dir


def test_the_payload_has_settings_units_the_agent_and_the_services_of_the_recipe():
    files = payload_files(load_recipe("debian-base"))
    assert json.loads(files["etc/banger/services.json"]) == [{"name": "ssh", "port": 22}]
    assert {
        "etc/ssh/sshd_config.d/50-banger.conf",
        "etc/systemd/system/banger-agent.service",
        "usr/lib/banger/agent.pyz",
        "usr/lib/banger/finish.sh",
    } <= set(files)
    sshd = files["etc/ssh/sshd_config.d/50-banger.conf"].decode()
    assert "PermitRootLogin prohibit-password" in sshd
    assert "AuthorizedKeysFile .ssh/authorized_keys /etc/banger/authorized_keys" in sshd
    assert "Restart=always" in files["etc/systemd/system/banger-agent.service"].decode()


def payload_tar(path, files, epoch_s):
    write_payload(path, files, load_recipe("debian"), executable=EXECUTABLE, epoch_s=epoch_s)
    return path.read_bytes()


def test_programs_of_the_payload_can_be_executed_and_nothing_else(tmp_path):
    data = payload_tar(tmp_path / "tar", payload_files(load_recipe("debian")), 0)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        programs = {m.name for m in archive if m.mode & 0o111}
    assert programs == {
        "./usr/lib/banger/finish.sh",
        "./usr/lib/banger/opencode-server",
        "./usr/lib/systemd/system-shutdown/banger-poweroff",
    }


def test_the_tar_is_the_same_twice_and_roots(tmp_path):
    files = payload_files(load_recipe("debian"))
    data = payload_tar(tmp_path / "one", files, 1767225600)
    assert data == payload_tar(tmp_path / "two", dict(reversed(files.items())), 1767225600)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    assert {(m.uid, m.gid, m.mtime) for m in members} == {(0, 0, 1767225600)}
    assert {m.name.removeprefix("./") for m in members} == set(files)


def test_the_agents_zipapp_is_the_same_twice_and_holds_its_whole_package():
    data = agent_zip(agent_dir())
    assert data == agent_zip(agent_dir())
    names = set(zipfile.ZipFile(io.BytesIO(data)).namelist())
    assert names == {"__main__.py", *(f"banger_agent/{p.name}" for p in agent_dir().glob("*.py"))}


def test_sealing_compiles_the_agent_and_the_same_input_gives_the_same_bytes(tmp_path):
    sealed = []
    for hash_seed in ("0", "1"):
        path = tmp_path / f"agent{hash_seed}.pyz"
        path.write_bytes(agent_zip(agent_dir()))
        argv = [sys.executable, "-S", payload_dir() / "seal_agent.py", path]
        subprocess.run(argv, check=True, env={"PYTHONHASHSEED": hash_seed})
        sealed.append(path.read_bytes())
    assert sealed[0] == sealed[1]
    archive = zipfile.ZipFile(io.BytesIO(sealed[0]))
    assert all(name.endswith(".pyc") for name in archive.namelist())
    code = marshal.loads(archive.read("banger_agent/server.pyc")[16:])
    assert code.co_filename == "agent.pyz/banger_agent/server.py"


def test_a_sealed_agent_runs(tmp_path):
    path = tmp_path / "agent.pyz"
    path.write_bytes(agent_zip(agent_dir()))
    subprocess.run([sys.executable, "-S", payload_dir() / "seal_agent.py", path], check=True)
    say = f"import sys; sys.path.insert(0, {str(path)!r}); import banger_agent.server as s; print(s.__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", say], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{path}/banger_agent/server.pyc"


def test_the_config_of_a_checkout_is_found():
    assert (config_dir() / "images" / "debian.toml").is_file()


def test_another_agent_can_be_put_in_the_image(tmp_path):
    (tmp_path / "__main__.py").write_text("print('mine')")
    files = payload_files(load_recipe("debian"), tmp_path)
    with zipfile.ZipFile(io.BytesIO(files["usr/lib/banger/agent.pyz"])) as archive:
        assert archive.read("banger_agent/__main__.py") == b"print('mine')"
