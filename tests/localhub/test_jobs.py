"""Jobs and their schedules through the official client and the `hf` command; what a Hub that dies leaves; the pages."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from hub_process import TOKENS, Server
from huggingface_hub import HfApi, Volume
from huggingface_hub.errors import HfHubHTTPError

PY = "python:3.12"
HF = Path(sys.executable).with_name("hf")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("jobs"), "--jobs")
    yield s
    s.stop()


@pytest.fixture(scope="module")
def you(hub):
    return HfApi(hub.url, token=TOKENS["you"])


@pytest.fixture(scope="module")
def raw(hub):
    with httpx.Client(base_url=hub.url, headers={"Authorization": f"Bearer {TOKENS['you']}"}, timeout=30, trust_env=False) as c:
        yield c


def py(api, code, **kw):
    return api.run_job(image=PY, command=["python", "-c", code], namespace=kw.pop("namespace", "you"), **kw)


def ended(api, job, namespace="you"):
    return api.wait_for_job(job.id, poll_interval=0.1, timeout=60, namespace=namespace)


def logs(api, job, **kw):
    return list(api.fetch_job_logs(job_id=job.id, namespace="you", **kw))


@pytest.fixture(scope="module")
def hf(hub, tmp_path_factory):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))} | dict(
        HF_ENDPOINT=hub.url, HF_TOKEN=TOKENS["you"], HF_HOME=str(tmp_path_factory.mktemp("home")), HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_UPDATE_CHECK="1", HF_HUB_DISABLE_EXPERIMENTAL_WARNING="1", NO_PROXY="127.0.0.1")

    def go(*args, code=0):
        r = subprocess.run([HF, "jobs", *args], env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        assert r.returncode == code, r.stdout + r.stderr
        return r.stderr if code else r.stdout

    return go


def test_a_hub_that_was_not_told_to_runs_none(api, http):
    for refused in (lambda: py(api, "print(1)"), lambda: api.create_scheduled_job(image=PY, command=["true"], schedule="@daily", namespace="you")):
        with pytest.raises(HfHubHTTPError, match="started without --jobs"):
            refused()
    assert http.get("/api/jobs/you").json() == []


def test_command_line(hf, you):
    said = hf("run", "--name", "sum", "-e", "A=40", PY, "python", "-c", "import os; print(int(os.environ['A']) + 2)")
    id = re.search("[0-9a-f]{24}", said)[0]
    assert "\n42\n" in said and f"Job {id} completed" in said
    assert "exit code 3" in hf("run", PY, "python", "-c", "raise SystemExit(3)", code=1)
    assert hf("logs", id).strip() == "42" and json.loads(hf("inspect", id, "--format", "json"))[0]["environment"] == {"A": "40"}
    assert id in hf("ps", "-a", "--name", "sum") and you.list_jobs_hardware()[0].name == "cpu-basic"


def test_uv_runs_where_it_is_installed(you):
    pytest.importorskip("uv")
    job = you.run_uv_job("python", script_args=["-c", "print(6 * 7)"], namespace="you", env={"UV_OFFLINE": "1"})
    assert ended(you, job).status.stage == "COMPLETED", logs(you, job)
    assert logs(you, job)[-1] == "42"


def test_variables_and_secrets(you, raw, hub):
    env = {"A": "ä\n'\"$HOME", "N": 3}
    job = py(you, "import os, json; e = os.environ; print(json.dumps([e['A'], e['N'], len(e['KEY']), e['JOB_ID'], e['HF_ENDPOINT'], 'HF_TOKEN' in e]))",
             env=env, secrets={"KEY": "hush-hush-hush"})
    info = ended(you, job)
    assert json.loads(logs(you, job)[0]) == [env["A"], "3", 14, job.id, hub.url, False]
    assert info.secrets == {"KEY": "***"} and info.environment == {"A": env["A"], "N": "3"}
    shown = [raw.get(f"/api/jobs/you{p}").text for p in ("", f"/{job.id}", f"/{job.id}/logs", f"/{job.id}/events")]
    assert not any("hush-hush" in s for s in shown) and '"stage": "COMPLETED"' in shown[3]
    again = you.rerun_job(job_id=job.id, namespace="you")
    ended(you, again)
    assert json.loads(logs(you, again)[0])[2] == 14 and again.initiator.type == "duplicated-job" and again.initiator.id == job.id


def test_the_folder_goes_and_the_log_stays(you, hub):
    job = py(you, "open('result', 'w').write('x'); import os; print(os.getcwd())")
    ended(you, job)
    assert not Path(logs(you, job)[0]).exists() and [p.name for p in (hub.data / "jobs" / job.id).iterdir()] == ["log"]


def test_log_tail_and_following(you):
    job = py(you, "import time\nfor i in range(8): print(i, flush=True); time.sleep(.1)")
    assert [line for line in logs(you, job, follow=True)] == [str(i) for i in range(8)]
    assert logs(you, job, tail=3) == ["5", "6", "7"] and logs(you, job) == [str(i) for i in range(8)]
    assert list(you.fetch_job_metrics(job_id=job.id, namespace="you")) == []


def test_queue_and_cancel(you):
    n = os.cpu_count()
    jobs = [py(you, "import os, time; print(os.getpid(), flush=True); time.sleep(60)", labels={"set": "queue"}) for _ in range(n + 1)]
    first, last = jobs[0], jobs[-1]
    pid = int(next(you.fetch_job_logs(job_id=first.id, namespace="you", follow=True)))
    assert psutil.pid_exists(pid)
    stage = lambda j: you.inspect_job(job_id=j.id, namespace="you").status
    assert stage(last).stage == "SCHEDULING" and "waits" in stage(last).message and stage(first).stage == "RUNNING"
    listed = lambda *s: {j.id for j in you.list_jobs(status=list(s), labels={"set": "queue"}, namespace="you", token=TOKENS["you"])}
    assert listed("SCHEDULING") == {last.id} and listed("running") == {j.id for j in jobs[:-1]}
    usage = next(you.fetch_job_metrics(job_id=first.id, namespace="you"))
    assert usage["cpu_millicores"] == 1000 * n and 0 < usage["memory_used_bytes"] < usage["memory_total_bytes"]
    you.cancel_job(job_id=first.id, namespace="you")
    assert stage(first).stage == "CANCELED" and stage(last).stage == "RUNNING"
    for j in jobs:
        you.cancel_job(job_id=j.id, namespace="you")
    assert listed("CANCELED") == {j.id for j in jobs}
    assert not psutil.pid_exists(pid)


def test_pages_of_a_list_and_labels(you, raw):
    jobs = [py(you, "print(1)", labels={"set": "paged", "n": str(i)}) for i in range(3)]
    seen, url = [], "/api/jobs/you?label=set%3Dpaged&limit=1"
    while url:
        r = raw.get(url)
        seen += [j["id"] for j in r.json()]
        url = r.links.get("next", {}).get("url")
    assert seen == [j.id for j in reversed(jobs)]
    info = you.update_job_labels(job_id=jobs[0].id, labels={"set": "other"}, namespace="you")
    assert info.labels == {"set": "other"} and raw.get("/api/jobs/you?label=set%3Dpaged&label=n%3D0").json() == []


def test_buckets_as_volumes(you, hub):
    pytest.importorskip("hf_xet")
    ann = HfApi(hub.url, token=TOKENS["ann"])
    b, hers = you.create_bucket("mounted", private=True).bucket_id, ann.create_bucket("hers").bucket_id
    for api, bucket in ((you, b), (ann, hers)):
        api.batch_bucket_files(bucket, add=[(b"1", "in/a.txt"), (b"2", "in/b.txt"), (b"3", "in/sub/c.txt"), (b"", "in/empty"), (b"4", "inside.txt")])
    files = lambda: {f.path: f.size for f in you.list_bucket_tree(b)}
    before = files()
    mount = lambda source, path="/in", **kw: Volume(type="bucket", source=source, mount_path=path, path="in", **kw)
    change = "import os, sys; os.chdir(sys.argv[1]); print(sorted(os.listdir())); os.remove('b.txt'); open('sub/c.txt', 'w').write('three'); "
    change += "os.mkdir('new'); open('new/d.txt', 'w').write('four'); os.symlink('/etc/hostname', 'new/link'); sys.exit(3)"
    go = lambda *volumes: ended(you, you.run_job(image=PY, command=["python", "-c", change, "/in"], volumes=list(volumes), namespace="you"))
    job = go(mount(b, read_only=True), mount(hers, "/hers"))
    assert (job.status.stage, logs(you, job)[0], files()) == ("ERROR", "['a.txt', 'b.txt', 'empty', 'sub']", before)
    assert [v.read_only for v in job.volumes] == [True, True]
    assert not go(mount(b)).volumes[0].read_only
    assert files() == {"in/a.txt": 1, "in/empty": 0, "in/new/d.txt": 4, "in/sub/c.txt": 5, "inside.txt": 1}
    assert "there is nothing in `none`" in go(Volume(type="bucket", source=b, mount_path="/in", path="none")).status.message
    for source, status in ((hers, "403"), (b + "-absent", "404")):
        with pytest.raises(HfHubHTTPError, match=status):
            go(mount(source, read_only=False))


def test_uv_runs_a_local_script(hf, you, tmp_path):
    pytest.importorskip("uv")
    pytest.importorskip("hf_xet")
    (tmp_path / "go.py").write_text("import sys\nfrom pathlib import Path\nPath(__file__).with_name('out.txt').write_text(Path(sys.argv[1]).read_text() * 2)\nprint('done')\n")
    (tmp_path / "in.txt").write_text("ab")
    assert "done" in hf("uv", "run", "--namespace", "you", "-e", "UV_OFFLINE=1", str(tmp_path / "go.py"), str(tmp_path / "in.txt"))
    out = next(f for f in you.list_bucket_tree("you/jobs-artifacts") if f.path.endswith("/out.txt"))
    you.download_bucket_files("you/jobs-artifacts", [(out, tmp_path / "out.txt")])
    assert (tmp_path / "out.txt").read_text() == "abab"


def test_spaces_and_volumes(you):
    ann = HfApi(you.endpoint, token=TOKENS["ann"])
    for api, owner, private in ((you, "you", True), (ann, "ann", True)):
        api.create_repo(f"{owner}/files", repo_type="space", space_sdk="static", private=private, exist_ok=True)
        api.upload_file(repo_id=f"{owner}/files", repo_type="space", path_in_repo="sub/x.txt", path_or_fileobj=b"from the Space")
    cat = dict(command=["cat", "sub/x.txt"], namespace="you")
    job = you.run_job(image="hf.co/spaces/you/files", **cat)
    assert ended(you, job).space_id == "you/files" and logs(you, job) == ["from the Space"]
    mount = lambda source, **kw: Volume(type="space", source=source, mount_path="/in", **kw)
    job = you.run_job(image=PY, command=["sh", "-c", "cat $FILE $0", "/in/x.txt"], env={"FILE": "/in/x.txt"}, volumes=[mount("you/files", path="sub")], namespace="you")
    assert ended(you, job).volumes[0].read_only and logs(you, job) == ["from the Spacefrom the Space"]
    for refused, status in ((lambda: you.run_job(image="hf.co/spaces/ann/files", **cat), "404"),
                            (lambda: you.run_job(image=PY, volumes=[mount("ann/files")], **cat), "404"),
                            (lambda: you.run_job(image=PY, volumes=[mount("you/files", revision="absent")], **cat), "404"),
                            (lambda: you.run_job(image=PY, volumes=[mount("you/files", read_only=False)], **cat), "only be mounted read-only")):
        with pytest.raises(HfHubHTTPError, match=status):
            refused()


def test_jobs_of_others_do_not_exist(you, hub):
    ann, nobody = HfApi(hub.url, token=TOKENS["ann"]), HfApi(hub.url, token=False)
    job = py(you, "print(1)", namespace="hfflow")
    ended(you, job, "hfflow")
    assert job.owner.type == "org" and you.inspect_job(job_id=job.id, namespace="hfflow").initiator.name == "you"
    for api, status in ((ann, 404), (nobody, 401)):
        for call in (api.inspect_job, api.cancel_job, api.rerun_job, lambda **kw: list(api.fetch_job_logs(**kw))):
            with pytest.raises(HfHubHTTPError) as e:
                call(job_id=job.id, namespace="hfflow")
            assert e.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="403"):
        py(ann, "print(1)", namespace="hfflow")
    with pytest.raises(HfHubHTTPError, match="404"):
        you.inspect_job(job_id=job.id, namespace="you")


GOOD = dict(command=["true"], arguments=[], environment={}, flavor="cpu-basic", dockerImage=PY)


@pytest.mark.parametrize("change,status", [
    (dict(command=[]), 400), (dict(command="true"), 400), (dict(command=["a\0b"]), 400), (dict(command=["\ud800"]), 400), (dict(command=["x" * 200_000]), 400),
    (dict(arguments=["x" * 90_000] * 20), 400), (dict(dockerImage=None), 400), (dict(spaceId="you/x"), 400), (dict(environment={"A=B": "c"}), 400),
    (dict(environment={"A": None}), 400), (dict(environment=["A"]), 400), (dict(secrets={"": "x"}), 400), (dict(flavor="h200x8"), 400), (dict(flavor=["x"]), 400),
    (dict(timeoutSeconds=0), 400), (dict(timeoutSeconds=float("nan")), 400), (dict(timeoutSeconds=10**400), 400), (dict(timeoutSeconds=True), 400),
    (dict(attempts=1000), 400), (dict(labels={"a b": "c"}), 400), (dict(labels={"a": 1}), 400), (dict(volumes=[1]), 400), (dict(volumes={}), 200), (dict(volumes=[dict(type=[], source="you/x", mountPath="/x")]), 400),
    (dict(volumes=[dict(type="bucket", source="you/absent", mountPath="/data")]), 404), (dict(volumes=[dict(type="model", source=3, mountPath="/data")]), 400),
    (dict(volumes=[dict(type="model", source="you/absent", mountPath="/data")]), 404), (dict(expose=dict(ports=[80], portsPublic=[])), 501),
    (dict(expose=dict(ports=[], portsPublic=[])), 200), (dict(ssh=dict(enabled=True)), 501), (dict(network=dict(group="x")), 501)])
def test_bad_input(raw, change, status):
    r = raw.post("/api/jobs/you", content=json.dumps(GOOD | change), headers={"Content-Type": "application/json"})
    assert r.status_code == status and (status == 200 or len(r.json()["error"]) > 10), r.text


@pytest.mark.parametrize("path", ["../../../etc", "/", "//x", "/a/../..", "relative"])
def test_mount_paths(raw, you, path):
    you.create_repo("you/mounted", exist_ok=True)
    assert raw.post("/api/jobs/you", json=GOOD | dict(volumes=[dict(type="model", source="you/mounted", mountPath=path)])).status_code == 400


@pytest.mark.parametrize("method,path,status", [("GET", "?stage=NOW", 400), ("GET", "?label=x", 400), ("GET", "?cursor=x", 400), ("GET", "/absent", 404), ("POST", "/absent/cancel", 404)])
def test_bad_addresses(raw, method, path, status):
    assert raw.request(method, f"/api/jobs/you{path}").status_code == status


def test_schedules(hf, you, raw):
    id = re.search("[0-9a-f]{24}", hf("scheduled", "run", "--name", "nightly", "0 3 * * *", PY, "python", "-c", "import time; time.sleep(60)"))[0]
    s = you.inspect_scheduled_job(scheduled_job_id=id, namespace="you")
    assert (s.schedule, s.suspend, s.concurrency, s.job_spec.labels["name"]) == ("0 3 * * *", False, False, "nightly")
    assert (s.status.next_job_run_at.hour, s.status.next_job_run_at.minute, s.status.last_job) == (3, 0, None)
    assert "nightly" in hf("scheduled", "ps")
    kw = dict(scheduled_job_id=id, namespace="you")
    you.suspend_scheduled_job(**kw)
    assert you.inspect_scheduled_job(**kw).status.next_job_run_at is None
    you.resume_scheduled_job(**kw)
    assert you.update_scheduled_job_schedule(**kw, schedule="@hourly").status.next_job_run_at.minute == 0
    job = you.trigger_scheduled_job(**kw)
    assert job.initiator.type == "scheduled-job" and you.inspect_scheduled_job(**kw).status.last_job.id == job.id
    with pytest.raises(HfHubHTTPError, match="409"):
        you.trigger_scheduled_job(**kw)
    you.cancel_job(job_id=job.id, namespace="you")
    assert you.update_scheduled_job_labels(**kw, labels={"a": "b"}).job_spec.labels == {"a": "b"}
    assert [x.id for x in you.list_scheduled_jobs(labels={"a": "b"}, namespace="you")] == [id]
    with pytest.raises(HfHubHTTPError, match="404"):
        HfApi(you.endpoint, token=TOKENS["ann"]).inspect_scheduled_job(**kw)
    you.delete_scheduled_job(**kw)
    with pytest.raises(HfHubHTTPError, match="404"):
        you.inspect_scheduled_job(**kw)
    for body in ({}, dict(jobSpec=GOOD), dict(jobSpec=GOOD, schedule="0 0 30 2 *"), dict(jobSpec=GOOD, schedule="* * * * * *"), dict(jobSpec=[], schedule="@daily"),
                 dict(jobSpec=GOOD, schedule="@daily", suspend="no"), dict(jobSpec=GOOD, schedule="\ud800")):
        assert raw.post("/api/scheduled-jobs/you", content=json.dumps(body)).status_code == 400, body


def test_a_killed_hub(tmp_path):
    s = Server(tmp_path, "--jobs")
    api = HfApi(s.url, token=TOKENS["you"])
    n = os.cpu_count()
    jobs = [py(api, "import os, time; print(os.getpid(), flush=True); time.sleep(60)") for _ in range(n)] + [py(api, "print('later')")]
    pid = int(next(api.fetch_job_logs(job_id=jobs[0].id, namespace="you", follow=True)))
    every = api.create_scheduled_job(image=PY, command=["python", "-c", "print('scheduled')"], schedule="* * * * *", namespace="you")
    s.kill()
    end = time.time() + 15
    while psutil.pid_exists(pid) and time.time() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)
    s = Server(tmp_path, "--jobs")
    try:
        api = HfApi(s.url, token=TOKENS["you"])
        states = [api.inspect_job(job_id=j.id, namespace="you").status for j in jobs[:n]]
        assert [(x.stage, x.message) for x in states] == [("ERROR", "the Hub stopped while it ran")] * n
        assert ended(api, jobs[-1]).status.stage == "COMPLETED" and logs(api, jobs[-1]) == ["later"]
        assert [p.name for j in jobs for p in (tmp_path / "jobs" / j.id).iterdir()] == ["log"] * (n + 1)
        assert api.inspect_scheduled_job(scheduled_job_id=every.id, namespace="you").schedule == "* * * * *"
    finally:
        s.stop()


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_pages_in_a_browser(hub, you):
    sync_api = pytest.importorskip("playwright.sync_api")
    bad = py(you, "print('<script>window.hacked=1</script><img src=x onerror=window.hacked=2>')", name="b")
    live = py(you, "import itertools, time\nfor i in itertools.count(): print('step', i, '<i>', flush=True); time.sleep(.05)", env={"X": "<script>window.hacked=3</script>"})
    ended(you, bad)
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        page = b.new_page(viewport=dict(width=360, height=800), color_scheme="dark")
        page.goto(hub.url + "/login")
        page.fill("input[name=token]", TOKENS["you"])
        page.keyboard.press("Enter")
        page.wait_for_url(hub.url + "/")
        seen = []
        page.on("console", lambda m: seen.append(m.text))
        page.on("pageerror", lambda e: seen.append(str(e)))
        for u in ("/jobs", "/jobs/you?stage=completed", f"/jobs/you/{bad.id}", f"/jobs/you/{live.id}"):
            assert page.goto(hub.url + u).status == 200
            assert page.evaluate("window.hacked") is None and page.evaluate("document.documentElement.scrollWidth") <= 360, u
        log = page.locator("#log")
        page.wait_for_function("document.getElementById('log').textContent.includes('step 30 ')")
        assert "<i>" in log.inner_text()
        page.get_by_role("button", name="Cancel this Job").click()
        page.wait_for_selector(".state.CANCELED")
        assert page.locator("script").count() == page.get_by_role("button", name="Cancel this Job").count() == 0
        assert not seen, seen
        b.close()
    with httpx.Client(base_url=hub.url, trust_env=False) as c:
        assert c.get("/jobs/you").status_code == 401 and c.get("/jobs").headers["location"] == "/login"
        c.post("/login", data=dict(token=TOKENS["ann"]))
        assert [c.get(f"/jobs/you{p}").status_code for p in ("", f"/{bad.id}", f"/{bad.id}/log")] == [404] * 3
        assert c.post(f"/jobs/you/{live.id}/cancel").status_code == 403
