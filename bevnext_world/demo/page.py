# SPDX-License-Identifier: Apache-2.0
"""The demo's HTML page: one file that holds video, pictures, tables and what was run."""

from __future__ import annotations

import base64
import math
import mimetypes
from pathlib import Path

import jinja2

from bevnext_core.files import atomic_path
from bevnext_tools.draw.colors import class_color
from bevnext_tools.evaluation.metric import ERROR_NAMES
from bevnext_world.demo.show import Shown

STAGES = {
    "preprocess": "resize and normalise six images",
    "encode": "encode them: backbone, neck, depth network, CRF",
    "lift": "lift present and past frames into the bird's-eye view",
    "detect": "fuse, encode the view, propose, refine, regress",
    "decode": "decode boxes, suppress doubles",
    "detector": "the detector, all of the above",
    "read": "read six JPEG files",
    "draw": "draw this picture and encode video and animation",
}
ERRORS = {
    "trans_err": "translation, m",
    "scale_err": "scale, 1 - IoU",
    "orient_err": "orientation, rad",
    "vel_err": "velocity, m/s",
    "attr_err": "attribute, 1 - accuracy",
}
"""The official metric's errors of matched boxes, and their units."""


def write_page(shown: Shown, about: dict[str, str], path: Path) -> None:
    """Write the page. ``about``: what was run, a line per entry. It loads nothing from anywhere else."""
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    summary = shown.evaluation.summary
    text = jinja2.Template(template, autoescape=True, undefined=jinja2.StrictUndefined).render(
        shown=shown,
        about=about,
        summary=summary,
        stages=STAGES,
        errors=ERRORS,
        error_names=ERROR_NAMES,
        absent=[name.replace("_", " ") for name in summary["mean_dist_aps"] if not shown.objects[name]],
        color=class_color,
        number=lambda value: "-" if math.isnan(value) else f"{value:.3f}",
        uri=data_uri,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def data_uri(path: Path) -> str:
    """The file's content as an address."""
    return f"data:{mimetypes.guess_type(path.name)[0]};base64,{base64.b64encode(path.read_bytes()).decode()}"
