"""Published forgery checkpoints: whose, of which network, run how, how good, and where they are.

Nothing here was measured by us. Areas under the curve are the publishers' own, on their own splits
and with their own face crops; sources are the publishers' repositories, whose pages stand in the
entries.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.aggregation import FRAME_MAX, POOLED, AggregationConfig

FRAME: Final = "frame"
VIDEO: Final = "video"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """One published figure."""

    dataset: str
    """What it was tested on."""
    level: str
    """``frame`` or ``video``."""
    auc: float
    """Area under the ROC curve, 0..1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a checkpoint's publisher runs it."""

    preprocessing: Preprocessing
    """From a face crop to the network's input."""
    sampling: dict[str, Any]
    """As `checkpoint_info.CheckpointInfo.sampling`."""
    faces: dict[str, Any]
    """As `checkpoint_info.CheckpointInfo.faces`; ``detector`` is the publisher's."""
    aggregation: AggregationConfig
    """From time steps to the video."""
    notes: tuple[str, ...] = ()
    """What of the publisher's way is not reproduced."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedCheckpoint:
    """A forgery checkpoint that somebody publishes."""

    name: str
    """What ``--checkpoint`` takes."""
    layout: str
    """A name of `checkpoint_layouts.CHECKPOINT_LAYOUTS`."""
    trained_on: str
    """Training data."""
    file: str
    """Name of the published file."""
    licence: str
    """SPDX identifier, or what the publisher says in a few words."""
    page: str
    """Where a person gets it."""
    url: str | None = None
    """Where it can be fetched from; None where the licence or the host wants a person."""
    sha256: str | None = None
    """Of the file, where published."""
    results: tuple[PublishedResult, ...] = ()
    """Published figures."""

    @property
    def protocol(self) -> Protocol:
        """How it is run."""
        return PROTOCOLS[PROTOCOL_OF.get(self.name, self.layout)]


def _squash(image_size: int, **scale: tuple[float, float, float]) -> Preprocessing:
    """The whole crop, resized to a square without regard to its sides."""
    return Preprocessing(
        image_size=image_size,
        resize_size=image_size,
        resize_mode="squash",
        interpolation="bilinear",
        **scale,
    )


def _uniform(num_frames: int) -> dict[str, Any]:
    return {"strategy": "uniform", "num_frames": num_frames, "max_clip_frames": None}


def _faces(
    detector: str,
    margin: float,
    which: str,
    *,
    is_square: bool = False,
    border: str = "pad",
    **linking: float,
) -> dict[str, Any]:
    return {
        "detector": detector,
        "margin": margin,
        "is_square": is_square,
        "border": border,
        "which": which,
        **linking,
    }


_HALF: Final = (0.5, 0.5, 0.5)
_ENDPOINT: Final = "the publisher's last frame is the video's last, ours one step before it"


def _thesis(image_size: int, num_frames: int) -> Protocol:
    return Protocol(
        preprocessing=_squash(image_size),
        sampling=_uniform(num_frames),
        # The publisher's LSTM sees all crops of a video as one sequence: boxes that overlap at all
        # are one track, however many frames without a face lie between them.
        faces=_faces("RetinaFace", 1.3, "largest", min_iou=0.01, max_gap=num_frames),
        aggregation=AggregationConfig(steps="last", tracks="max"),
        notes=(
            "the publisher takes the surest face of a frame, not the largest",
            "a face that leaves its own box between two frames begins a sequence, not so theirs",
        ),
    )


_POLIMI: Final = Protocol(
    preprocessing=_squash(224),
    sampling=_uniform(32),
    faces=_faces("BlazeFace", 1.6, "largest", is_square=True),
    aggregation=AggregationConfig(steps="mean_logit", tracks=POOLED),
    notes=("the publisher's margin is 0.2 of the height, 0.4 above the face",),
)
PROTOCOLS: Final = {
    "selimsef_efficientnet_b7": Protocol(
        preprocessing=Preprocessing(
            image_size=380, resize_size=380, resize_mode="pad", interpolation="bicubic"
        ),
        sampling=_uniform(32),
        faces=_faces("MTCNN", 5 / 3, "all", border="clip"),
        aggregation=AggregationConfig(steps="confident", tracks=POOLED),
        notes=(
            _ENDPOINT,
            "the publisher detects on half-size frames and shrinks crops by area means",
            "the publisher's score is the mean of seven such models",
        ),
    ),
    "polimi_efficientnet_b4": _POLIMI,
    "polimi_efficientnet_b4_att": _POLIMI,
    "polimi_efficientnet_b4_st": _POLIMI,
    "polimi_efficientnet_b4_att_st": _POLIMI,
    "sbi_efficientnet_b4": Protocol(
        preprocessing=_squash(380, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        sampling=_uniform(32),
        faces=_faces("RetinaFace", 1.25, "all", border="clip"),
        aggregation=AggregationConfig(steps="mean", tracks=FRAME_MAX),
        notes=(_ENDPOINT,),
    ),
    "deepfakebench_efficientnet_b4": Protocol(
        preprocessing=_squash(256, mean=_HALF, std=_HALF),
        sampling=_uniform(32),
        faces=_faces("dlib", 1.3, "largest", is_square=True),
        aggregation=AggregationConfig(steps="mean", tracks=POOLED),
        notes=(_ENDPOINT, "the publisher turns and scales faces to a template by 5 landmarks"),
    ),
    "thesis_efficientnet_b1_lstm": _thesis(240, 20),
    "thesis_efficientnet_b1_lstm_dfdc": _thesis(240, 5),
    "thesis_resnet50_lstm": _thesis(224, 20),
    "thesis_resnet50_lstm_dfdc": _thesis(224, 5),
}
"""How the checkpoints of a layout are run; a name's own where `PROTOCOL_OF` says so."""

