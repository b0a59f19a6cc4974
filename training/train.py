#!/usr/bin/env python3
"""Train BEVNeXt on nuScenes, with the published two-stage schedule.

    python training/train.py --stage 1 --dataroot D --work-dir runs/1
    python training/train.py --stage 2 --dataroot D --work-dir runs/2 --init-from runs/1/epoch_2_ema.safetensors
    torchrun --nproc-per-node 8 --max-restarts 3 training/train.py --stage 2 ... --resume

The file reads from top to bottom: options, data, network, loop. Everything it calls is in bevnext_core.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import math
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run from a source tree, without installing
    sys.path.insert(0, str(ROOT))

from bevnext_core.checkpoint import save_checkpoint  # noqa: E402
from bevnext_core.config import (  # noqa: E402
    ModelConfig,
    config_from_mapping,
    config_to_mapping,
    load_config,
    published_config,
)
from bevnext_core.errors import BevnextError, CheckpointError, ConfigError, DatasetError, one_line  # noqa: E402
from bevnext_core.evaluation.distributed import Processes, join_processes, leave_processes  # noqa: E402
from bevnext_core.files import Parser, atomic_path  # noqa: E402
from bevnext_core.network.bevnext import BEVNeXt  # noqa: E402
from training.data.cbgs import balanced_frames  # noqa: E402
from training.data.dataset import DatasetOptions, TrainingDataset, join_samples  # noqa: E402
from training.data.index import DatasetIndex, open_index  # noqa: E402
from training.data.loader import batches_of, make_loader  # noqa: E402
from training.data.sampler import EpochSampler  # noqa: E402
from training.data.shared_runs import RunDataset, RunSampler, join_runs  # noqa: E402
from training.run.batch_statistics import synchronise_batch_norms  # noqa: E402
from training.run.ema import ModelEma  # noqa: E402
from training.run.gradient_checkpointing import enable_checkpointing  # noqa: E402
from training.run.initialisation import (  # noqa: E402
    load_imagenet,
    load_matching,
    load_perspective,
    load_same_network,
    load_stage_1,
    scale_heads,
)
from training.run.memory import expected_memory  # noqa: E402
from training.run.progress import Progress  # noqa: E402
from training.run.schedule import learning_rate_statement, make_schedule  # noqa: E402
from training.run.shared_forward import SharedForward, measure_parameters  # noqa: E402
from training.run.tensorboard import open_tensorboard  # noqa: E402
from training.run.train_checkpoint import (  # noqa: E402
    CheckpointFolder,
    random_state,
    read_training_checkpoint,
    set_random_state,
)
from training.run.training_forward import ForwardOptions, TrainingForward  # noqa: E402

log = logging.getLogger("train")
NOT_PART_OF_THE_RUN = {"resume", "dry_run", "work_dir", "index_dir", "workers", "device", "no_progress", "max_steps",
                       "log_every", "checkpoint_every", "keep"}
"""Options that may change when a run is continued."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Train BEVNeXt on nuScenes.")
    add = parser.add_argument
    add("--stage", type=int, choices=(1, 2), required=True)
    add("--config", help="model configuration (YAML); default: the published one of the stage")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. training.epochs=3")
    add("--dataroot", help="nuScenes folder")
    add("--version", default="v1.0-trainval")
    add("--split", default="train", help="official split to train on (mini_train for v1.0-mini)")
    add("--scenes", nargs="+", help="train on these scenes instead of a split")
    add("--index-dir", help="where the index file of the data set is kept (default: ~/.cache/bevnext_ros)")
    add("--work-dir", help="checkpoints, log, resolved configuration")
    add("--resume", nargs="?", const="newest", help="continue the work dir's newest checkpoint, or this file")
    add("--init-from", help="stage 2: the stage-1 checkpoint to start from")
    add("--backbone-weights", help="stage 1: file with the backbone's initial weights")
    add("--fine-tune", help="start from all weights of this checkpoint of the same network; a new schedule begins")
    add("--warm-start", nargs="+", metavar="FILE", help="start from those entries of checkpoints of either stage whose "
        "name and shape fit, the last file's where several do")
    add("--from-scratch", action="store_true", help="start from random weights")
    add("--head-scale", type=float, default=1.0, metavar="F",
        help="multiply the random weights of the heads' last convolutions (published: 1; 0.02 starts calmly)")
    add("--batch", type=int, default=8, help="samples per process and step (published: 8)")
    add("--learning-rate", type=float, help="instead of the published one, scaled to the batch")
    add("--seed", type=int, default=0)
    add("--amp", choices=("off", "bf16", "fp16"), default="off", help="mixed precision; published: off")
    add("--history", choices=("sequential", "batched", "frozen", "shared"), default="sequential",
        help="how history frames are encoded; all but the default change the recipe (docs/training.md)")
    add("--shared-run", type=int, metavar="R",
        help="for --history shared: consecutive key frames that share their augmentation (default 4)")
    add("--history-precision", choices=("fp32", "bf16"), default="fp32")
    add("--perspective-loss", type=float, default=0.0, metavar="W",
        help="weight of a loss on the class of each image patch, for training without pretraining (published: 0)")
    add("--history-from-epoch", type=int, default=0, help="before it, zeros stand in for the history (published: 0)")
    add("--gradient-checkpointing", choices=("off", "on", "published"), default="off",
        help="'published' also updates batch-norm statistics in the second forward")
    add("--channels-last", action="store_true")
    add("--no-augmentation", action="store_true")
    add("--no-cbgs", action="store_true", help="every frame once an epoch instead of class-balanced resampling")
    add("--repeat", type=int, default=1, help="times that the frames come in one epoch (for a handful of frames)")
    add("--missing-lidar", choices=("skip", "no-depth-loss"), default="skip")
    add("--max-unreadable", type=int, default=50, help="frames that may be unreadable before the run stops")
    add("--max-skipped", type=int, default=20, help="steps in a row with a non-finite loss or "
        "gradient before the run stops; fp16 overflows above loss scale 1 do not count")
    add("--checkpoint-every", type=int, default=500, help="steps between checkpoints (also at each epoch's end)")
    add("--keep", type=int, default=3, help="checkpoints that are kept")
    add("--workers", "--num-workers", type=int, default=4, help="data-loader processes per process")
    add("--device", default="auto", choices=("auto", "cuda", "cpu"))
    add("--log-every", type=int, default=50)
    add("--max-steps", type=int, help="stop (with a checkpoint and the weights) after this many steps of the whole run")
    add("--no-progress", action="store_true")
    add("--dry-run", action="store_true", help="print the schedule and stop")
    options = parser.parse_args(arguments)
    for name in ("dataroot", "work_dir"):
        if getattr(options, name) is None and not options.dry_run:
            parser.error(f"--{name.replace('_', '-')} is needed")
    if options.history == "shared":
        options.shared_run = 4 if options.shared_run is None else options.shared_run
    elif options.shared_run is not None:
        parser.error("--shared-run belongs to --history shared")
    return options


