"""The training loop: epochs, validation, early stopping, checkpoints."""

from __future__ import annotations

import json
import logging
import math
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from arec import parallel
from arec.alignment import view_alignment
from arec.checkpoint import (
    BEST,
    LAST,
    LOG,
    fingerprint,
    fitting,
    load_state,
    origin,
    restore_model,
    save,
)
from arec.config import Config
from arec.data.batches import TrainingBatches
from arec.data.split import LeaveOneOut
from arec.detection import false_negative_detection
from arec.device import pick_device, pick_precision
from arec.errors import RunError
from arec.files import write_text
from arec.objectives import build_objective
from arec.scoring import evaluate_model

log = logging.getLogger("arec")

# Uniformity is a mean over half a million pairs of them.
_ALIGNMENT_ROWS = 1024
# What an interruption may cost, where an epoch takes longer.
_SAVE_SECONDS = 300


def training_batches(config: Config, split: LeaveOneOut, *, shares: int = 1) -> TrainingBatches:
    return TrainingBatches(
        split,
        batch_size=config.batch_size,
        max_length=config.max_length,
        rows=config.rows,
        random_windows=config.random_windows,
        anchors=config.anchors if config.contrastive else "last",  # nothing else uses random ones
        partners=config.partners,
        seed=config.seed,
        shares=shares,
    )