PROTOCOL_OF: Final = {
    "thesis:efficientnet_b1_lstm.dfdc": "thesis_efficientnet_b1_lstm_dfdc",
    "thesis:resnet50_lstm.dfdc": "thesis_resnet50_lstm_dfdc",
}
"""Names that are run otherwise than their layout."""


def _results(level: str, **aucs: float) -> tuple[PublishedResult, ...]:
    """Figures by data set, spelled with underscores for what a keyword may not hold."""
    return tuple(
        PublishedResult(dataset=_DATASETS[name], level=level, auc=auc) for name, auc in aucs.items()
    )


_DATASETS: Final = {
    "ff_c23": "FaceForensics++ c23",
    "ff_c40": "FaceForensics++ c40",
    "celeb_df_v1": "Celeb-DF v1",
    "celeb_df": "Celeb-DF v2",
    "deeper": "DeeperForensics-1.0",
    "dfd": "DeepFakeDetection",
    "dfdc": "DFDC",
    "dfdcp": "DFDC preview",
    "ffiw": "FFIW10K",
    "face_shifter": "FaceShifter",
    "uadfv": "UADFV",
    "timit_hq": "DF-TIMIT HQ",
    "timit_lq": "DF-TIMIT LQ",
}

_SELIMSEF: Final = "https://github.com/selimsef/dfdc_deepfake_challenge"
_SELIMSEF_SEEDS: Final = ("111_36", "555_19", "777_29", "777_31", "888_37", "888_40", "999_23")


def _selimsef() -> Iterator[PublishedCheckpoint]:
    """The seven members of the DFDC's winning ensemble, by seed and epoch."""
    for run in _SELIMSEF_SEEDS:
        seed, epoch = run.split("_")
        file = f"final_{seed}_DeepFakeClassifier_tf_efficientnet_b7_ns_0_{epoch}"
        yield PublishedCheckpoint(
            name=f"selimsef:efficientnet_b7.{run}",
            layout="selimsef_efficientnet_b7",
            trained_on="DFDC",
            file=file,
            licence="MIT",
            page=_SELIMSEF,
            url=f"{_SELIMSEF}/releases/download/0.0.1/{file}",
        )


_POLIMI_URL: Final = "https://f002.backblazeb2.com/file/icpr2020"
# suffix of our layout: the publisher's network; training data: sha256 of the file, and the
# publisher's AUC per video on the same data
_POLIMI_FILES: Final = {
    "": (
        "EfficientNetB4",
        {
            "DFDC": ("c9f3663e2116d3356d056a0ce6453e0fc412a8df68ebd0902f07104d9129a09a", 0.9473),
            "FFPP": ("93aaad84946829e793d1a67ed7e0309b535e2f2395acb4f8d16b92c0616ba8d7", 0.9664),
        },
    ),
    "_st": (
        "EfficientNetB4ST",
        {
            "DFDC": ("86f0a0701b18694dfb5e7837bd09fa8e48a5146c193227edccf59f1b038181c6", 0.9414),
            "FFPP": ("ccd016668071be5bf5fff68e446d055441739ec7113fb1a6eee998f08396ae92", 0.9674),
        },
    ),
    "_att": (
        "EfficientNetAutoAttB4",
        {
            "DFDC": ("72ed969b2a395fffe11a0d5bf0a635e7260ba2588c28683630d97ff7153389fc", 0.9430),
            "FFPP": ("b0c9e9522a7143cf119843e910234be5e30f77dc527b1b427cdffa5ce3bdbc25", 0.9650),
        },
    ),
    "_att_st": (
        "EfficientNetAutoAttB4ST",
        {
            "DFDC": ("4df0ef7d2f380a5955affa78c35d0942ac1cd65229510353b252737775515a33", 0.9229),
            "FFPP": ("ddb357503b9b902e1b925c2550415604c4252b9b9ecafeb7369dc58cc16e9edd", 0.9633),
        },
    ),
}


