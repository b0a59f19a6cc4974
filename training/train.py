#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train BEVNeXt on nuScenes, with the published two-stage schedule.

    python training/train.py --stage 1 --dataroot D --work-dir runs/1
    python training/train.py --stage 2 --dataroot D --work-dir runs/2 --init-from runs/1/epoch_2_ema.safetensors
    torchrun --nproc-per-node 8 --max-restarts 3 training/train.py --stage 2 ... --resume

The file reads from top to bottom: what a run is, one step of it, what guards it, and the loop. The options are in
training/run/options.py, the losses in training/losses, the samples in training/data.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run from a source tree, without installing
    sys.path.insert(0, str(ROOT))

from bevnext_core.config import ModelConfig, config_to_mapping  # noqa: E402
from bevnext_core.errors import BevnextError, DatasetError, one_line  # noqa: E402
from bevnext_tools.threads import prepare_threads  # noqa: E402
from training.run.options import check_data, parse_arguments, resolve_config  # noqa: E402
from training.run.schedule import describe, make_schedule  # noqa: E402

if __name__ == "__main__":  # a slip is told before torch is loaded, which takes seconds
    prepare_threads()
    try:
        resolve_config(given := parse_arguments())
        check_data(given)
    except BevnextError as error:
        sys.exit(f"error: {one_line(error)}")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from bevnext_core.checkpoint import save_checkpoint  # noqa: E402
from bevnext_core.network.bevnext import BEVNeXt  # noqa: E402
from bevnext_core.trained_on import TrainedOn  # noqa: E402
from training.data.cbgs import balanced_frames  # noqa: E402
from training.data.dataset import Batch, TrainingDataset  # noqa: E402
from training.data.encodings import EncodedDataset  # noqa: E402
from training.data.index import join_indexes, open_index  # noqa: E402
from training.data.loader import batches_of, make_loader  # noqa: E402
from training.data.sampler import EpochSampler  # noqa: E402
from training.data.shared_runs import RunDataset, RunSampler  # noqa: E402
from training.run.ema import ModelEma  # noqa: E402
from training.run.gradient_checkpointing import enable_checkpointing  # noqa: E402
from training.run.initialisation import initialise, load_read_out  # noqa: E402
from training.run.optimizer import make_optimizer  # noqa: E402
from training.run.parts import freeze, frozen_state, kinds  # noqa: E402
from training.run.processes import Processes, join_processes, leave_processes  # noqa: E402
from training.run.progress import Progress  # noqa: E402
from training.run.shared_forward import measure_parameters  # noqa: E402
from training.run.tensorboard import open_tensorboard  # noqa: E402
from training.run.train_checkpoint import CheckpointFolder, Run, random_state, set_random_state  # noqa: E402
from training.run.work_dir import claim_work_dir, start_log  # noqa: E402

log = logging.getLogger("train")


def main(arguments: list[str] | None = None) -> int:
    try:
        options = parse_arguments(arguments)
        config = resolve_config(options)
        processes = join_processes("cpu" if options.dry_run else options.device)
        if options.dry_run:
            dry_run(config, options, processes)
        else:
            train(config, options, processes)
        return 0
    except (BevnextError, OSError) as error:  # a full disk or a folder without rights is the user's to mend too
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    finally:
        leave_processes()


# ------------------------------------------------------------------------------------------------- data
def dataroots(options: argparse.Namespace) -> list[str]:
    """The data sets that are one here."""
    return [options.dataroot] if isinstance(options.dataroot, str) else options.dataroot


def open_data(config: ModelConfig, options: argparse.Namespace, processes: Processes) -> TrainingDataset:
    """The samples of the split, or runs of them. Rank 0 builds the index where it must be, the others read it."""
    if not processes.is_main:
        processes.barrier()
    progress = sys.stderr.isatty()
    indexes = [open_index(r, options.version, options.index_dir, progress, config) for r in dataroots(options)]
    if processes.is_main:
        processes.barrier()
    part = config.training.part
    return kinds(config.training)[0](join_indexes(indexes), config, options.scenes or options.split,
                                     None if part == "bev" or options.dry_run else options.cache)


def draw_frames(data: TrainingDataset, seed: int) -> Tensor:
    """Frames of an epoch, drawn once for the whole run."""
    training, classes = data.config.training, data.classes_of_frames()
    if training.class_balanced:
        chosen = data.frames[balanced_frames(classes, len(data.config.class_names), seed)]
    else:
        chosen = data.frames[[bool(labels) for labels in classes]]
    return torch.from_numpy(chosen).repeat(training.repeat)


def make_sampler(
    data: TrainingDataset, frames: Tensor, options: argparse.Namespace, processes: Processes
) -> EpochSampler:
    """What decides which samples a step takes."""
    training, place = data.config.training, (processes.rank, processes.count, options.seed)
    if not training.shared_run:
        return EpochSampler(frames.numpy(), options.batch, *place)
    return RunSampler(data.index, frames.numpy(), training.shared_run, options.batch, *place, training.class_balanced,
                      training.repeat)


