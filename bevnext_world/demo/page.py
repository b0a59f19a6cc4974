"""The demo's HTML page: one file that holds video, pictures, tables and what was run."""

from __future__ import annotations

import base64
import math
from html import escape
from pathlib import Path

from bevnext_core.draw.bev import class_color
from bevnext_core.evaluation.metric import ERROR_NAMES
from bevnext_core.files import atomic_path
from bevnext_world.demo.show import Shown

STAGES = {
    "preprocess": "resize and normalise six images",
    "encode": "encode them: backbone, neck, depth network, CRF",
    "lift": "lift present and past frames into the bird's-eye view",
    "detect": "fuse, encode the view, propose, refine, regress",
    "decode": "decode boxes, suppress doubles",
    "detector": "the detector, all of the above",
    "read": "read six JPEG files",
    "draw": "draw this picture and encode the video",
}
ERRORS = {
    "trans_err": "translation, m",
    "scale_err": "scale, 1 - IoU",
    "orient_err": "orientation, rad",
    "vel_err": "velocity, m/s",
    "attr_err": "attribute, 1 - accuracy",
}
"""The official metric's errors of matched boxes, and their units."""
_MEDIA = {".mp4": "video/mp4", ".gif": "image/gif", ".jpg": "image/jpeg", ".png": "image/png"}

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --dim: #777; --accent: #d98a00; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; }
video, img { width: 100%; border-radius: 6px; display: block; background: #181a1e; }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0; }
.numbers div { flex: 1 1 9rem; border: 1px solid var(--line); border-radius: 6px; padding: .6rem 1rem; }
.numbers b { display: block; font-size: 1.9rem; line-height: 1.2; color: var(--accent); }
.numbers span, figcaption, .note { color: var(--dim); font-size: .9rem; }
.scroll { overflow-x: auto; } figure { margin: 1.5rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); font-weight: normal; }
th { color: var(--dim); } th:first-child, td:first-child { text-align: left; }
tr.sum td { font-weight: 600; }
i { display: inline-block; width: .8rem; height: .8rem; margin-right: .5rem; border-radius: 2px; }
code { font-size: .9rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; }
dd { margin: 0; } dt { color: var(--dim); }
"""


def write_page(shown: Shown, about: dict[str, str], path: Path) -> None:
    """Write the page. ``about``: what was run, a line per entry. It loads nothing from anywhere else."""
    with atomic_path(path) as temporary:
        temporary.write_text(page(shown, about), encoding="utf-8")


def page(shown: Shown, about: dict[str, str]) -> str:
    """The page's text."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>BEVNeXt: {escape(shown.scene)}</title><style>{_STYLE}</style></head><body>",
        "<h1>BEVNeXt on a drive that it has never seen</h1>",
        f"<p>Six cameras go in, 3D boxes with class, score and velocity come out: {shown.frames} frames of the "
        f"synthetic drive {escape(shown.scene)}, one after the other, as a stream. Every box in the images and every "
        "filled box in the views from above was detected; outlines in green are the ground truth.</p>",
        f"<figure>{_video(shown)}<figcaption>Front cameras above, rear cameras below. The boxes' colours are those "
        "of their classes; an arrow is the way of one second. Between key frames the ground truth is "
        "interpolated.</figcaption></figure>",
        _headline(shown),
        _score(shown),
        _times(shown),
        f"<h2>Contact sheet</h2><figure><img src='{data_uri(shown.sheet)}' alt='four moments of the drive'></figure>",
        "<h2>What was run</h2><dl>",
        *(f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in about.items()),
        "</dl></body></html>",
    ]
    return "\n".join(parts)


def data_uri(path: Path) -> str:
    """The file's content as an address."""
    return f"data:{_MEDIA[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _video(shown: Shown) -> str:
    if shown.video.suffix == ".gif":
        return f"<img src='{data_uri(shown.video)}' alt='the drive'>"
    poster = data_uri(shown.picture)
    return f"<video controls autoplay muted loop playsinline poster='{poster}' src='{data_uri(shown.video)}'></video>"


def _headline(shown: Shown) -> str:
    typical = shown.times("detector")[0]
    boxes = (
        (f"{shown.evaluation.mean_ap:.3f}", "mAP"),
        (f"{shown.evaluation.nd_score:.3f}", "NDS"),
        (f"{shown.frames_per_second:.1f}", f"frames per second ({typical * 1e3:.0f} ms each)"),
        (f"{shown.frames}", f"frames, {shown.key_frames} of them scored"),
    )
    cells = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in boxes)
    return f"<div class='numbers'>{cells}</div>"


def _score(shown: Shown) -> str:
    summary = shown.evaluation.summary
    head = "".join(f"<th title='{ERRORS[key]}'>{name}</th>" for key, name in ERROR_NAMES.items())
    rows = []
    for name, ap in summary["mean_dist_aps"].items():
        errors = "".join(f"<td>{_number(summary['label_tp_errors'][name][key])}</td>" for key in ERROR_NAMES)
        color = "rgb({},{},{})".format(*class_color(name))
        rows.append(
            f"<tr><td><i style='background:{color}'></i>{escape(name.replace('_', ' '))}</td>"
            f"<td>{shown.objects[name]}</td><td>{ap:.3f}</td>{errors}</tr>"
        )
    errors = "".join(f"<td>{_number(summary['tp_errors'][key])}</td>" for key in ERROR_NAMES)
    mean = f"<tr class='sum'><td>mean</td><td></td><td>{shown.evaluation.mean_ap:.3f}</td>{errors}</tr>"
    units = ", ".join(f"{ERROR_NAMES[key]} {unit}" for key, unit in ERRORS.items())
    absent = [name.replace("_", " ") for name in summary["mean_dist_aps"] if not shown.objects[name]]
    note = f" This drive has no {' and no '.join(absent)}: its AP counts as 0." if absent else ""
    return (
        f"<h2>Score</h2><p class='note'>The official nuScenes metric (nuscenes-devkit) on the {shown.key_frames} key "
        f"frames. Objects: annotated, within the metric's range.{note}</p><div class='scroll'><table>"
        f"<tr><th>class</th><th>objects</th><th>AP</th>{head}</tr>{''.join(rows)}{mean}</table></div>"
        f"<p class='note'>Errors of the boxes that were matched within 2 m: {units}.</p>"
    )


def _times(shown: Shown) -> str:
    rows = []
    for stage, text in STAGES.items():
        if stage not in shown.seconds:
            continue
        cells = "".join(f"<td>{seconds * 1e3:.1f}</td>" for seconds in shown.times(stage))
        kind = " class='sum'" if stage == "detector" else ""
        rows.append(f"<tr{kind}><td>{text}</td>{cells}</tr>")
    return (
        "<h2>Time</h2><p class='note'>Milliseconds per frame of six cameras.</p><div class='scroll'><table>"
        f"<tr><th>step</th><th>median</th><th>least</th><th>most</th></tr>{''.join(rows)}</table></div>"
    )


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