def _polimi() -> Iterator[PublishedCheckpoint]:
    """Four networks, each trained on the DFDC and on FaceForensics++."""
    for suffix, (network, trainings) in _POLIMI_FILES.items():
        for data, (sha256, auc) in trainings.items():
            file = f"{network}_{data}_bestval-{sha256}.pth"
            is_dfdc = data == "DFDC"
            yield PublishedCheckpoint(
                name=f"polimi:efficientnet_b4{suffix}.{data.lower()}",
                layout=f"polimi_efficientnet_b4{suffix}",
                trained_on="DFDC" if is_dfdc else "FaceForensics++ c23",
                file=file,
                licence="GPL-3.0-only",
                page="https://github.com/polimi-ispl/icpr2020dfdc",
                url=f"{_POLIMI_URL}/{file}",
                sha256=sha256,
                results=_results(VIDEO, dfdc=auc) if is_dfdc else _results(VIDEO, ff_c23=auc),
            )


def _others() -> Iterator[PublishedCheckpoint]:
    for data, results in (
        (
            "raw",
            _results(VIDEO, celeb_df=0.9382, dfd=0.9787, dfdc=0.7301, dfdcp=0.857, ffiw=0.8452),
        ),
        (
            "c23",
            _results(VIDEO, celeb_df=0.9287, dfd=0.9816, dfdc=0.7196, dfdcp=0.8551, ffiw=0.8322),
        ),
    ):
        yield PublishedCheckpoint(
            name=f"sbi:efficientnet_b4.{data}",
            layout="sbi_efficientnet_b4",
            trained_on=f"reals of FaceForensics++ {data}, blended with themselves",
            file=f"FF{data}.tar",
            licence="research only",
            page="https://github.com/mapooon/SelfBlendedImages",
            results=results,
        )
    yield PublishedCheckpoint(
        name="deepfakebench:efficientnet_b4",
        layout="deepfakebench_efficientnet_b4",
        trained_on="FaceForensics++ c23",
        file="effnb4_best.pth",
        licence="CC-BY-NC-4.0",
        page="https://github.com/SCLBD/DeepfakeBench/releases/tag/v1.0.1",
        results=_results(
            FRAME,
            ff_c23=0.9567,
            ff_c40=0.815,
            celeb_df_v1=0.7909,
            celeb_df=0.7487,
            deeper=0.833,
            dfd=0.8148,
            dfdc=0.6955,
            dfdcp=0.7283,
            face_shifter=0.6162,
            uadfv=0.9472,
        ),
    )
    yield from _thesis_checkpoints()


# network, training data: AUC per video on Celeb-DF v2, DFDC parts 45-49, UADFV, DF-TIMIT HQ, LQ
_THESIS_RESULTS: Final = {
    ("efficientnet_b1_lstm", "celeb_df"): (0.9973, 0.65, 0.949, 0.9772, 0.995),
    ("efficientnet_b1_lstm", "dfdc"): (0.856, 0.9717, 0.9184, 0.9933, 1.0),
    ("resnet50_lstm", "celeb_df"): (0.9903, 0.6456, 0.8878, 0.5103, 0.8542),
    ("resnet50_lstm", "dfdc"): (0.714, 0.7876, 0.4592, 0.6833, 0.7994),
}


def _thesis_checkpoints() -> Iterator[PublishedCheckpoint]:
    for (network, data), aucs in _THESIS_RESULTS.items():
        theirs = {"efficientnet_b1_lstm": "efficientnetb1_lstm", "resnet50_lstm": "resnet_lstm"}
        names = ("celeb_df", "dfdc", "uadfv", "timit_hq", "timit_lq")
        yield PublishedCheckpoint(
            name=f"thesis:{network}.{data}",
            layout=f"thesis_{network}",
            trained_on=_DATASETS[data],
            file=f"{theirs[network]}_{data.replace('_', '')}.pth",
            licence="none stated",
            page="https://github.com/CatoGit/"
            "Comparing-the-Performance-of-Deepfake-Detection-Methods-on-Benchmark-Datasets",
            results=_results(VIDEO, **dict(zip(names, aucs, strict=True))),
        )


FORGERY_REGISTRY: Final = {entry.name: entry for entry in (*_selimsef(), *_polimi(), *_others())}
"""Every published forgery checkpoint by name."""


def find_published(sha256: str, file: str, layout: str) -> PublishedCheckpoint | None:
    """Returns the published checkpoint that a file is, by its hash, else by its name and layout.

    Args:
        sha256: of the file, 64 hex digits.
        file: its name without a folder.
        layout: what its keys are of.
    """
    entries = list(FORGERY_REGISTRY.values())
    by_hash = (e for e in entries if e.sha256 is not None and sha256.startswith(e.sha256))
    by_name = (e for e in entries if e.sha256 is None and (e.file, e.layout) == (file, layout))
    return next(by_hash, None) or next(by_name, None)