# ------------------------------------------------------------------------------------------------- configuration
def resolve_config(options: argparse.Namespace) -> ModelConfig:
    """The model configuration with the command line's overrides."""
    config = load_config(options.config) if options.config else published_config(options.stage)
    mapping = config_to_mapping(config)
    for override in options.set:
        key, separator, text = override.partition("=")
        part: Any = mapping
        path = key.split(".")
        for name in path[:-1]:
            part = part.get(name) if isinstance(part, dict) else None
        if not separator or not isinstance(part, dict) or path[-1] not in part:
            raise ConfigError(f"--set {override}: expected KEY=VALUE with a key that 'bevnext config --dump' shows")
        try:
            part[path[-1]] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is no valid YAML: {one_line(error)}") from None
    config = config_from_mapping(mapping, "--set" if options.set else str(options.config))
    if config.training.stage != options.stage:
        raise ConfigError(f"--stage {options.stage}, but '{config.name}' is a configuration of stage "
                          f"{config.training.stage}")
    if sum(map(bool, (options.from_scratch, options.fine_tune, options.warm_start, options.init_from))) > 1:
        raise ConfigError("--from-scratch, --fine-tune, --warm-start and --init-from are ways to start: choose one")
    if options.head_scale != 1 and not options.from_scratch:
        raise ConfigError("--head-scale is about random weights: it goes with --from-scratch")
    if options.history == "shared" and not config.history.frames:
        raise ConfigError(f"--history shared: '{config.name}' has no history to share")
    if options.history == "batched" and options.gradient_checkpointing != "off":
        raise ConfigError("--history batched does not go with --gradient-checkpointing: the second forward of a block "
                          "would take the statistics of the present frame alone")
    return config


