"""Time BEV pooling at full size: the compiled form, plain PyTorch, and a library form or the published algorithm.

    python -m scripts.measure_bev_pool                    # CPU: C++, plain, CSR matrix product
    python -m scripts.measure_bev_pool --device cuda      # GPU: CUDA, plain, BEVPoolv2's algorithm; share of the floor

Six cameras in a ring as on nuScenes, R50 stage 2 (118 x 32 x 88 points each, 160 channels, 128 x 128 cells), one
frame and the nine of a window, each with its own pose. All forms run in turn, in one process, and are compared
before they are timed. On the CPU the time is that of the process on all its threads, which other programs on the
machine disturb less than the clock on the wall; that is printed too.
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from bevnext_core.config import published_config
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.view_transform import ViewTransform
from bevnext_core.ops.bev_pool import operator as bev_pool_op
from bevnext_core.ops.bev_pool.baseline import baseline_backward, baseline_forward
from bevnext_core.ops.bev_pool.plain import (
    PoolPlan,
    bev_pool,
    bev_pool_form,
    bev_pool_plain,
    make_plan,
    sorted_points,
)

YAWS = (0, -55, -110, 180, 110, 55)  # degrees; front, then clockwise
METRES_PER_FRAME = 5.0  # half a second at 10 m/s


def ring(frames: int) -> CameraGeometry:
    """Geometry of a rig that drives straight on: ``B = 1``, present first."""
    rotation, translation = torch.zeros(1, frames, 6, 3, 3), torch.zeros(1, frames, 6, 3)
    for camera, degrees in enumerate(YAWS):
        yaw = math.radians(degrees)
        forward = (math.cos(yaw), math.sin(yaw), 0.0)
        right = (math.sin(yaw), -math.cos(yaw), 0.0)
        rotation[0, :, camera] = torch.tensor([right, (0.0, 0.0, -1.0), forward]).t()
        for frame in range(frames):
            ahead = (1.7 * forward[0] - METRES_PER_FRAME * frame, 0.5 * forward[1], 1.5)
            translation[0, frame, camera] = torch.tensor(ahead)
    focal = torch.tensor([1266.0] * 3 + [809.0] + [1266.0] * 2)  # the back camera sees wider
    intrinsics = torch.eye(3).repeat(1, frames, 6, 1, 1)
    intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = focal
    intrinsics[..., 0, 2], intrinsics[..., 1, 2] = 800.0, 450.0
    image_rotation = torch.diag(torch.tensor([0.44, 0.44, 1.0])).repeat(1, frames, 6, 1, 1)
    image_translation = torch.tensor([0.0, -140.0, 0.0]).repeat(1, frames, 6, 1)
    return CameraGeometry(
        rotation, translation, intrinsics, image_rotation, image_translation, torch.eye(3)[None]
    )


def csr_forward(depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
    """The same sum as a product of a sparse matrix (cells x pixels) and the table of contexts."""
    points, pixels, starts = plan.sorted
    used = int(starts[-1])
    table = context.permute(0, 2, 3, 1).reshape(-1, context.shape[1])
    weights = depth.reshape(-1)[points[:used]]
    matrix = torch.sparse_csr_tensor(starts, pixels[:used], weights, (len(starts) - 1, len(table)))
    return (matrix @ table).view(plan.maps, *plan.size, -1).permute(0, 3, 1, 2).contiguous()


def gradients(pool: Callable, depth: Tensor, context: Tensor, plan: PoolPlan, grad: Tensor) -> Tensor:
    depth, context = depth.detach().requires_grad_(), context.detach().requires_grad_()
    pool(depth, context, plan).backward(grad)
    return depth.grad


def timed_cpu(work: Callable[[], object], repeats: int) -> tuple[str, float]:
    process, wall = [], []
    for _ in range(repeats + 1):
        began, began_wall = time.process_time(), time.perf_counter()
        work()
        process.append((time.process_time() - began) * 1e3)
        wall.append((time.perf_counter() - began_wall) * 1e3)
    process, wall = process[1:], wall[1:]
    text = f"{median(process):8.1f} ms CPU ({min(process):.1f} to {max(process):.1f}), {median(wall):8.1f} on the wall"
    return text, median(process)


def timed_gpu(work: Callable[[], object], repeats: int) -> tuple[str, float]:
    """Of a captured graph, so that launching costs nothing."""
    for _ in range(3):
        work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return f"{median(times):8.4f} ms ({min(times):.4f} to {max(times):.4f})", median(times)


def on_cpu(view: ViewTransform, frames: int, repeats: int) -> None:
    geometry = ring(frames)
    depth, context, grad = inputs(frames, torch.float32, "cpu")
    plan, size, shape = view.plan(geometry), (view.cells[1], view.cells[0]), (6 * frames, *view.shape)
    assert (view.cell_of_points(geometry) != plan.cells).sum() <= 8 * frames
    expected = bev_pool_plain(depth, context, plan)
    for pool in (bev_pool, csr_forward):
        torch.testing.assert_close(pool(depth, context, plan), expected, rtol=1e-4, atol=1e-5)

    def plain_plan() -> None:
        sorted_points(view.cell_of_points(geometry), shape[1], shape[2] * shape[3], plain_total)

    plain_total = plan.maps * size[0] * size[1]
    works: dict[str, dict[str, Callable[[], object]]] = {
        "plan from geometry": {"C++": lambda: view.plan(geometry), "plain": plain_plan},
        "points sorted by cell": {
            "C++": lambda: make_plan(plan.cells, plan.maps, size, shape).sorted,
            "plain": lambda: sorted_points(plan.cells, shape[1], shape[2] * shape[3], plain_total),
        },
        "forward": {
            "C++": lambda: bev_pool(depth, context, plan),
            "plain": lambda: bev_pool_plain(depth, context, plan),
            "CSR": lambda: csr_forward(depth, context, plan),
        },
        "forward and backward": {
            "C++": lambda: gradients(bev_pool, depth, context, plan, grad),
            "plain": lambda: gradients(bev_pool_plain, depth, context, plan, grad),
        },
    }
    found: dict[str, dict[str, float]] = {}
    for name, forms in works.items():
        found[name] = {}
        for form, work in forms.items():
            text, found[name][form] = timed_cpu(work, repeats)
            print(f"{frames} frame(s)  {name:24s} {form:6s} {text}", flush=True)
    for name in ("forward", "forward and backward"):
        ratio = found[name]["plain"] / found[name]["C++"]
        whole = (found["plan from geometry"]["plain"] + found[name]["plain"]) / (
            found["plan from geometry"]["C++"] + found[name]["C++"]
        )
        print(
            f"{frames} frame(s)  {name}: {ratio:.2f} times faster than plain; with the plan {whole:.2f} times"
        )


def on_gpu(view: ViewTransform, frames: int, repeats: int, bandwidth: float) -> None:
    view = view.cuda()
    plan = view.plan(ring(frames).to("cuda"))
    library = bev_pool_op.cuda_library(torch.cuda.current_device())
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        depth, context, grad = inputs(frames, dtype, "cuda")
        context = context.contiguous(memory_format=torch.channels_last)
        grad = grad.contiguous(memory_format=torch.channels_last)
        points, pixels, starts = plan.sorted
        indices = 8 * int(starts[-1]) + 4 * len(starts)
        sizes = [t.numel() * t.element_size() for t in (depth, context, grad)]
        floors = {
            "forward": sum(sizes) + indices,
            "backward": 2 * (sizes[0] + sizes[1]) + sizes[2] + 4 * plan.cells.numel(),
        }
        pool, pool_backward = torch.ops.bevnext.bev_pool, torch.ops.bevnext.bev_pool_backward
        order, shape = (plan.cells, points, pixels, starts), (plan.maps, *plan.size)
        works: dict[str, dict[str, Callable[[], object]]] = {
            "forward": {
                "CUDA": partial(pool, depth, context, *order, shape, True),
                "plain": partial(bev_pool_plain, depth, context, plan),
            },
            "backward": {"CUDA": partial(pool_backward, grad, depth, context, plan.cells, True)},
        }
        if dtype == torch.float32:
            table = context.permute(0, 2, 3, 1).reshape(-1, 160)
            rows = grad.permute(0, 2, 3, 1).reshape(-1, 160)
            works["forward"]["BEVPoolv2"] = partial(baseline_forward, library, depth, table, plan)
            works["backward"]["BEVPoolv2"] = partial(baseline_backward, library, rows, depth, table, plan)
        expected = bev_pool_plain(depth, context, plan)
        torch.testing.assert_close(bev_pool(depth, context, plan), expected, rtol=1e-3, atol=1e-3)
        for name, forms in works.items():
            floor = floors[name] / bandwidth / 1e6
            for form, work in forms.items():
                text, milliseconds = timed_gpu(work, repeats)
                share = 100 * floor / milliseconds
                print(
                    f"{frames} frame(s)  {str(dtype)[6:]:9s} {name:9s} {form:10s} {text}, {share:.0f} % of the floor"
                )
        print(
            f"{frames} frame(s)  floors: "
            + ", ".join(f"{n} {b / bandwidth / 1e6:.4f} ms" for n, b in floors.items())
        )


def inputs(frames: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    depth = torch.randn(6 * frames, 118, 32, 88).softmax(1).to(device, dtype)
    context = torch.randn(6 * frames, 160, 32, 88).to(device, dtype)
    return depth, context, torch.randn(frames, 160, 128, 128).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 9])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--bandwidth", type=float, default=4800.0, help="of the GPU's memory, GB/s (H200: 4800)"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse")
    config = published_config(2)
    view = ViewTransform(config.image, config.depth, config.bev)
    print(
        f"form {bev_pool_form(args.device)}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), "
        f"load {os.getloadavg()[0]:.1f}"
    )
    for frames in args.frames:
        if args.device == "cpu":
            on_cpu(view, frames, args.repeats)
        else:
            on_gpu(view, frames, args.repeats, args.bandwidth)


if __name__ == "__main__":
    main()
