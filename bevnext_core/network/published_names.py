"""Names of the published checkpoints' entries for this project's parameters and buffers."""

from __future__ import annotations

import re
from collections.abc import Iterable

# First match wins; each maps one of this project's names (or a prefix) to the published one.
_RULES: list[tuple[str, str]] = [
    (r"^backbone\.", "img_backbone."),
    (r"^neck\.lateral\.(\d)\.", r"img_neck.lateral_convs.\1.conv."),
    (r"^neck\.output\.", "img_neck.fpn_convs.0.conv."),
    (r"^depth_net\.reduce\.", "img_view_transformer.depth_net.reduce_conv."),
    (r"^depth_net\.parameter_norm\.", "img_view_transformer.depth_net.bn."),
    (r"^depth_net\.(depth|context)_gate\.mlp\.0\.", r"img_view_transformer.depth_net.\1_mlp.fc1."),
    (r"^depth_net\.(depth|context)_gate\.mlp\.2\.", r"img_view_transformer.depth_net.\1_mlp.fc2."),
    (r"^depth_net\.(depth|context)_gate\.gate\.0\.", r"img_view_transformer.depth_net.\1_se.conv_reduce."),
    (r"^depth_net\.(depth|context)_gate\.gate\.2\.", r"img_view_transformer.depth_net.\1_se.conv_expand."),
    (r"^depth_net\.depth_layers\.3\.merge\.0\.", "img_view_transformer.depth_net.depth_conv.3.conv1."),
    (r"^depth_net\.depth_layers\.3\.merge\.1\.", "img_view_transformer.depth_net.depth_conv.3.bn1."),
    (r"^depth_net\.depth_layers\.3\.mean\.", "img_view_transformer.depth_net.depth_conv.3.global_avg_pool."),
    (r"^depth_net\.depth_layers\.", "img_view_transformer.depth_net.depth_conv."),
    (
        r"^depth_net\.context_layers\.0\.offset\.",
        "img_view_transformer.depth_net.context_conv.0.conv_offset.",
    ),
    (r"^depth_net\.context_layers\.", "img_view_transformer.depth_net.context_conv."),
    (r"^crf\.weight$", "img_view_transformer.crf.ws.0"),
    (r"^pre_process\.(\d)\.shortcut\.", r"pre_process_net.layers.0.\1.downsample."),
    (r"^pre_process\.(\d)\.", r"pre_process_net.layers.0.\1."),
    (r"^bev_backbone\.fusion\.reduce\.0\.", "img_bev_encoder_backbone.fusion_layer.conv1."),
    (r"^bev_backbone\.fusion\.reduce\.1\.", "img_bev_encoder_backbone.fusion_layer.bn1."),
    (r"^bev_backbone\.fusion\.merge\.0\.", "img_bev_encoder_backbone.fusion_layer.conv3."),
    (r"^bev_backbone\.fusion\.merge\.1\.", "img_bev_encoder_backbone.fusion_layer.bn3."),
    (r"^bev_backbone\.fusion\.branches\.(\d)\.0\.", r"img_bev_encoder_backbone.fusion_layer.convs.\1."),
    (r"^bev_backbone\.fusion\.branches\.(\d)\.1\.", r"img_bev_encoder_backbone.fusion_layer.bns.\1."),
    (r"^bev_backbone\.stages\.(\d)\.(\d)\.expand\.0\.", r"img_bev_encoder_backbone.layers.\1.0.\2.conv1."),
    (r"^bev_backbone\.stages\.(\d)\.(\d)\.expand\.1\.", r"img_bev_encoder_backbone.layers.\1.0.\2.bn1."),
    (r"^bev_backbone\.stages\.(\d)\.(\d)\.merge\.0\.", r"img_bev_encoder_backbone.layers.\1.0.\2.conv3."),
    (r"^bev_backbone\.stages\.(\d)\.(\d)\.merge\.1\.", r"img_bev_encoder_backbone.layers.\1.0.\2.bn3."),
    (
        r"^bev_backbone\.stages\.(\d)\.(\d)\.branches\.(\d)\.0\.",
        r"img_bev_encoder_backbone.layers.\1.0.\2.convs.\3.",
    ),
    (
        r"^bev_backbone\.stages\.(\d)\.(\d)\.branches\.(\d)\.1\.",
        r"img_bev_encoder_backbone.layers.\1.0.\2.bns.\3.",
    ),
    (
        r"^bev_backbone\.stages\.(\d)\.(\d)\.shortcut\.(\d)\.",
        r"img_bev_encoder_backbone.layers.\1.0.\2.downsample.\3.",
    ),
    (r"^bev_backbone\.stages\.(\d)\.(\d)\.shortcut\.", r"img_bev_encoder_backbone.layers.\1.\2.downsample."),
    (r"^bev_backbone\.stages\.(\d)\.(\d)\.", r"img_bev_encoder_backbone.layers.\1.\2."),
    (r"^bev_neck\.merge\.", "img_bev_encoder_neck.conv."),
    (r"^bev_neck\.output\.", "img_bev_encoder_neck.up2."),
    (r"^(proposal_head)\.shared\.0\.", "proposal_head.shared_conv.conv."),
    (r"^(proposal_head)\.shared\.1\.", "proposal_head.shared_conv.bn."),
    (r"^proposal_head\.tasks\.(\d)\.0\.0\.", r"proposal_head.task_heads.\1.heatmap.0.conv."),
    (r"^proposal_head\.tasks\.(\d)\.0\.1\.", r"proposal_head.task_heads.\1.heatmap.0.bn."),
    (r"^proposal_head\.tasks\.(\d)\.1\.", r"proposal_head.task_heads.\1.heatmap.1."),
    (r"^box_head\.shared\.0\.", "pts_bbox_head.shared_conv.conv."),
    (r"^box_head\.shared\.1\.", "pts_bbox_head.shared_conv.bn."),
    (r"^box_head\.tasks\.(\d)\.(\w+)\.0\.0\.", r"pts_bbox_head.task_heads.\1.\2.0.conv."),
    (r"^box_head\.tasks\.(\d)\.(\w+)\.0\.1\.", r"pts_bbox_head.task_heads.\1.\2.0.bn."),
    (r"^box_head\.tasks\.(\d)\.(\w+)\.1\.", r"pts_bbox_head.task_heads.\1.\2.1."),
    (r"^depth_embedding\.", "depth_emb."),
    (r"^refinement\.shared\.0\.", "transformer_neck.shared_conv.conv."),
    (r"^refinement\.shared\.1\.", "transformer_neck.shared_conv.bn."),
    (r"^refinement\.cell_embedding\.", "transformer_neck.bev_embedding."),
    (r"^refinement\.row_embedding\.", "transformer_neck.positional_encoding.row_embed."),
    (r"^refinement\.column_embedding\.", "transformer_neck.positional_encoding.col_embed."),
    (
        r"^refinement\.attention\.deformable\.offsets\.",
        "transformer_neck.decoder.layers.0.attentions.0.deformable_attention.sampling_offsets.",
    ),
    (
        r"^refinement\.attention\.deformable\.weights\.",
        "transformer_neck.decoder.layers.0.attentions.0.deformable_attention.attention_weights.",
    ),
    (
        r"^refinement\.attention\.deformable\.value_projection\.",
        "transformer_neck.decoder.layers.0.attentions.0.deformable_attention.value_proj.",
    ),
    (r"^refinement\.attention\.output\.", "transformer_neck.decoder.layers.0.attentions.0.output_proj."),
    (r"^refinement\.attention_norm\.", "transformer_neck.decoder.layers.0.norms.0."),
    (r"^refinement\.feedforward_norm\.", "transformer_neck.decoder.layers.0.norms.1."),
    (r"^refinement\.feedforward\.0\.", "transformer_neck.decoder.layers.0.ffns.0.layers.0.0."),
    (r"^refinement\.feedforward\.2\.", "transformer_neck.decoder.layers.0.ffns.0.layers.1."),
]
_ASPP_BRANCH = re.compile(r"^depth_net\.depth_layers\.3\.branches\.(\d)\.(\d)\.(.*)$")


def published_name(name: str) -> str:
    """The published name of one of this project's state-dict entries.

    Raises:
        KeyError: when no rule covers ``name``.
    """
    aspp = _ASPP_BRANCH.match(name)
    if aspp:
        part = "atrous_conv" if aspp[2] == "0" else "bn"
        return f"img_view_transformer.depth_net.depth_conv.3.aspp{int(aspp[1]) + 1}.{part}.{aspp[3]}"
    for pattern, replacement in _RULES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    raise KeyError(name)


def published_names(names: Iterable[str]) -> dict[str, str]:
    """``{this project's name: published name}``."""
    return {name: published_name(name) for name in names}