def claim_work_dir(folder: Path, config: ModelConfig, options: argparse.Namespace, processes: Processes) -> None:
    """Write the resolved configuration, or check that the folder holds the same one."""
    run = {key: value for key, value in vars(options).items() if key not in NOT_PART_OF_THE_RUN}
    resolved = {"model": config_to_mapping(config), "run": run | {"processes": processes.count}}
    path = folder / "config.yaml"
    if path.exists() and any(folder.glob("*.pt")):  # a run that never got to a checkpoint binds nobody
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        different = _differences(found, yaml.safe_load(yaml.safe_dump(_plain(resolved))))
        if different:
            raise ConfigError(f"{folder} holds a run of another configuration ({', '.join(different[:6])}); "
                              "choose another --work-dir, or delete this one")
    elif processes.is_main:
        revision = ""
        with suppress(OSError):  # no git here
            revision = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=ROOT,
                                      capture_output=True, text=True, check=False).stdout.strip()
        with atomic_path(path) as temporary:
            text = yaml.safe_dump(_plain(resolved), sort_keys=False)
            temporary.write_text(f"# git revision: {revision or 'unknown'}\n{text}", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _differences(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in sorted(a.keys() | b.keys(), key=str)
                for d in _differences(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))]
    return [] if a == b else [f"{path}: {a!r} there, {b!r} here"]


