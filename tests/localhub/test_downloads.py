"""A download is counted as huggingface.co counts: the file that loaders read first, once for each reader in five minutes."""
from huggingface_hub import HfApi


def test_a_reader_counts_once_and_only_by_the_file_that_loaders_read_first(api):
    repo = f"{api.whoami()['name']}/counted"
    api.create_repo(repo)
    for name in ("config.json", "model.bin"): api.upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id=repo)
    count = lambda: api.model_info(repo).downloads
    api.hf_hub_download(repo, "model.bin")
    assert count() == 0
    for _ in range(3): api.hf_hub_download(repo, "config.json", force_download=True)
    assert count() == 1
    HfApi(endpoint=api.endpoint, token=False).hf_hub_download(repo, "config.json", force_download=True)
    assert count() == 2
    assert [m.id for m in api.list_models(search="counted", sort="downloads")] == [repo]


def test_any_file_of_a_data_set_counts(api):
    repo = f"{api.whoami()['name']}/counted-rows"
    api.create_repo(repo, repo_type="dataset")
    api.upload_file(path_or_fileobj=b"a\n1\n", path_in_repo="rows.csv", repo_id=repo, repo_type="dataset")
    api.hf_hub_download(repo, "rows.csv", repo_type="dataset")
    assert api.dataset_info(repo).downloads == 1