def dry_run(config: ModelConfig, options: argparse.Namespace, processes: Processes) -> None:
    """Print the schedule for this number of processes."""
    frames = drawn = None
    if options.dataroot:
        data = open_data(config, options, processes)
        frames, drawn = len(data), make_sampler(data, draw_frames(data, options.seed), options, processes).samples
    print(*describe(config, options, processes.count, frames, drawn), sep="\n")


# ------------------------------------------------------------------------------------------------- one step
@dataclass
class Step:
    """What came of a step. ``fault``: why it was skipped, or empty; ``overflow``: fp16 looking for its loss scale."""

    losses: dict[str, Tensor]
    total: Tensor
    norm: Tensor
    fault: str = ""
    overflow: bool = False


def train_step(run: Run, model: nn.Module, batch: Batch, amp: torch.dtype | None, processes: Processes,
               ) -> Step:
    """Forward, backward, clip, optimiser, average. Without a trace where loss or gradient is not finite."""
    network, training = run.forward.network, run.forward.network.config.training
    statistics = [(buffer, buffer.clone()) for buffer in network.buffers() if buffer.dim() and
                  buffer.numel() < 4096]  # batch norms: a bad batch must not stay in them
    with torch.autocast(processes.device.type, amp) if amp else nullcontext():
        losses = model(batch)
    total = torch.stack(list(losses.values())).sum()
    result = Step(losses, total, torch.tensor(math.nan))
    # Every rank must take the same way, or the next collective call never ends.
    if processes.total((~torch.isfinite(total)).float()) > 0:
        result.fault = "non-finite loss"
    else:
        run.optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(total).backward()
        run.scaler.unscale_(run.optimizer)
        result.norm = nn.utils.clip_grad_norm_(run.forward.parameters(), training.gradient_clip)
        # Gradients are averaged over the ranks, so norm and loss scale are the same on all.
        if torch.isfinite(result.norm):
            run.scaler.step(run.optimizer)
            run.ema.update(network)
        else:
            # fp16 finds its loss scale by halving it; at 1 and below the gradient itself is at fault.
            scale = run.scaler.get_scale()
            result.overflow = scale > 1
            result.fault = "non-finite gradient" + f" at loss scale {scale:g}" * run.scaler.is_enabled()
        run.scaler.update()
    if result.fault:
        for buffer, before in statistics:
            buffer.copy_(before)
    run.step, run.epoch_step = run.step + 1, run.epoch_step + 1
    return result


def guard_step(run: Run, result: Step, batch: Batch, processes: Processes) -> None:
    """Count and log what went wrong.

    Raises:
        DatasetError: too many steps in a row were skipped, or too many frames could not be read.
    """
    training = run.forward.network.config.training
    run.unreadable.update(batch.faults)
    for token, reason in batch.faults:
        log.warning("frame %s cannot be read and is skipped: %s", token, reason)
    if not result.fault:
        run.skipped_in_row = 0
    else:
        run.skipped, run.skipped_in_row = run.skipped + 1, run.skipped_in_row + (not result.overflow)
        innocent = result.fault == "non-finite loss" and bool(torch.isfinite(result.total))
        tokens = processes.gather([] if innocent else batch.tokens)
        log.warning("step %d skipped: %s, samples %s", run.step, result.fault,
                    ", ".join(token for part in tokens for token in part))
        if run.skipped_in_row >= training.max_skipped and not result.overflow:
            raise DatasetError(f"{run.skipped_in_row} steps in a row had a non-finite loss or gradient: the run stops "
                               f"at step {run.step}, with a checkpoint; the samples are in its log.txt")
    if processes.total(torch.tensor(float(len(run.unreadable)), device=processes.device)) > training.max_unreadable:
        listing = {k: v for part in processes.gather(run.unreadable) for k, v in part.items()}
        raise DatasetError(f"{len(listing)} frames could not be read, {training.max_unreadable} are allowed "
                           "(training.max_unreadable): " + "; ".join(f"{k}: {v}" for k, v in listing.items()))