# ------------------------------------------------------------------------------------------------- schedule
def describe(config: ModelConfig, options: argparse.Namespace, ranks: int, frames: int | None, drawn: int | None,
             ) -> list[str]:
    """The schedule in words and numbers, for --dry-run and the log."""
    training, batch = config.training, options.batch * ranks
    lines = [f"{config.name}, stage {training.stage}: {training.epochs} epochs, {ranks} processes x {options.batch} "
             f"samples = {batch} a step"]
    schedule = make_schedule(training, drawn or 1, batch, options.learning_rate)
    if drawn is None:
        lines.append("samples per epoch: unknown without --dataroot")
    else:
        how = "all frames" if options.no_cbgs else "after class-balanced resampling"
        lines.append(f"samples per epoch: {drawn} {how}, of {frames} frames")
        lines.append(f"iterations per epoch: {schedule.steps_per_epoch}, in all {schedule.steps}")
    lines.append(learning_rate_statement(training, schedule, batch))
    for step in (0, training.warmup_iterations // 2, training.warmup_iterations):
        rate = schedule.learning_rate * schedule.factor(step)
        backbone = rate * training.backbone_lr_ratio
        lines.append(f"  learning rate at iteration {step}: {rate:.4g}, backbone {backbone:.4g}")
    lines += [
        f"warm-up: {training.warmup_iterations} iterations, linear from {training.warmup_ratio:g}; constant after it",
        f"AdamW: weight decay {training.weight_decay:g}, gradient norm clipped to {training.gradient_clip:g}",
        f"EMA: decay {training.ema_decay:g} * (1 - exp(-n / {training.ema_ramp})), n from {training.ema_start}",
        "synchronised batch norm: " + ("never" if training.sync_bn_epoch is None
                                       else f"from epoch index {training.sync_bn_epoch}"),
        f"history: {config.history.frames} frames, {options.history}, from epoch index {options.history_from_epoch}"
        + (f"; runs of {options.shared_run} key frames, {options.batch // options.shared_run} in each process and step"
           if options.history == "shared" else ""),
        f"loss weights: velocity {training.velocity_weight:g}, depth {training.depth_loss_weight:g}",
        f"mixed precision: {options.amp}; gradient checkpointing: {options.gradient_checkpointing}",
    ]
    return lines


def draw_frames(data: TrainingDataset, options: argparse.Namespace) -> Tensor:
    """Frames of an epoch, drawn once for the whole run."""
    classes = data.classes_of_frames()
    if options.no_cbgs:
        chosen = [frame for frame, labels in zip(data.frames, classes) if labels]
        return torch.tensor(chosen, dtype=torch.int64).repeat(options.repeat)
    drawn = balanced_frames(classes, len(data.config.class_names), options.seed)
    return torch.from_numpy(data.frames[drawn]).repeat(options.repeat)


def make_sampler(index: DatasetIndex, frames: Tensor, options: argparse.Namespace, processes: Processes,
                 ) -> EpochSampler | RunSampler:
    """What decides which samples a step takes."""
    place = processes.rank, processes.count, options.seed
    if options.history != "shared":
        return EpochSampler(frames.numpy(), options.batch, *place)
    return RunSampler(index, frames.numpy(), options.shared_run, options.batch, *place, not options.no_cbgs,
                      options.repeat)


# ------------------------------------------------------------------------------------------------- the run
def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        processes = join_processes("cpu" if options.dry_run else options.device)
        config = resolve_config(options)
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


def dry_run(config: ModelConfig, options: argparse.Namespace, processes: Processes) -> None:
    """Print the schedule for this number of processes."""
    frames = drawn = None
    if options.dataroot:
        index = open_index(options.dataroot, options.version, options.index_dir, not options.no_progress)
        data = TrainingDataset(index, config, options.scenes or options.split)
        frames, drawn = len(data), make_sampler(index, draw_frames(data, options), options, processes).samples
    for line in describe(config, options, processes.count, frames, drawn):
        print(line)
    print(f"expected GPU memory: {expected_memory(config, options.batch, options.gradient_checkpointing != 'off')}")


def train(config: ModelConfig, options: argparse.Namespace, processes: Processes) -> None:
    training, device = config.training, processes.device
    work_dir = Path(options.work_dir)
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--work-dir {work_dir} cannot be created: {one_line(error)}") from None
    claim_work_dir(work_dir, config, options, processes)
    processes.barrier()
    start_log(work_dir, processes)
    torch.manual_seed(options.seed)  # the same initial weights on every rank

    # ---------------------------------------------------------------- what there is to continue
    folder = CheckpointFolder(work_dir, options.keep)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        saved = find_checkpoint(folder, options, processes)
    for warning in caught:
        log.warning("%s", warning.message)

    # ---------------------------------------------------------------- data
    if not processes.is_main:
        processes.barrier()  # rank 0 builds the index, the others read it
    index = open_index(options.dataroot, options.version, options.index_dir, not options.no_progress)
    if processes.is_main:
        processes.barrier()
    for token, reason in index.faults:
        log.warning("key frame %s cannot be used: %s", token, reason)
    shared = options.history == "shared"
    data = (RunDataset if shared else TrainingDataset)(
        index, config, options.scenes or options.split, DatasetOptions(not options.no_augmentation,
                                                                       options.missing_lidar))
    frames = draw_frames(data, options) if saved is None else saved["frames"]
    sampler = make_sampler(index, frames, options, processes)
    loader = make_loader(data, sampler, join_runs if shared else join_samples, options.workers, device.type == "cuda")
    global_batch = options.batch * processes.count
    schedule = make_schedule(training, sampler.samples, global_batch, options.learning_rate)
    for line in describe(config, options, processes.count, len(data), sampler.samples):
        log.info("%s", line)

    # ---------------------------------------------------------------- network, optimiser, average
    network = BEVNeXt(config)
    if saved is None:
        for line in initialise(network, config, options):
            log.info("%s", line)
        if isinstance(data, RunDataset):
            log.info("%s", measure_parameters(network, data, options.seed))
    network.to(device, memory_format=torch.channels_last if options.channels_last else torch.preserve_format)
    if options.gradient_checkpointing != "off":
        enable_checkpointing(network, options.gradient_checkpointing == "published")
    forward_options = ForwardOptions("sequential" if shared else options.history, options.history_precision,
                                     options.perspective_loss)
    step_forward = (SharedForward if shared else TrainingForward)(network, forward_options, processes.mean)
    step_forward.to(device).train()
    backbone = {id(parameter) for parameter in network.backbone.parameters()}
    ratios = (1.0, training.backbone_lr_ratio)
    groups = [{"params": [p for p in step_forward.parameters() if (id(p) in backbone) == in_backbone]}
              for in_backbone in (False, True)]
    optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, weight_decay=training.weight_decay, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")
    amp = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.amp)
    ema = ModelEma(network, training.ema_decay, training.ema_ramp, training.ema_start)
    step = epoch_step = epoch = skipped_in_all = 0
    # The ranks share weights but not dropout
    torch.manual_seed(options.seed + 1 + processes.rank)
    if saved is not None:
        network.load_state_dict(saved["model"])
        if step_forward.perspective is not None:
            step_forward.perspective.load_state_dict(saved["perspective"])
        ema.load_state_dict(saved["ema"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        step, epoch, epoch_step = saved["step"], saved["epoch"], saved["epoch_step"]
        skipped_in_all = saved["skipped"]
        if len(saved["random"]) == processes.count:
            set_random_state(saved["random"][processes.rank])
        else:
            log.warning("%d processes instead of %d: dropout is drawn anew", processes.count, len(saved["random"]))
        if epoch_step == len(sampler):
            epoch, epoch_step = epoch + 1, 0
        log.info("continuing at step %d (epoch %d, step %d of it)", step, epoch, epoch_step)
    model: nn.Module = step_forward
    if processes.count > 1:
        # Every rank keeps its own batch-norm statistics; the argument's name depends on PyTorch's version.
        names = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        model = DistributedDataParallel(step_forward, device_ids=[device.index] if device.type == "cuda" else None,
                                        **{sync: False})

    def save(epoch: int, epoch_step: int) -> None:
        states = processes.gather(random_state())
        if processes.is_main:
            folder.save(step, {
                "epoch": epoch, "epoch_step": epoch_step, "skipped": skipped_in_all, "frames": frames,
                "stage": training.stage, "config": config_to_mapping(config), "random": states,
                "model": network.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "perspective": step_forward.perspective.state_dict() if step_forward.perspective else {},
            })

    def write_weights(name: str) -> None:
        if processes.is_main:
            save_checkpoint(work_dir / f"{name}.safetensors", network.state_dict(), config)
            save_checkpoint(work_dir / f"{name}_ema.safetensors", ema.state, config)

    # ---------------------------------------------------------------- the loop
    board = open_tensorboard(work_dir, log) if processes.is_main else None
    progress = Progress(log, options.log_every, processes, not options.no_progress, schedule.steps, step, global_batch)
    skipped_in_row = 0
    unreadable: dict[str, str] = {}
    while epoch < training.epochs:
        if training.sync_bn_epoch is not None and epoch >= training.sync_bn_epoch and processes.count > 1:
            if device.type == "cuda":
                synchronise_batch_norms(network)
            elif epoch_step == 0:
                log.warning("batch norm is not synchronised: PyTorch has that for GPUs only")
        sampler.start(epoch, epoch_step)
        batches = batches_of(loader)
        while True:
            waited = time.perf_counter()
            batch = next(batches, None)
            waited = time.perf_counter() - waited
            if batch is None:
                break
            batch = batch.to(device)
            for ratio, group in zip(ratios, optimizer.param_groups):
                group["lr"] = schedule.learning_rate * schedule.factor(step) * ratio
            statistics = [(buffer, buffer.clone()) for buffer in network.buffers() if buffer.dim() and
                          buffer.numel() < 4096]  # batch norms: a bad batch must not stay in them
            with torch.autocast(device.type, amp) if amp else nullcontext():
                losses = model(batch, with_history=epoch >= options.history_from_epoch)
            total = torch.stack(list(losses.values())).sum()
            unreadable.update(batch.faults)

            # Every rank must take the same way, or the next collective call never ends.
            state = processes.total(torch.tensor([float(not torch.isfinite(total)), float(len(unreadable))]).to(device))
            bad_ranks, unreadable_in_all = (int(value) for value in state.tolist())
            norm, skipped, overflow = torch.tensor(math.nan), "non-finite loss" if bad_ranks else "", False
            if not bad_ranks:
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(total).backward()
                scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(step_forward.parameters(), training.gradient_clip)
                # Gradients are averaged over the ranks, so norm and loss scale are the same on all.
                if torch.isfinite(norm):
                    scaler.step(optimizer)
                    ema.update(network)
                else:
                    # fp16 finds its loss scale by halving it; at 1 and below the gradient itself is at fault.
                    overflow = scaler.get_scale() > 1
                    skipped = "non-finite gradient" + f" at loss scale {scaler.get_scale():g}" * scaler.is_enabled()
                scaler.update()
            step, epoch_step = step + 1, epoch_step + 1
            if skipped:
                for buffer, before in statistics:
                    buffer.copy_(before)
                skipped_in_row, skipped_in_all = skipped_in_row + (not overflow), skipped_in_all + 1
                tokens = processes.gather([] if torch.isfinite(total) and bad_ranks else batch.tokens)
                log.warning("step %d skipped: %s, samples %s", step, skipped,
                            ", ".join(token for part in tokens for token in part))
                if skipped_in_row >= options.max_skipped and not overflow:
                    save(epoch, epoch_step)
                    raise DatasetError(f"{skipped_in_row} steps in a row had a non-finite loss or gradient: the run "
                                       f"stops at step {step}, with a checkpoint in {work_dir}; see {work_dir}/log.txt "
                                       "for the samples")
            else:
                skipped_in_row = 0
            if unreadable_in_all > options.max_unreadable:
                listing = {k: v for part in processes.gather(unreadable) for k, v in part.items()}
                save(epoch, epoch_step)
                raise DatasetError(f"{len(listing)} frames could not be read, {options.max_unreadable} are allowed "
                                   "(--max-unreadable): " + "; ".join(f"{k}: {v}" for k, v in listing.items()))
            for token, reason in batch.faults:
                log.warning("frame %s cannot be read and is skipped: %s", token, reason)

            progress.update(step, epoch, losses, total, norm, optimizer.param_groups[0]["lr"], waited, skipped_in_all)
            if board is not None and step % options.log_every == 0:
                board.scalars(step, losses, total, norm, optimizer.param_groups[0]["lr"])
                if step % (20 * options.log_every) == 0 or step == options.log_every:
                    board.pictures(step, batch, step_forward.maps, config)
            stop = options.max_steps is not None and step >= options.max_steps
            if step % options.checkpoint_every == 0 or epoch_step == len(sampler) or stop:
                save(epoch, epoch_step)
                if board is not None:
                    board.writer.flush()
            if stop:
                write_weights(f"step_{step}")
                log.info("stopped after %d steps, as asked", step)
                return
        write_weights(f"epoch_{epoch + 1}")
        log.info("epoch %d of %d ended at step %d", epoch + 1, training.epochs, step)
        epoch, epoch_step = epoch + 1, 0
    log.info("training ended; the result is %s", work_dir / f"epoch_{training.epochs}_ema.safetensors")


def find_checkpoint(
    folder: CheckpointFolder, options: argparse.Namespace, processes: Processes
) -> dict[str, Any] | None:
    """What the run continues from. A restart by torchrun continues without being asked."""
    if options.resume not in (None, "newest"):
        return read_training_checkpoint(options.resume)
    if not folder.paths():
        return None
    if options.resume is None and processes.restarts == 0:
        raise CheckpointError(f"{folder.folder} holds checkpoints; continue with --resume, or choose another "
                              "--work-dir")
    found = folder.newest()
    return found[1] if found else None


def initialise(network: BEVNeXt, config: ModelConfig, options: argparse.Namespace) -> list[str]:
    """Give a new network its initial weights; returns what to log."""
    if options.from_scratch:
        scaled = [] if options.head_scale == 1 else [scale_heads(network, options.head_scale)]
        return ["random initial weights (--from-scratch)", *scaled]
    if options.fine_tune is not None:
        return [load_same_network(network, options.fine_tune)]
    if options.warm_start is not None:
        return [line for path in options.warm_start for line in load_matching(network, path)]
    if config.training.stage == 2:
        if options.init_from is None:
            raise ConfigError("stage 2 starts from stage 1: name its checkpoint with --init-from, or use "
                              "--from-scratch")
        return load_stage_1(network, options.init_from)
    if options.init_from is not None:
        raise ConfigError("--init-from is how stage 2 starts; stage 1 takes --backbone-weights")
    if config.training.backbone_init == "imagenet":
        return [load_imagenet(network, options.backbone_weights)]
    if config.training.backbone_init == "perspective":
        return [load_perspective(network, options.backbone_weights)]
    return ["random initial weights (the configuration's backbone_init is none)"]


def start_log(work_dir: Path, processes: Processes) -> None:
    """Rank 0 logs to the terminal and to log.txt; the others keep quiet, except for errors."""
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.INFO if processes.is_main else logging.ERROR)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if processes.is_main:
        handlers.append(logging.FileHandler(work_dir / "log.txt", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
