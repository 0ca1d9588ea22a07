"""Descriptions of sampling and faces that a stranger wrote into a checkpoint."""

from typing import Any

import pytest

from effnet_batch.config import FaceDetectionSettings, SamplingSettings
from effnet_batch.errors import ConfigError
from effnet_batch.pipelines.views import faces_with, sampling_with


@pytest.mark.parametrize("own", [{}, {"strategy": ["uniform"]}, {"strategy": {}}, {"strategy": 5}])
def test_a_sampling_that_is_none_is_refused(own: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="sampling must be one of every_nth, uniform"):
        sampling_with(own, SamplingSettings())


def test_faces_of_other_types_are_refused() -> None:
    with pytest.raises(ConfigError, match="faces of strange: '<=' not supported"):
        faces_with({"detector": "yunet", "margin": "a"}, FaceDetectionSettings(), "strange")
