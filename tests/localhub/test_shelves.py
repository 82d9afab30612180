"""Profiles and collections, through the official client."""
import pytest
from huggingface_hub.errors import HfHubHTTPError


def test_profiles_count_what_the_caller_may_see(apis, repo):
    you, ann, nobody = apis["you"], apis["ann"], apis["nobody"]
    count = lambda api: api.get_user_overview("you").num_models
    public, all_of_mine = count(nobody), count(you)
    you.update_repo_settings(repo, private=True)
    assert (count(nobody), count(you)) == (public - 1, all_of_mine)
    assert (ann.get_user_overview("ann").username, list(ann.list_user_followers("ann")), list(ann.list_user_following("you"))) == ("ann", [], [])
    for call in (ann.get_user_overview, ann.get_organization_overview):
        with pytest.raises(HfHubHTTPError, match="404"):
            call("nobody-at-all")


def test_collections_of_strangers(apis, repo):
    you, ann, nobody = apis["you"], apis["ann"], apis["nobody"]
    c = you.create_collection(f"Of {repo[-9:]}", private=True)
    you.add_collection_item(c.slug, repo, "model")
    with pytest.raises(HfHubHTTPError, match="404"):
        ann.get_collection(c.slug)
    with pytest.raises(HfHubHTTPError, match="401"):
        nobody.get_collection(c.slug)
    assert c.slug not in [x.slug for x in ann.list_collections(owner="you")]
    you.update_collection_metadata(c.slug, private=False)
    assert c.slug in [x.slug for x in nobody.list_collections(owner="you", item=f"models/{repo}")]
    with pytest.raises(HfHubHTTPError, match="403"):
        ann.add_collection_item(c.slug, repo, "model")
    with pytest.raises(HfHubHTTPError, match="403"):
        ann.create_collection("Mine", namespace="you")
    with pytest.raises(HfHubHTTPError, match="404"):
        ann.get_collection(c.slug.replace("you/", "ann/"))


def test_items(api, repo):
    c = api.create_collection(f"Items {repo[-9:]}")
    for id, kind, note in ((repo, "model", "Here"), ("2311.12983", "paper", None)):
        c = api.add_collection_item(c.slug, id, kind, note=note)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.add_collection_item(c.slug, repo, "model")
    assert len(api.add_collection_item(c.slug, repo, "model", exists_ok=True).items) == 2
    with pytest.raises(HfHubHTTPError, match="404"):
        api.add_collection_item(c.slug, "you/absent", "model")
    first, second = c.items
    api.update_collection_item(c.slug, second.item_object_id, position=0, note="A paper")
    items = api.get_collection(c.slug).items
    assert [(i.item_type, i.position, i.note) for i in items] == [("paper", 0, "A paper"), ("model", 1, "Here")]
    api.delete_collection_item(c.slug, first.item_object_id)
    with pytest.raises(HfHubHTTPError, match="404"):
        api.delete_collection_item(c.slug, first.item_object_id)
    api.delete_collection_item(c.slug, first.item_object_id, missing_ok=True)
    assert [i.item_type for i in api.get_collection(c.slug).items] == ["paper"]
    api.delete_collection(c.slug)
    api.delete_collection(c.slug, missing_ok=True)


@pytest.mark.parametrize("method,path,body,status", [
    ("POST", "", {"title": ""}, 400), ("POST", "", {"title": "x" * 60}, 400), ("POST", "", {"title": "x", "description": "y" * 151}, 400),
    ("GET", "/you/none", None, 404), ("GET", "/you/none-0123456789abcdef01234567", None, 404), ("DELETE", "/you/x", None, 404),
    ("GET", "?limit=x", None, 400)])
def test_bad_input(http, method, path, body, status):
    assert http.request(method, f"/api/collections{path}", json=body).status_code == status


@pytest.mark.parametrize("body,status", [({}, 400), ({"item": "x"}, 400), ({"item": {"id": "a/b", "type": "car"}}, 400),
                                         ({"item": {"id": 3, "type": "model"}}, 400)])
def test_bad_items(api, http, body, status):
    slug = api.create_collection("Bad input", exists_ok=True).slug
    assert http.post(f"/api/collections/{slug}/items", json=body).status_code == status
