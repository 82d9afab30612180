"""Discussions and pull requests, through the official client."""
import json

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError


def add(path, data): return CommitOperationAdd(path, data)


def pr(api, repo, *ops, message="Change something", **kw):
    return api.create_commit(repo, list(ops), commit_message=message, create_pr=True, **kw)


def test_a_stranger_opens_a_pull_request_with_small_and_large_files(apis, repo):
    you, ann = apis["you"], apis["ann"]
    info = pr(ann, repo, add("notes.txt", b"small"), add("weights.bin", bytes(range(256)) * 100), commit_description="With *two* files",
              message="Two files")
    assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
    assert info.pr_url == f"{you.endpoint}/{repo}/discussions/1"
    assert you.list_repo_files(repo) == [".gitattributes"]
    assert {"notes.txt", "weights.bin"} < set(you.list_repo_files(repo, revision="refs/pr/1"))
    d = you.get_discussion_details(repo, 1)
    assert (d.title, d.status, d.author, d.is_pull_request, d.git_reference) == ("Two files", "open", "ann", True, "refs/pr/1")
    comment, commit = d.events
    assert (comment.content, commit.summary, commit.oid) == ("With *two* files", "Two files", info.oid)
    assert "<em>two</em>" in comment.rendered
    assert [r.ref for r in you.list_repo_refs(repo, include_pull_requests=True).pull_requests] == ["refs/pr/1"]
    you.merge_pull_request(repo, 1)
    assert "weights.bin" in you.list_repo_files(repo)
    assert open(you.hf_hub_download(repo, "weights.bin"), "rb").read() == bytes(range(256)) * 100
    assert you.list_repo_commits(repo)[0].title == "Two files (#1)"


def test_against_a_branch(api, repo):
    with pytest.raises(RevisionNotFoundError):
        pr(api, repo, add("a", b"1"), revision="dev")
    api.create_branch(repo, branch="dev")
    assert pr(api, repo, add("a", b"1"), revision="dev").pr_num == 1
    assert api.get_discussion_details(repo, 1).target_branch == "refs/heads/dev"
    api.merge_pull_request(repo, 1)
    assert ("a" in api.list_repo_files(repo, revision="dev"), "a" in api.list_repo_files(repo)) == (True, False)


def test_only_author_and_owners_write_its_branch(apis, repo):
    you, ann, nobody = apis["you"], apis["ann"], apis["nobody"]
    pr(you, repo, add("a", b"1"))
    with pytest.raises(HfHubHTTPError, match="403"):
        ann.create_commit(repo, [add("a", b"2")], commit_message="m", revision="refs/pr/1")
    with pytest.raises(HfHubHTTPError, match="401"):
        nobody.create_commit(repo, [add("a", b"2")], commit_message="m", create_pr=True)
    with pytest.raises(HfHubHTTPError, match="403"):
        ann.change_discussion_status(repo, 1, "closed")
    with pytest.raises(HfHubHTTPError, match="403"):
        ann.merge_pull_request(repo, 1)
    with pytest.raises(HfHubHTTPError, match="401"):
        nobody.comment_discussion(repo, 1, "hello")
    you.merge_pull_request(repo, 1)
    with pytest.raises(HfHubHTTPError, match="merged"):
        you.create_commit(repo, [add("a", b"3")], commit_message="m", revision="refs/pr/1")
    with pytest.raises(HfHubHTTPError, match="merged"):
        you.change_discussion_status(repo, 1, "open")


def test_a_private_repo_has_none_for_strangers(apis, repo):
    you, ann = apis["you"], apis["ann"]
    you.create_discussion(repo, "A question")
    you.update_repo_settings(repo, private=True)
    for call in (lambda: list(ann.get_repo_discussions(repo)), lambda: ann.get_discussion_details(repo, 1),
                 lambda: ann.comment_discussion(repo, 1, "x"), lambda: pr(ann, repo, add("a", b"1"))):
        with pytest.raises(HfHubHTTPError, match="404"):
            call()


