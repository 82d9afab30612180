"""The endpoint speaks OpenAI's protocol over raw HTTP: answers, streams, errors in its shape, stop strings, tokens."""
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
import tinychat
from hfflow import endpoint as ep
from hfflow.engine import streaming
from hfflow.evaluate import generate
from hfflow.hub import Artifact, UserError


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real uvicorn in a thread, with a model that says a lot."""
    import uvicorn

    tok = tinychat.tokenizer()
    model = tinychat.model(tok, seed=3)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    web = uvicorn.Server(uvicorn.Config(ep.app(model, tok, "me/small"), log_level="error"))
    thread = threading.Thread(target=web.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not web.started:
        time.sleep(0.02)
    yield sock.getsockname()[1], model, tok
    web.should_exit = True
    thread.join(10)


def call(port, path, body=None, headers=None, raw=None):
    import http.client

    c = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = raw if raw is not None else None if body is None else json.dumps(body)
    c.request("GET" if data is None else "POST", path, data, {"Content-Type": "application/json", **(headers or {})})
    r = c.getresponse()
    text = r.read().decode()
    c.close()
    return r.status, r.headers, text


def chat(port, text="tune llama", **kw):
    status, _, out = call(port, "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **kw})
    return status, json.loads(out)


def test_health_and_models(server):
    port, _, _ = server
    assert json.loads(call(port, "/health")[2]) == {"status": "ok", "model": "me/small"}
    assert [m["id"] for m in json.loads(call(port, "/v1/models")[2])["data"]] == ["me/small"]
    assert json.loads(call(port, "/v1/models/me/small")[2])["id"] == "me/small"


def test_chat_answers_as_generate_does(server):
    port, model, tok = server
    status, out = chat(port, max_tokens=20)
    assert status == 200 and out["object"] == "chat.completion" and out["model"] == "me/small"
    choice = out["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": generate(model, tok, ["tune llama"], max_new_tokens=20, progress=False)[0]}
    assert out["usage"]["completion_tokens"] <= 20 and out["usage"]["total_tokens"] == sum(v for k, v in out["usage"].items() if k != "total_tokens")
    assert choice["finish_reason"] == ("length" if out["usage"]["completion_tokens"] == 20 else "stop")


@pytest.mark.parametrize("path, body", [("/v1/chat/completions", {"messages": [{"role": "user", "content": "tune llama"}]}), ("/v1/completions", {"prompt": "tune llama"})])
def test_a_stream_is_the_same_answer_in_pieces(server, path, body):
    port, _, _ = server
    body = {**body, "max_tokens": 30}
    whole = json.loads(call(port, path, body)[2])
    status, headers, text = call(port, path, {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    events = [e.removeprefix("data: ") for e in text.strip().split("\n\n")]
    assert events.pop() == "[DONE]"
    events = [json.loads(e) for e in events]
    assert events.pop()["usage"] == whole["usage"]
    part = (lambda c: c["delta"].get("content") or "") if "chat" in path else (lambda c: c["text"])
    pieces = [part(e["choices"][0]) for e in events]
    want = whole["choices"][0]
    assert "".join(pieces) == (want["message"]["content"] if "chat" in path else want["text"])
    assert len([p for p in pieces if p]) > 3 and events[-1]["choices"][0]["finish_reason"] == want["finish_reason"]
    assert len({e["id"] for e in events}) == 1


def test_stop_strings_end_the_answer_wherever_tokens_end(server):
    port, _, _ = server
    whole = chat(port, max_tokens=40)[1]["choices"][0]["message"]["content"]
    for at in range(1, min(12, len(whole) - 3)):
        stop = whole[at:at + 3]
        out = chat(port, max_tokens=40, stop=[stop, "never said"])[1]["choices"][0]
        assert out["message"]["content"] == whole[:whole.find(stop)] and out["finish_reason"] == "stop"


def test_sampling_obeys_seed_and_top_p(server):
    port, _, _ = server
    say = lambda **kw: chat(port, max_tokens=16, **kw)[1]["choices"][0]["message"]["content"]
    assert say(temperature=1.5, seed=1) == say(temperature=1.5, seed=1) != say(temperature=1.5, seed=2)
    assert say(temperature=1, top_p=1e-6) == say()


@pytest.mark.parametrize("body, param, status", [
    ({"messages": []}, "messages", 400), ({}, "messages", 400), ({"messages": "hi"}, "messages", 400),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages", 400),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", 400),
    ({"messages": [{"role": "user", "content": "x " * 500}]}, "messages", 400),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", 400),
    ({"temperature": 3}, "temperature", 400), ({"temperature": "warm"}, "temperature", 400), ({"temperature": float("nan")}, "temperature", 400),
    ({"max_tokens": 0}, "max_tokens", 400), ({"max_tokens": 10**5}, "max_tokens", 400), ({"max_tokens": 1.5}, "max_tokens", 400), ({"max_tokens": float("inf")}, "max_tokens", 400),
    ({"top_p": 0}, "top_p", 400), ({"stop": 5}, "stop", 400), ({"n": 2}, "n", 400), ({"model": "gpt-9"}, "model", 404), ({"model": ["x"]}, "model", 404),
])
def test_bad_requests_get_openais_error_shape(server, body, param, status):
    port, _, _ = server
    if "messages" not in body and body:
        body = {"messages": [{"role": "user", "content": "x"}], **body}
    got, _, text = call(port, "/v1/chat/completions", body)
    error = json.loads(text)["error"]
    assert (got, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) < 250


def test_rubbish_and_wrong_paths_are_json_errors_too(server):
    port, _, _ = server
    for raw in ("{", "[1]", "", "[" * 3000):
        status, _, text = call(port, "/v1/chat/completions", raw=raw)
        assert status == 400 and json.loads(text)["error"]["type"] == "invalid_request_error"
    assert call(port, "/v1/nothing")[0] == 404 and "error" in json.loads(call(port, "/v1/nothing")[2])
    assert call(port, "/v1/chat/completions")[0] == 405
    assert call(port, "/v1/chat/completions", raw="x" * (2**20 + 1))[0] == 413


def test_a_client_that_hangs_up_stops_the_model(server):
    port, _, _ = server
    s = socket.create_connection(("127.0.0.1", port))
    body = json.dumps({"messages": [{"role": "user", "content": "tune"}], "max_tokens": 200, "stream": True})
    s.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    s.recv(100)
    s.close()
    assert chat(port, max_tokens=2)[0] == 200        # the turn was given back


def test_half_a_character_waits():
    tok = tinychat.tokenizer()
    text = streaming.Settled(tok)
    pieces = [text.push(i) for i in tok.encode("aé😀b")]
    assert "".join(pieces) == "aé😀b" and "\ufffd" not in "".join(pieces) and "" in pieces


def test_a_token_protects_everything_but_health():
    from starlette.testclient import TestClient

    tok = tinychat.tokenizer()
    client = TestClient(ep.app(tinychat.model(tok), tok, "m", token="secret"))
    assert client.get("/health").status_code == 200
    assert client.get("/v1/models").status_code == 401
    r = client.post("/v1/chat/completions", json={}, headers={"Authorization": "Bearer wrong"})
    assert r.status_code == 401 and r.json()["error"]["code"] == "invalid_api_key"
    assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_start_serves_a_folder_in_a_process_of_its_own(tmp_path):
    tok = tinychat.tokenizer()
    model = tinychat.model(tok, seed=3)
    model.save_pretrained(tmp_path / "small")
    tok.save_pretrained(tmp_path / "small")
    with ep.start(tmp_path / "small", bits=32) as e:
        assert e.url.startswith("http://127.0.0.1:") and e.name == "small"
        assert e.ask("tune llama", max_tokens=8) == generate(model, tok, ["tune llama"], max_new_tokens=8, progress=False)[0]
        port = int(e.url.rsplit(":", 1)[1])
        with pytest.raises(UserError, match="cannot be had"):
            ep.serve(tmp_path / "small", port=port)
    assert e.job.status.stage == "CANCELED" and not e.job.running
    with socket.socket() as s:                                   # nobody holds it any more
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", port))
    with pytest.raises(UserError, match="does not answer"):
        e.ask("still there?")


def test_start_tells_why_it_cannot(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no config.json") as e:
        ep.start(tmp_path / "empty")
    assert "\n" not in str(e.value)


def test_importing_the_module_is_light():
    code = "import sys, hfflow.endpoint, hfflow.plan, hfflow.evaluate; print([m for m in ('torch', 'transformers', 'starlette', 'datasets', 'huggingface_hub', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_endpoint_spec_says_the_task_of_the_model():
    from hfflow import publish

    def made(name, **files):
        return publish.commit("model", f"you/{name}", {f"{k}.json": json.dumps(v).encode() for k, v in files.items()}, "Add")
    task = lambda model: ep.endpoint_spec(model).arguments["task"]
    whisper = made("hears", config=dict(architectures=["WhisperForConditionalGeneration"], model_type="whisper", is_encoder_decoder=True))
    t5 = made("rewrites", config=dict(architectures=["T5ForConditionalGeneration"], model_type="t5", is_encoder_decoder=True))
    assert task(made("sorts", config=dict(architectures=["BertForSequenceClassification"], model_type="bert"))) == "text-classification"
    assert task(t5) == "text2text-generation" and task(whisper) == "automatic-speech-recognition"
    assert task(made("chats", config=dict(architectures=["LlamaForCausalLM"], model_type="llama"))) == "text-generation"
    adapter = lambda base: dict(base_model_name_or_path=base.repo_id, revision=base.revision)
    assert task(made("hears-lora", adapter_config=adapter(whisper), qlora=dict(task="seq2seq"))) == "automatic-speech-recognition"
    assert task(made("rewrites-lora", adapter_config=adapter(t5), qlora=dict(task="seq2seq"))) == "text2text-generation"
    assert task(made("sorts-lora", adapter_config=adapter(t5), qlora=dict(task="classify"))) == "text-classification"


def test_it_ends_when_whoever_started_it_is_killed(tmp_path):
    folder = tinychat.save(tmp_path / "small")
    code = f"from hfflow import endpoint as ep; e = ep.start({str(folder)!r}, bits=32); print(e.url, flush=True); input()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    port = int(parent.stdout.readline().rsplit(":", 1)[1])
    parent.kill()
    parent.wait(10)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try: s.bind(("127.0.0.1", port)); break
            except OSError: time.sleep(.1)
    else: raise AssertionError("the server lives on")


@pytest.mark.parametrize("first", ["", "import huggingface_hub.constants; "])
def test_connect_tells_the_client_where_endpoints_are(first):
    code = first + """from hfflow import hub
