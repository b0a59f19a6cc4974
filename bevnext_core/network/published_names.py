# SPDX-License-Identifier: Apache-2.0
"""Names of the published checkpoints' entries for this project's parameters and buffers."""

from __future__ import annotations

import re
from collections.abc import Iterable

_DEPTH = "img_view_transformer.depth_net"
_ENCODER = "img_bev_encoder_backbone"
_DECODER = "transformer_neck.decoder.layers.0"

# Beginnings of this project's names and of the published ones; the first match wins. Of ``<a|b>`` the last group of the
# match chooses one: there 0 is a convolution, 1 the batch norm after it.
_RULES: list[tuple[str, str]] = [
    (r"backbone\.", "img_backbone."),
    (r"neck\.lateral\.(\d)\.", r"img_neck.lateral_convs.\1.conv."),
    (r"neck\.output\.", "img_neck.fpn_convs.0.conv."),
    (r"depth_net\.reduce\.", f"{_DEPTH}.reduce_conv."),
    (r"depth_net\.parameter_norm\.", f"{_DEPTH}.bn."),
    (r"depth_net\.(depth|context)_gate\.mlp\.0\.", rf"{_DEPTH}.\1_mlp.fc1."),
    (r"depth_net\.(depth|context)_gate\.mlp\.2\.", rf"{_DEPTH}.\1_mlp.fc2."),
    (r"depth_net\.(depth|context)_gate\.gate\.0\.", rf"{_DEPTH}.\1_se.conv_reduce."),
    (r"depth_net\.(depth|context)_gate\.gate\.2\.", rf"{_DEPTH}.\1_se.conv_expand."),
    *(
        (rf"depth_net\.depth_layers\.3\.branches\.{i}\.(\d)\.", f"{_DEPTH}.depth_conv.3.aspp{i + 1}.<atrous_conv|bn>.")
        for i in range(4)
    ),
    (r"depth_net\.depth_layers\.3\.merge\.([01])\.", f"{_DEPTH}.depth_conv.3.<conv1|bn1>."),
    (r"depth_net\.depth_layers\.3\.mean\.", f"{_DEPTH}.depth_conv.3.global_avg_pool."),
    (r"depth_net\.depth_layers\.", f"{_DEPTH}.depth_conv."),
    (r"depth_net\.context_layers\.0\.offset\.", f"{_DEPTH}.context_conv.0.conv_offset."),
    (r"depth_net\.context_layers\.", f"{_DEPTH}.context_conv."),
    (r"crf\.weight$", "img_view_transformer.crf.ws.0"),
    (r"pre_process\.(\d)\.shortcut\.", r"pre_process_net.layers.0.\1.downsample."),
    (r"pre_process\.(\d)\.", r"pre_process_net.layers.0.\1."),
    (r"bev_backbone\.fusion\.reduce\.([01])\.", f"{_ENCODER}.fusion_layer.<conv1|bn1>."),
    (r"bev_backbone\.fusion\.merge\.([01])\.", f"{_ENCODER}.fusion_layer.<conv3|bn3>."),
    (r"bev_backbone\.fusion\.branches\.(\d)\.([01])\.", rf"{_ENCODER}.fusion_layer.<convs|bns>.\1."),
    (r"bev_backbone\.stages\.(\d)\.(\d)\.expand\.([01])\.", rf"{_ENCODER}.layers.\1.0.\2.<conv1|bn1>."),
    (r"bev_backbone\.stages\.(\d)\.(\d)\.merge\.([01])\.", rf"{_ENCODER}.layers.\1.0.\2.<conv3|bn3>."),
    (r"bev_backbone\.stages\.(\d)\.(\d)\.branches\.(\d)\.([01])\.", rf"{_ENCODER}.layers.\1.0.\2.<convs|bns>.\3."),
    (r"bev_backbone\.stages\.(\d)\.(\d)\.shortcut\.(\d)\.", rf"{_ENCODER}.layers.\1.0.\2.downsample.\3."),
    (r"bev_backbone\.stages\.(\d)\.(\d)\.shortcut\.", rf"{_ENCODER}.layers.\1.\2.downsample."),
    (r"bev_backbone\.stages\.(\d)\.(\d)\.", rf"{_ENCODER}.layers.\1.\2."),
    (r"bev_neck\.merge\.", "img_bev_encoder_neck.conv."),
    (r"bev_neck\.output\.", "img_bev_encoder_neck.up2."),
    (r"proposal_head\.shared\.([01])\.", "proposal_head.shared_conv.<conv|bn>."),
    (r"proposal_head\.tasks\.(\d)\.0\.([01])\.", r"proposal_head.task_heads.\1.heatmap.0.<conv|bn>."),
    (r"proposal_head\.tasks\.(\d)\.1\.", r"proposal_head.task_heads.\1.heatmap.1."),
    (r"box_head\.shared\.([01])\.", "pts_bbox_head.shared_conv.<conv|bn>."),
    (r"box_head\.tasks\.(\d)\.(\w+)\.0\.([01])\.", r"pts_bbox_head.task_heads.\1.\2.0.<conv|bn>."),
    (r"box_head\.tasks\.(\d)\.(\w+)\.1\.", r"pts_bbox_head.task_heads.\1.\2.1."),
    (r"depth_embedding\.", "depth_emb."),
    (r"refinement\.shared\.([01])\.", "transformer_neck.shared_conv.<conv|bn>."),
    (r"refinement\.cell_embedding\.", "transformer_neck.bev_embedding."),
    (r"refinement\.row_embedding\.", "transformer_neck.positional_encoding.row_embed."),
    (r"refinement\.column_embedding\.", "transformer_neck.positional_encoding.col_embed."),
    (r"refinement\.attention\.output\.", f"{_DECODER}.attentions.0.output_proj."),
    *(
        (rf"refinement\.attention\.deformable\.{own}\.", f"{_DECODER}.attentions.0.deformable_attention.{published}.")
        for own, published in (
            ("offsets", "sampling_offsets"),
            ("weights", "attention_weights"),
            ("value_projection", "value_proj"),
        )
    ),
    (r"refinement\.attention_norm\.", f"{_DECODER}.norms.0."),
    (r"refinement\.feedforward_norm\.", f"{_DECODER}.norms.1."),
    (r"refinement\.feedforward\.0\.", f"{_DECODER}.ffns.0.layers.0.0."),
    (r"refinement\.feedforward\.2\.", f"{_DECODER}.ffns.0.layers.1."),
]


def published_name(name: str) -> str:
    """The published name of one of this project's state-dict entries.

    Raises:
        KeyError: when no rule covers ``name``.
    """
    for pattern, replacement in _RULES:
        if match := re.match(pattern, name):
            chosen = re.sub(r"<(\w+)\|(\w+)>", lambda pair: pair[1 + int(match[match.lastindex or 0])], replacement)
            return match.expand(chosen) + name[match.end() :]
    raise KeyError(name)


def published_names(names: Iterable[str]) -> dict[str, str]:
    """``{this project's name: published name}``."""
    return {name: published_name(name) for name in names}