def test_numbers_lists_and_filters(apis, repo):
    you, ann = apis["you"], apis["ann"]
    you.create_discussion(repo, "  First question ")
    ann.create_pull_request(repo, "A draft")
    pr(ann, repo, add("a", b"1"), message="A change")
    you.change_discussion_status(repo, 1, "closed", comment="Answered")
    nums = lambda **kw: [d.num for d in you.get_repo_discussions(repo, **kw)]
    assert nums() == [3, 2, 1]
    assert nums(discussion_type="pull_request") == [3, 2]
    assert nums(discussion_type="discussion") == [1]
    assert nums(discussion_status="open") == [3, 2]
    assert nums(discussion_status="closed") == [1]
    assert nums(author="ann") == [3, 2]
    assert next(d for d in you.get_repo_discussions(repo) if d.num == 1).title == "First question"


def test_more_than_a_page(api, repo):
    for i in range(53):
        api.create_discussion(repo, f"Question {i}")
    assert [d.num for d in api.get_repo_discussions(repo)] == list(range(53, 0, -1))


def test_comments_are_edited_and_hidden(apis, repo):
    you, ann = apis["you"], apis["ann"]
    you.create_discussion(repo, "A question", description="How?")
    said = ann.comment_discussion(repo, 1, "Like *this*")
    edited = ann.edit_discussion_comment(repo, 1, said.id, "Like **that**")
    last = you.get_discussion_details(repo, 1).events[-1]
    assert (last, last.edited, last.content, last.number_of_edits, last.last_edited_by) == (edited, True, "Like **that**", 1, "ann")
    assert last.edit_history[0]["raw"] == "Like *this*"
    with pytest.raises(HfHubHTTPError, match="403"):
        you.edit_discussion_comment(repo, 1, said.id, "I never said that")
    you.hide_discussion_comment(repo, 1, said.id)
    last = you.get_discussion_details(repo, 1).events[-1]
    assert last.hidden and "that" not in json.dumps(last._event)
    renamed = you.rename_discussion(repo, 1, "A better question")
    assert (renamed.old_title, renamed.new_title) == ("A question", "A better question")


def test_conflicts_are_named_and_resolved(api, repo):
    api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"one\n")
    pr(api, repo, add("a.txt", b"two\n"), add("b.txt", b"new\n"))
    pr(api, repo, CommitOperationDelete("a.txt"))
    api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"three\n")
    for n in (1, 2):
        assert api.get_discussion_details(repo, n).conflicting_files == ["a.txt"]
        with pytest.raises(HfHubHTTPError, match="409.*|a.txt"):
            api.merge_pull_request(repo, n)
    api.create_commit(repo, [add("a.txt", b"three\n")], commit_message="As main", revision="refs/pr/1")
    api.merge_pull_request(repo, 1)
    assert {"a.txt", "b.txt"} < set(api.list_repo_files(repo))


def test_a_commit_that_fails_opens_nothing(api, repo, http):
    body = "\n".join(json.dumps(x) for x in [dict(key="header", value=dict(summary="m")),
                     dict(key="lfsFile", value=dict(path="a.bin", algo="sha256", oid="0" * 64, size=1))])
    r = http.post(f"/api/models/{repo}/commit/main?create_pr=1", content=body)
    assert r.status_code == 400
    assert list(api.get_repo_discussions(repo)) == []
    assert api.list_repo_refs(repo, include_pull_requests=True).pull_requests == []
    assert pr(api, repo, add("a", b"1")).pr_num == 1


@pytest.mark.parametrize("path,body,status", [
    ("", {"title": "ab"}, 400), ("", {"title": 3}, 400), ("", {"title": "x" * 201}, 400), ("/1/comment", {"comment": " "}, 400),
    ("/1/comment", {}, 400), ("/1/status", {"status": "merged"}, 400), ("/1/title", {"title": ""}, 400), ("/99/comment", {"comment": "x"}, 404),
    ("/x/comment", {"comment": "x"}, 404), ("/0/merge", {}, 404), ("/1/merge", {}, 400), ("/1/comment/none/edit", {"content": "x"}, 404),
    ("/99999999999999999999/merge", {}, 404)])
def test_bad_input(api, repo, http, path, body, status):
    api.create_discussion(repo, "A question")
    r = http.post(f"/api/models/{repo}/discussions{path}", json=body)
    assert (r.status_code, bool(r.headers["x-error-message"])) == (status, True)


@pytest.mark.parametrize("query", ["type=x", "status=x", "p=x"])
def test_bad_lists(repo, http, query):
    assert http.get(f"/api/models/{repo}/discussions?{query}").status_code == 400