h = hub.connect()
from huggingface_hub import constants, create_inference_endpoint
assert constants.INFERENCE_ENDPOINTS_ENDPOINT == h.endpoint + '/api/endpoints/v2', constants.INFERENCE_ENDPOINTS_ENDPOINT"""
    from hfflow.hub import connect

    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"HF_ENDPOINT": connect().endpoint})


def test_the_spec_runs_on_the_embedded_hub(tmp_path):
    from hfflow.hub import connect

    hub, model = connect(), Artifact.at("model", tinychat.publish("rented"))
    spec = ep.endpoint_spec(model, "rented-test", accelerator="cpu", instance_type="intel-spr")
    made = hub.api.create_inference_endpoint(spec.name, **spec.arguments)
    try:
        made.wait(timeout=120, refresh_every=.2)
        out = made.client.chat_completion([dict(role="user", content="tune llama")], max_tokens=4)
        assert out.usage.completion_tokens <= 4 and made.raw["type"] == "authenticated"
    finally: made.delete()


def test_endpoint_spec_is_a_call_that_the_client_has():
    import inspect

    from huggingface_hub import HfApi

    spec = ep.endpoint_spec(Artifact("model", "me/My_Model.v2", "a" * 40, ""))
    inspect.signature(HfApi.create_inference_endpoint).bind(HfApi(), spec.name, **spec.arguments)
    assert spec.name == "my-model-v2" and spec.arguments["revision"] == "a" * 40
    compile(spec.code(), "spec", "exec")
    with pytest.raises(UserError, match="endpoint's name"):
        ep.endpoint_spec(Artifact("model", "me/x", "a" * 40, ""))
    with pytest.raises(UserError, match="not a model"):
        ep.endpoint_spec(Artifact("dataset", "me/data", "a" * 40, ""))
