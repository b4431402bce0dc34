"""The parameters of a run as frozen models: one class a section of `params.yaml`."""

from pelap.params.model import (
    AutoencoderKLParams,
    DiffusionParams,
    LightUNetParams,
    PelapVAEParams,
    SamplerParams,
    UNet2DParams,
    UNetParams,
    VAEParams,
)
from pelap.params.run import (
    CheapCriterion,
    DistillParams,
    DownloadParams,
    EvaluateParams,
    LossWeights,
    MethodParams,
    Params,
    PhotoCrops,
    PlanRequest,
    PruneParams,
    QualityParams,
    ScoreParams,
    StudentParams,
    TrainParams,
)
from pelap.params.section import Section
from pelap.params.variant import ALL_LOSSES, Loss, VariantParams

__all__ = [
    "ALL_LOSSES",
    "AutoencoderKLParams",
    "CheapCriterion",
    "DiffusionParams",
    "DistillParams",
    "DownloadParams",
    "EvaluateParams",
    "LightUNetParams",
    "Loss",
    "LossWeights",
    "MethodParams",
    "Params",
    "PelapVAEParams",
    "PhotoCrops",
    "PlanRequest",
    "PruneParams",
    "QualityParams",
    "SamplerParams",
    "ScoreParams",
    "Section",
    "StudentParams",
    "TrainParams",
    "UNet2DParams",
    "UNetParams",
    "VAEParams",
    "VariantParams",
]
