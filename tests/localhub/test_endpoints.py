"""Inference Endpoints through the official client: one life of an endpoint, who may, and what is refused."""
import json
import sys
from pathlib import Path

import httpx
import pytest
from hub_process import TOKENS, Server
from huggingface_hub import CommitOperationAdd, HfApi, InferenceClient, constants
from huggingface_hub.errors import HfHubHTTPError, InferenceEndpointError

sys.path.insert(0, str(Path(__file__).parents[1]))
import tinychat  # noqa: E402

HERE = dict(accelerator="cpu", vendor="aws", region="us-east-1", instance_type="intel-icl", instance_size="x1", framework="pytorch", namespace="you")
ASK = [dict(role="user", content="tune llama")]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("endpoints"), "--jobs")
    old = constants.INFERENCE_ENDPOINTS_ENDPOINT, constants.INFERENCE_CATALOG_ENDPOINT
    constants.INFERENCE_ENDPOINTS_ENDPOINT, constants.INFERENCE_CATALOG_ENDPOINT = s.url + "/api/endpoints/v2", s.url + "/api/endpoints/catalog"
    yield s
    constants.INFERENCE_ENDPOINTS_ENDPOINT, constants.INFERENCE_CATALOG_ENDPOINT = old
    s.stop()


@pytest.fixture(scope="module")
def you(hub, tmp_path_factory):
    api, folder, tok = HfApi(hub.url, token=TOKENS["you"]), tmp_path_factory.mktemp("tiny"), tinychat.tokenizer()
    tinychat.model(tok).save_pretrained(folder)
    tok.save_pretrained(folder)
    api.create_repo("you/tiny", private=True)
    api.upload_folder(repo_id="you/tiny", folder_path=folder)
    api.create_repo("you/empty")
    return api


def make(api, name, **kw):
    return api.create_inference_endpoint(name, token=api.token, **(HERE | dict(repository="you/tiny") | kw))


def test_one_life(you, hub):
    e = make(you, "tiny-one", env={"A": "b"}, secrets={"KEY": "hush-hush"}, tags=["x"], min_replica=0, scale_to_zero_timeout=60)
    assert e.status in ("pending", "initializing") and e.url is None and e.revision == you.model_info("you/tiny").sha and e.task == "text-generation"
    assert e.raw["model"]["secrets"] == {"KEY": "***"} and e.raw["model"]["env"] == {"A": "b"} and e.raw["tags"] == ["x"]
    e.scale_to_zero()
    assert e.status == "scaledToZero"
    client = e.client
    answer = client.chat_completion(ASK, max_tokens=4)  # wakes it
    assert answer.model == "you/tiny" and answer.usage.completion_tokens <= 4
    e.wait(timeout=10)
    assert e.status == "running" and e.raw["status"]["readyReplica"] == 1
    text = "".join(c.choices[0].delta.content or "" for c in client.chat_completion(ASK, max_tokens=4, stream=True) if c.choices)
    assert text == answer.choices[0].message.content
    e.update(scale_to_zero_timeout=30)  # needs no new program
    assert e.status == "running" and e.raw["compute"]["scaling"]["scaleToZeroTimeout"] == 30
    assert you.resume_inference_endpoint("tiny-one", namespace="you", token=you.token).status == "running"
    with pytest.raises(HfHubHTTPError, match="already running"):
        you.resume_inference_endpoint("tiny-one", namespace="you", token=you.token, running_ok=False)
    with httpx.Client(base_url=hub.url, trust_env=False) as c:
        url = "/-/endpoints/you/tiny-one/v1/models"
        assert [c.get(url, headers={"Authorization": f"Bearer {TOKENS[n]}"}).status_code for n in ("you", "ann")] == [200, 404] and c.get(url).status_code == 401
        auth = {"Authorization": f"Bearer {TOKENS['you']}"}
        logs = c.get("/api/endpoints/v2/endpoint/you/tiny-one/logs", headers=auth).text
        assert "you/tiny answers at" in logs and "hush" not in logs
        with httpx.Client(base_url=logs.split(" answers at ")[-1].split("/v1")[0], trust_env=False) as direct:
            assert direct.get("/v1/models", headers=auth).status_code == 401  # the program answers the Hub alone
            e.pause()
            with pytest.raises(httpx.ConnectError):
                direct.get("/health")
        assert e.status == "paused" and c.get(url, headers=auth).status_code == 503
    e.delete()
    with pytest.raises(HfHubHTTPError, match="404"):
        e.fetch()
    assert not list((hub.data / "endpoints").iterdir())