class Trainer:
    """Trains one objective on one split and keeps the checkpoint that validates best.

    `arec.train.train` is this with settings, candidates and metrics beside it, which make the folder a
    run for the other programs.

    Args:
        run: folder for ``log.jsonl`` (a line an epoch), ``checkpoint.pt`` (the best epoch's model)
            and ``last.pt`` (all that is needed to go on after an interruption; of several processes
            all but the main one draw other random numbers than without it, if that was within an epoch).
        resume: go on from the folder's ``last.pt``.

    Raises:
        RunError: the batch size is no multiple of the number of processes, the device cannot be used,
            or ``last.pt`` is missing, damaged or of other settings.
        DataError: there is nothing to train on.
    """

    def __init__(
        self, config: Config, split: LeaveOneOut, run: str | Path, *, resume: bool = False
    ) -> None:
        processes = parallel.count()
        parallel.from_main(lambda: _check_shares(config.batch_size, processes))
        self.config = config
        self.split = split
        self.run = run = Path(run)
        self.device = pick_device(config.device)
        self.precision = pick_precision(config.precision, self.device)
        torch.manual_seed(config.seed)
        self.objective = build_objective(config, split.sequences.num_items).to(self.device)
        self.batches = training_batches(config, split, shares=processes)
        self.data = fingerprint(split.sequences)
        self.valid_split = split.for_at_most(config.validation_users, config.seed)
        # Fused goes through the item table once a step, not once for each of its operations.
        self.optimizer = torch.optim.AdamW(
            self.objective.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.records: list[dict[str, Any]] = []
        self.best_epoch = 0  # epochs count from 1; 0: there is none yet
        # Of an unfinished epoch: sums of what was logged, batches done, seconds; and batches kept.
        self.sums: dict[str, Any] = {}
        self.step, self.seconds, self.kept = 0, 0.0, 0
        if resume:
            state = parallel.from_main(lambda: load_state(run / LAST))
            self._restore(state)
            parallel.from_main(self._write_log)
            # The run may have been killed before its best epoch became the checkpoint.
            if self.records and self.best_epoch == len(self.records) and not self.step:
                parallel.from_main(self._save_best)

    def _rate(self, step: int) -> float:
        """As a share of the peak: linear warm-up, then constant, or cosine decay."""
        total = self.config.epochs * len(self.batches)
        warmup = min(self.config.warmup_epochs * len(self.batches), total / 2)
        if step < warmup:
            risen = min((step + 1) / warmup, 1.0)
        elif self.config.schedule == "constant":
            risen = 1.0
        else:
            risen = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
        return self.config.lowest_rate + (1 - self.config.lowest_rate) * risen

    def fit(self) -> list[dict[str, Any]]:
        """Train until the last epoch or until ``patience`` epochs brought nothing better.

        Returns:
            One record an epoch: means of the logged scalars, validation metrics, seconds.

        Raises:
            RunError: the loss or a weight is not finite; no checkpoint is written after that.
        """
        done = len(self.records)
        steps = (self.config.epochs - done) * len(self.batches) - self.step
        with parallel.progress(steps, "batch") as bar:
            for epoch in range(done + 1, self.config.epochs + 1):
                if self.best_epoch and epoch - self.best_epoch > self.config.patience:
                    log.info("no better epoch in %d: stopped", self.config.patience)
                    break
                self._epoch(epoch, bar)
        return self.records

    def _epoch(self, epoch: int, bar: tqdm) -> None:
        start = time.perf_counter() - self.seconds
        record: dict[str, Any] = {"epoch": epoch, **self._train(epoch, bar)}
        record["train_seconds"] = time.perf_counter() - start
        record["valid"] = evaluate_model(self.objective, self.valid_split, "valid", lists=False)
        if self.config.contrastive:
            record |= view_alignment(self.objective, self.batches.sample(_ALIGNMENT_ROWS))
            if self.config.has_simthres and self.split.sequences.planted is not None:
                record["false_negatives"] = false_negative_detection(
                    self.objective, self.batches.epoch(epoch - 1)
                )
        record["seconds"] = time.perf_counter() - start
        record["data"] = self.data
        self.records.append(record)
        if not self.best_epoch or self._validation(epoch) > self._validation(self.best_epoch):
            self.best_epoch = epoch
        parallel.from_main(self._save_last)
        if self.best_epoch == epoch:
            parallel.from_main(self._save_best)
        log.info("%s", describe(record))

    def _train(self, epoch: int, bar: tqdm) -> dict[str, float]:
        """One pass over the training batches; means of what the objective logs."""
        self.objective.train()
        parallel.seed_share(self.config.seed, epoch, self.step)
        mixed = self.precision == "bfloat16"
        saved = time.perf_counter()
        for batch in islice(self.batches.epoch(epoch - 1), self.step, None):
            own = batch.take(parallel.share(len(batch.lengths)))
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
                loss, scalars = self.objective(own.to(self.device))
            (batch.weight * loss).backward()
            scalars = parallel.average(
                self.objective.parameters(), {"loss": loss.detach(), **scalars}
            )
            if limit := self.config.gradient_clip:
                torch.nn.utils.clip_grad_norm_(self.objective.parameters(), limit)
            self.optimizer.step()
            self.schedule.step()
            for name, value in scalars.items():
                self.sums[name] = self.sums.get(name, 0) + batch.weight * value
            self.step += 1
            bar.update()
            since = time.perf_counter() - saved
            if parallel.is_main() and since > _SAVE_SECONDS and self.step < len(self.batches):
                mean = self._finite(epoch, self.sums["loss"].item() / self.step)
                self.seconds += since
                self._save_last()
                log.info(
                    "epoch %3d  loss %.4f  after %d of %d batches, saved",
                    epoch, mean, self.step, len(self.batches),
                )  # fmt: skip
                saved = time.perf_counter()
        means = {name: value.item() / len(self.batches) for name, value in self.sums.items()}
        self.step, self.sums, self.seconds = 0, {}, 0.0
        parallel.from_main(lambda: self._finite(epoch, means["loss"]))
        return means | self.objective.end_epoch()

    def _finite(self, epoch: int, loss: float) -> float:
        """The loss, before anything is overwritten by the model that it led to."""
        if not math.isfinite(loss):
            what = f"the training loss is {loss}"
        elif not all(weight.isfinite().all() for weight in self.objective.parameters()):
            what = "weights of the model have become infinite or NaN"
        else:
            return loss
        advice = "a lower learning_rate"
        if self.config.contrastive:
            advice += " or a higher temperature"
        if self.records:
            kept = f"{self.run / BEST} still holds the best epoch so far"
        else:
            kept = "no epoch is kept, and the next run needs another folder"
        raise RunError(f"epoch {epoch}: {what}; try {advice}; {kept}")

    def _validation(self, epoch: int) -> float:
        protocol = "filtered" if self.config.filter_history else "unfiltered"
        return self.records[epoch - 1]["valid"][protocol]["NDCG@10"]

    def progress(self) -> str:
        """What ``last.pt`` holds of the training."""
        done = len(self.records)
        epochs = f"{done} epoch{'s' * (done != 1)}"
        return f"{epochs} and {self.kept} of {len(self.batches)} batches" if self.kept else epochs

    def _save_best(self) -> None:
        save(
            self.run / BEST,
            {
                "objective": self.objective.state_dict(),
                "epoch": self.best_epoch,
                **origin(self.config, self.data),
            },
        )

    def _write_log(self) -> None:
        write_text(self.run / LOG, "".join(json.dumps(record) + "\n" for record in self.records))

    def _save_last(self) -> None:
        self._write_log()
        save(
            self.run / LAST,
            {
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
                "records": self.records,
                "best_epoch": self.best_epoch,
                "step": self.step,
                "sums": self.sums,
                "seconds": self.seconds,
                "precision": self.precision,
                **origin(self.config, self.data),
            },
        )
        self.kept = self.step

    def restore_best(self) -> None:
        """Put the best epoch's model in the place of the last one's.

        Raises:
            RunError: its checkpoint is missing, or does not fit the settings or the data.
        """
        best = self.run / BEST
        state = parallel.from_main(lambda: load_state(best))
        restore_model(self.objective, best, state, self.data)

    def _restore(self, state: dict[str, Any]) -> None:
        restore_model(self.objective, self.run / LAST, state, self.data)
        with fitting(self.run / LAST):
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            torch.set_rng_state(state["rng"])
            if self.device.type == "cuda" and state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"], self.device)
            self.records = state["records"]
            self.best_epoch = state["best_epoch"]
            self.step = self.kept = state["step"]
            self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
            self.seconds = state["seconds"]
            # "auto" may be another one here; older states do not say which it was.
            self.precision = state.get("precision", self.precision)
            if not (0 <= self.best_epoch <= len(self.records) and 0 <= self.step < len(self.batches)):
                raise ValueError("epochs or batches that are not there")
            for epoch in range(1, len(self.records) + 1):
                self._validation(epoch)


def _check_shares(batch_size: int, processes: int) -> None:
    if batch_size % processes:
        raise RunError(
            f"batch_size: expected a multiple of the {processes} processes that share a batch, got "
            f"{batch_size}"
        )


def describe(record: dict[str, Any]) -> str:
    """An epoch's record in one line for people."""
    parts = [f"epoch {record['epoch']:3d}  loss {record['loss']:.4f}"]
    if "L_cl" in record:
        parts.append(f"L_cl {record['L_cl']:.4f}")
    if "k_mean" in record:
        parts.append(f"k {record['k_mean']:.3f}±{record['k_std']:.3f}")
    for above in ("positives", "masked"):
        if f"{above}_per_row" in record:
            parts.append(f"{above}/row {record[f'{above}_per_row']:.1f}")
    valid = record["valid"]
    parts.append(
        f"valid NDCG@10 {valid['filtered']['NDCG@10']:.4f} filtered, "
        f"{valid['unfiltered']['NDCG@10']:.4f} not"
    )
    parts.append(f"{record['seconds']:.1f} s")
    return "  ".join(parts)
