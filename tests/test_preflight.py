"""What a node is asked before work starts, on the one node of this machine."""

import pytest

from effnet_batch import preflight
from effnet_batch.errors import ConfigError
from effnet_batch.pipelines.session import ray_session
from effnet_batch.storage import Storage


def test_a_slow_node_is_named_long_before_it_is_given_up(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(preflight, "_SLOW_SECONDS", 0.0)
    with ray_session(None):
        preflight.check_nodes(str(tmp_path), None, Storage(), dict, said.append)
        monkeypatch.setattr(preflight, "_ANSWER_SECONDS", 0.0)
        with pytest.raises(ConfigError, match="has not answered within 0 s: it starts no worker"):
            preflight.check_nodes(str(tmp_path), None, Storage(), dict, said.append)
    first, second = said
    assert first.startswith("1 of 1 nodes have not answered within 0 s and have until 120 s: ")
    assert second.partition(": ")[2] == first.partition(": ")[2]