def test_a_model_that_cannot_be_loaded(you):
    you.create_repo("you/broken")
    you.create_commit("you/broken", [CommitOperationAdd("model.safetensors", b"no tensors"), CommitOperationAdd("config.json", b"{}")], commit_message="x")
    e = make(you, "broken-one", repository="you/broken")
    with pytest.raises(InferenceEndpointError, match="failed"):
        e.wait(timeout=60, refresh_every=0.2)
    assert e.status == "failed" and e.raw["status"]["message"] and e.url is None
    e.delete()


def test_hardware_and_catalogue(you):
    (h,) = you.list_inference_endpoints_hardware(namespace="you")
    assert (h.vendor, h.status, h.price_per_hour) == ("local", "available", 0) and h.memory_gb > 0
    assert you.list_inference_catalog() == []
    with pytest.raises(HfHubHTTPError, match="catalogue"):
        you.create_inference_endpoint_from_catalog("you/tiny", namespace="you")


def test_who_may(you, hub):
    ann, nobody = HfApi(hub.url, token=TOKENS["ann"]), HfApi(hub.url, token=False)
    for call, text in ((lambda: make(ann, "mine-now"), "403|namespace"), (lambda: make(ann, "mine-now", namespace="ann"), "can read"),
                       (lambda: ann.list_inference_endpoints("you"), "404"), (lambda: nobody.list_inference_endpoints("you"), "401|Invalid")):
        with pytest.raises(HfHubHTTPError, match=text):
            call()
    assert you.list_inference_endpoints("you") == []


def test_a_hub_that_was_not_told_to(api, server, monkeypatch):
    monkeypatch.setattr(constants, "INFERENCE_ENDPOINTS_ENDPOINT", server.url + "/api/endpoints/v2")
    with pytest.raises(HfHubHTTPError, match="started without --jobs"):
        make(api, "tiny-one")


GOOD = dict(name="tiny-x", type="public", provider={}, compute={}, model=dict(repository="you/tiny"))


@pytest.mark.parametrize("change,status", [
    (dict(name="x"), 400), (dict(name="Has_Caps"), 400), (dict(name=3), 400), (dict(type="open"), 400), (dict(type=["public"]), 400), (dict(model=None), 400),
    (dict(model=[]), 400), (dict(model=dict(repository="you/absent")), 404), (dict(model=dict(repository=["you/tiny"])), 400), (dict(model=dict(repository="you/empty")), 400),
    (dict(model=dict(repository="you/tiny", revision="absent")), 404), (dict(model=dict(repository="you/tiny", task="image-classification")), 400),
    (dict(model=dict(repository="you/tiny", image=[])), 400), (dict(model=dict(repository="you/tiny", command=["sh"])), 501),
    (dict(model=dict(repository="you/tiny", env={"A=": "b"})), 400), (dict(model=dict(repository="you/tiny", secrets={"A": 1})), 400),
    (dict(compute=3), 400), (dict(compute=dict(accelerator=["cpu"])), 400), (dict(compute=dict(scaling=dict(minReplica=-1))), 400),
    (dict(compute=dict(scaling=dict(scaleToZeroTimeout=True))), 400), (dict(compute=dict(scaling=dict(measure=dict(x=1)))), 400),
    (dict(provider=dict(region="\ud800")), 400), (dict(tags="x"), 400), (dict(privateService=dict(accountId="x")), 501), (dict(route=dict(path="/x")), 501)])
def test_bad_input(you, hub, change, status):
    r = httpx.post(hub.url + "/api/endpoints/v2/endpoint/you", content=json.dumps(GOOD | change), trust_env=False,
                   headers={"Authorization": f"Bearer {TOKENS['you']}", "Content-Type": "application/json"})
    assert r.status_code == status and len(r.json()["error"]) > 10, r.text
