"""The ranking benchmark: its peers agree, and it runs from end to end."""

import json

from fastdhm.benchmarks import reid
from fastdhm.cli import main


def test_every_peer_passes_its_check():
    labels = reid.random_labels(reid.QUICK)
    peers = reid.ranking_peers(reid.QUICK, labels) + reid.feature_peers(reid.QUICK, labels)
    assert {peer.name: peer.check(peer.run()) for peer in peers} == dict.fromkeys([peer.name for peer in peers])


def test_smoke_run(tmp_path, capsys):
    assert main(["bench", "reid", "--quick", "--json", "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [mark["name"] for mark in record["marks"]] == [
        "loop over auto",
        "unstable loop over auto",
        "rank over product",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"reid.json", "reid.csv", "reid.png"}
