"""Blocks, X-ray encoders, lifting, the cascade and its named configurations, losses, SSIM."""

from drr2ct.networks.cascade import ProgressiveCascade
from drr2ct.networks.config import CascadeConfig, SkipConfig, StageConfig
from drr2ct.networks.zoo import create_network, list_networks, network_config

__all__ = [
    "CascadeConfig",
    "ProgressiveCascade",
    "SkipConfig",
    "StageConfig",
    "create_network",
    "list_networks",
    "network_config",
]
