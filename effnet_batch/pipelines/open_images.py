"""Decoding images that may kill or hang their decoder, in any process of a job."""

import contextlib
import functools
import queue
from collections.abc import Iterator

from effnet_batch.config import EmbedConfig, FinetuneConfig, LimitSettings
from effnet_batch.media.image import DecodedImage, ImageLimits, decode_image
from effnet_batch.media.isolation import IsolatedDecoder
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.stages.decode import Decode
from effnet_batch.stages.watchdog import Watchdog, end_process


@contextlib.contextmanager
def open_decoder(
    config: EmbedConfig | FinetuneConfig,
    preprocessing: Preprocessing,
    *,
    is_suspect: bool,
    num_lanes: int = 1,
) -> Iterator[Decode]:
    """Yields what decodes images.

    Args:
        config: of the job.
        preprocessing: of the frames.
        is_suspect: an image may kill or hang its decoder, as in a unit that did not finish on its
            first try. They are decoded in children that can be killed, and what dies there becomes
            a record.
        num_lanes: threads that decode.
    """
    limits, bounds = config.limits, image_limits(config.limits)
    if not is_suspect:
        plain = functools.partial(decode_image, preprocessing=preprocessing, limits=bounds)
        with Watchdog(limits.image_timeout_seconds, end_process) as watchdog:

            def watched(data: bytes) -> DecodedImage:
                with watchdog.step():
                    return plain(data)

            yield watched
        return
    with contextlib.ExitStack() as stack:
        children: queue.SimpleQueue[IsolatedDecoder] = queue.SimpleQueue()
        for _ in range(num_lanes):
            children.put(
                stack.enter_context(
                    IsolatedDecoder(
                        preprocessing,
                        bounds,
                        limits.image_timeout_seconds,
                        limits.max_decode_memory_bytes,
                    )
                )
            )

        def decode(data: bytes) -> DecodedImage:
            child = children.get()
            try:
                return child.decode(data)
            finally:
                children.put(child)

        yield decode


def image_limits(limits: LimitSettings) -> ImageLimits:
    """Returns what one image may cost."""
    return ImageLimits(max_pixels=limits.max_image_pixels, max_bytes=limits.max_image_bytes)
