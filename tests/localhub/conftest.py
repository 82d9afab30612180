"""A Hub for the whole test session, and the official client set to it."""
import os
import re
import subprocess
import sys
import time

import pytest
from hub_process import TOKENS, Server

@pytest.fixture(scope="session")
def server(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("hub"))
    yield s
    s.stop()


@pytest.fixture(scope="session")
def client_env(server, tmp_path_factory):
    """The environment for client libraries in a process of their own: they read it once, when imported."""
    home = tmp_path_factory.mktemp("home")
    drop = {k for k in os.environ if k.startswith(("HF_", "HUGGING"))}
    return {k: v for k, v in os.environ.items() if k not in drop} | dict(
        HF_ENDPOINT=server.url, HF_TOKEN=TOKENS["you"], HF_HOME=str(home), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_UPDATE_CHECK="1", HF_UPDATE_DOWNLOAD_COUNTS="0", HF_HUB_DISABLE_PROGRESS_BARS="1", NO_PROXY="127.0.0.1,localhost")


@pytest.fixture(scope="session")
def run(client_env, tmp_path_factory):
    """Run Python code that uses the official libraries; returns what it prints."""
    cwd = tmp_path_factory.mktemp("cwd")

    def go(code, **env):
        r = subprocess.run([sys.executable, "-c", code], env=client_env | env, cwd=cwd, capture_output=True, text=True, timeout=300)
        assert r.returncode == 0, r.stderr[-3000:]
        return r.stdout

    return go


@pytest.fixture(scope="session")
def apis(server, tmp_path_factory):
    """The official client as `you`, `ann` and nobody, with a cache of its own and without Xet."""
    from huggingface_hub import HfApi, constants

    old = constants.HF_HUB_CACHE, constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_CACHE, constants.HF_HUB_DISABLE_XET = str(tmp_path_factory.mktemp("cache")), True
    yield {name: HfApi(endpoint=server.url, token=token) for name, token in [*TOKENS.items(), ("nobody", False)]}
    constants.HF_HUB_CACHE, constants.HF_HUB_DISABLE_XET = old


@pytest.fixture(scope="session")
def api(apis):
    return apis["you"]


@pytest.fixture
def repo(api, request):
    """A fresh model repo."""
    name = "you/" + re.sub(r"\W+", "-", request.node.name)[:60].strip("-") + f"-{time.time_ns() % 10**9}"
    api.create_repo(name)
    return name


@pytest.fixture(scope="session")
def http(server):
    """Raw HTTP as `you`, for what no client would send."""
    import httpx

    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {TOKENS['you']}"}, timeout=30, trust_env=False) as c:
        yield c


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    "No token of another Hub in the environment: these tests name theirs."
    monkeypatch.delenv("HF_TOKEN", raising=False)
