# SPDX-License-Identifier: Apache-2.0
"""A network to measure: as its weights or configuration say, random where there are no weights."""

from __future__ import annotations

import argparse

import torch
from torch import nn

from bevnext_core.checkpoint import load_checkpoint
from bevnext_core.config import ModelConfig, config_from_mapping, load_config, published_config
from bevnext_core.network.bevnext import BEVNeXt
from bevnext_tools.checkpoints import checkpoint_file
from bevnext_tools.export.noise_drive import network_inputs

TINY = config_from_mapping(
    {
        "name": "tiny",
        "channels": 16,
        "cameras": ["CAM_FRONT", "CAM_BACK"],
        "image": {"height": 64, "width": 160},
        "backbone": {"base_channels": 8, "neck_channels": 32},
        "depth": {"step": 4.0, "mid_channels": 16, "crf_iterations": 2},
        "bev": {"cell": 6.4, "encoder_channels": 32},
        "history": {"frames": 2},
        "refinement": {"heads": 4, "height_anchors": 4, "feedforward_ratio": 2},
        "head": {"shared_channels": 16, "branch_channels": 16, "max_candidates": 20},
        "tasks": [{"classes": ["car"]}, {"classes": ["pedestrian", "bicycle"]}],
    },
    "tiny",
)
"""Everything that the network has, as small as it can be."""


@torch.no_grad()
def random_network(config: ModelConfig) -> BEVNeXt:
    """A network whose activations keep their size through the layers, as a trained one's do.

    Its batch norms take the statistics of one frame, camera parameters (a focal length of 1266) among them.
    """
    torch.manual_seed(0)
    model = BEVNeXt(config)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for norm in norms:
        norm.momentum = 1.0
    # Statistics of a single value would be none: one camera alone needs a second rig.
    images, colors, geometry = network_inputs(config, rigs=1 if len(config.cameras) > 1 else 2)
    encoded = model.train().encode(images, colors, geometry.camera_parameters().flatten(0, 2))
    lifted = model.lift(encoded, model.plan(geometry))
    model.detect(lifted.repeat(1, config.history.frames + 1, 1, 1), encoded, geometry)
    for norm in norms:
        norm.momentum = 0.1
    # A camera parameter that no camera of this rig varies must not blow up where another rig does.
    first = model.depth_net.parameter_norm
    assert first.running_mean is not None and first.running_var is not None
    first.running_var += (0.1 * first.running_mean) ** 2 + 0.01
    return model.eval()


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config`` or ``--checkpoint``."""
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--config", metavar="FILE", help="model configuration (default: R50 stage 2), random weights")
    network.add_argument("--checkpoint", metavar="FILE", help="measure this checkpoint's network")


def chosen_network(args: argparse.Namespace) -> BEVNeXt:
    """The network that :func:`add_network_arguments` names."""
    if args.checkpoint:
        return load_checkpoint(checkpoint_file(args.checkpoint)).eval()
    return random_network(load_config(args.config) if args.config else published_config(2))