# ------------------------------------------------------------------------------------------------- the run
def train(config: ModelConfig, options: argparse.Namespace, processes: Processes) -> None:
    training, device = config.training, processes.device
    work_dir = claim_work_dir(config, options, processes)
    start_log(log, work_dir, processes)
    torch.manual_seed(options.seed)  # the same initial weights on every rank
    folder = CheckpointFolder(work_dir, options.keep, log.warning)
    saved = folder.to_continue(options.resume, processes.restarts)

    # ---------------------------------------------------------------- data
    data = open_data(config, options, processes)
    for token, reason in data.index.faults:
        log.warning("key frame %s cannot be used: %s", token, reason)
    frames = draw_frames(data, options.seed) if saved is None else saved["frames"]
    sampler = make_sampler(data, frames, options, processes)
    _, join, forward_kind = kinds(training)
    loader = make_loader(data, sampler, join, options.workers, device.type == "cuda")
    global_batch = options.batch * processes.count
    schedule = make_schedule(training, sampler.samples, global_batch)
    for line in describe(config, options, processes.count, len(data), sampler.samples):
        log.info("%s", line)

    # ---------------------------------------------------------------- network, optimiser, average
    network = BEVNeXt(config)
    if saved is None:
        for line in initialise(network, options):
            log.info("%s", line)
        if isinstance(data, RunDataset):
            log.info("%s", measure_parameters(network, data, options.seed))
    network.to(device, memory_format=torch.channels_last if training.channels_last else torch.preserve_format)
    if options.gradient_checkpointing != "off":
        enable_checkpointing(network, options.gradient_checkpointing == "published")
    freeze(network)
    forward = forward_kind(network, processes.mean).to(device).train()
    if saved is None and forward.perspective is not None:
        log.info("%s", load_read_out(forward.perspective, options))
    optimizer, ratios = make_optimizer(forward, training)
    ema = ModelEma(network, training.ema_decay, training.ema_ramp, training.ema_start)
    run = Run(forward, optimizer, torch.amp.GradScaler(device.type, enabled=options.amp == "fp16"), ema)
    torch.manual_seed(options.seed + 1 + processes.rank)  # the ranks share weights but not dropout
    if saved is not None:
        run.restore(saved)
        if len(saved["random"]) == processes.count:
            set_random_state(saved["random"][processes.rank])
        else:
            log.warning("%d processes instead of %d: dropout is drawn anew", processes.count, len(saved["random"]))
        if run.epoch_step == len(sampler):
            run.epoch, run.epoch_step = run.epoch + 1, 0
        log.info("continuing at step %d (epoch %d, step %d of it)", run.step, run.epoch, run.epoch_step)
    if isinstance(data, EncodedDataset):
        count, faults = data.encode_all(network, options.cache, processes.rank, processes.count, sys.stderr.isatty())
        processes.barrier()
        log.info("%d frames encoded, the others are in %s", count, data.store.path)
        for token, reason in faults:
            log.warning("frame %s cannot be encoded: %s", token, reason)
    model: nn.Module = forward
    if processes.count > 1:
        # Every rank keeps its own batch-norm statistics; the argument's name depends on PyTorch's version.
        names = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        model = DistributedDataParallel(forward, device_ids=[device.index] if device.type == "cuda" else None,
                                        **{sync: False})

    def save() -> None:
        states = processes.gather(random_state())
        if processes.is_main:
            folder.save(run.step, {**run.state(), "frames": frames, "stage": training.stage, "random": states,
                                   "config": config_to_mapping(config)})

    def write_weights(name: str) -> None:
        if processes.is_main:
            names = ", ".join(Path(root).resolve().name for root in dataroots(options))
            origin = TrainedOn.today(f"{names} {data.index.version}", data.told_intrinsics())
            beside, average = forward.beside_the_network(), run.ema.state | frozen_state(network)
            save_checkpoint(work_dir / f"{name}.safetensors", network.state_dict() | beside, config, origin)
            save_checkpoint(work_dir / f"{name}_ema.safetensors", average | beside, config, origin)

    # ---------------------------------------------------------------- the loop
    amp = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.amp)
    board = open_tensorboard(work_dir, log) if processes.is_main else None
    progress = Progress(log, work_dir, options.log_every, processes, schedule.steps, run.step, global_batch)
    while run.epoch < training.epochs:
        if training.sync_bn_epoch is not None and run.epoch >= training.sync_bn_epoch and processes.count > 1:
            if device.type == "cuda":
                nn.SyncBatchNorm.convert_sync_batchnorm(network)
            elif run.epoch_step == 0:
                log.warning("batch norm is not synchronised: PyTorch has that for GPUs only")
        sampler.start(run.epoch, run.epoch_step)
        batches = batches_of(loader)
        while True:
            waited = time.perf_counter()
            batch = next(batches, None)
            waited = time.perf_counter() - waited
            if batch is None:
                break
            batch = batch.to(device)
            rate = schedule.learning_rate * schedule.factor(run.step)
            for ratio, group in zip(ratios, run.optimizer.param_groups):
                group["lr"] = rate * ratio
            result = train_step(run, model, batch, amp, processes)
            try:
                guard_step(run, result, batch, processes)
            except DatasetError:
                save()
                raise
            if progress.update(run.step, run.epoch, result.losses, result.norm, rate, waited, run.skipped) and board:
                board.scalars(run.step, result.losses, result.total, result.norm, rate)
                if run.step % (20 * options.log_every) == 0 or run.step == options.log_every:
                    board.pictures(run.step, batch, forward.maps, config)
            stop = options.max_steps is not None and run.step >= options.max_steps
            if run.step % options.checkpoint_every == 0 or run.epoch_step == len(sampler) or stop:
                save()
            if stop:
                write_weights(f"step_{run.step}")
                log.info("stopped after %d steps, as asked", run.step)
                return
        write_weights(f"epoch_{run.epoch + 1}")
        log.info("epoch %d of %d ended at step %d", run.epoch + 1, training.epochs, run.step)
        run.epoch, run.epoch_step = run.epoch + 1, 0
    log.info("training ended; the result is %s", work_dir / f"epoch_{training.epochs}_ema.safetensors")


if __name__ == "__main__":
    sys.exit(main())
