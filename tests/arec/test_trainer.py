"""The training loop: rates, the best epoch, interruptions, losses that break."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from programs import SMALL, call
from tiny import config_of, histories, planted
from tqdm import tqdm

import arec.scoring
import arec.trainer
from arec import checkpoint, evaluate, recommend, train
from arec.config import Config
from arec.data.batches import TrainingBatches
from arec.data.builtin import generate
from arec.data.split import LeaveOneOut
from arec.objectives import adaptiverec
from arec.trainer import Trainer, describe, training_batches


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("warmup_epochs", [0.0, 0.01, 0.7, 2.0, 100.0])
@pytest.mark.parametrize("lowest", [0.0, 0.1])
def test_the_learning_rate_rises_to_its_peak_and_then_falls_or_stays(
    log_file, tmp_path, schedule, warmup_epochs, lowest
) -> None:
    config = Config(
        method="sasrec", dataset=str(log_file), epochs=4, schedule=schedule, batch_size=32,
        warmup_epochs=warmup_epochs, lowest_rate=lowest,
    )  # fmt: skip
    trainer = Trainer(config, checkpoint.load_data(config), tmp_path)
    steps = 4 * len(trainer.batches)
    rates = [trainer._rate(step) for step in range(steps)]
    warmup_steps = min(warmup_epochs, 2) * len(trainer.batches)
    warmup = round(warmup_steps)
    assert max(rates) == pytest.approx(1), "the peak, however long the warm-up"
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[0] == pytest.approx(lowest + (1 - lowest) / max(warmup_steps, 1))
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    middle, end = trainer._rate((steps + warmup_steps) / 2), trainer._rate(steps)
    falls = schedule == "cosine"
    assert (middle, end) == pytest.approx(((1 + lowest) / 2, lowest) if falls else (1, 1))


def test_every_batch_has_its_own_learning_rate(log_file, tmp_path) -> None:
    config = Config(method="sasrec", dataset=str(log_file), epochs=3, batch_size=8, warmup_epochs=1.0)
    trainer = Trainer(config, checkpoint.load_data(config), tmp_path)
    rates = []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    trainer.fit()
    steps = range(3 * len(trainer.batches))
    assert rates == pytest.approx([config.learning_rate * trainer._rate(step) for step in steps])


@pytest.mark.parametrize(("last", "batches"), [(0, 0), (2, 0), (0, 1), (2, 1)])
def test_resumed_run_equals_an_uninterrupted_one(
    log_file, tmp_path, monkeypatch, capsys, last, batches
) -> None:
    options = ["--dataset", log_file, "--epochs", 4, *SMALL]
    call(train, monkeypatch, *options, "--run-dir", tmp_path / "whole")

    original = TrainingBatches.epoch

    def cut_off(self, epoch):
        for at, batch in enumerate(original(self, epoch)):
            if (epoch, at) == (last, batches):
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(arec.trainer, "_SAVE_SECONDS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingBatches, "epoch", cut_off)
        with pytest.raises(SystemExit) as exit:
            call(train, monkeypatch, *options, "--run-dir", tmp_path / "cut")
    assert exit.value.code == 130
    way_on = f"; python -m arec.train --resume {tmp_path / 'cut'} goes on"
    kept = f"{last} epochs" + (f" and {batches} of " if batches else way_on)
    messages = capsys.readouterr().err
    assert f"interrupted after {kept}" in messages
    saved = re.findall(rf"^epoch +{last + 1} .* after 1 of 3 batches, saved$", messages, re.MULTILINE)
    assert len(saved) == batches
    if last:
        for program, *options in ([evaluate], [recommend, "--top", 1]):
            call(program, monkeypatch, tmp_path / "cut", *options)
            assert "training has not finished" in capsys.readouterr().err
    call(train, monkeypatch, "--resume", tmp_path / "cut")
    call(evaluate, monkeypatch, tmp_path / "cut")
    assert "not finished" not in capsys.readouterr().err

    whole, cut = (torch.load(tmp_path / name / "last.pt")["objective"] for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and "reference" in whole
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("whole", "cut")]
    assert metrics[0]["test"] == metrics[1]["test"]
    logged = [
        [
            {key: value for key, value in json.loads(line).items() if "seconds" not in key}
            for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "cut")
    ]
    assert logged[0] == logged[1]


def test_the_best_epoch_is_ranked_and_the_data_are_loaded_once(
    log_file, tmp_path, monkeypatch, capsys, refused
) -> None:
    folder, loads = tmp_path / "run", []
    load = checkpoint.load

    def counted(*args, **kwargs):
        loads.append(args)
        return load(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "load", counted)
        patch.setattr(Trainer, "_validation", lambda self, epoch: -epoch)
        call(train, patch, "--dataset", log_file, "--run-dir", folder, "--epochs", 3, *SMALL)
    assert len(loads) == 1
    assert torch.load(folder / "checkpoint.pt")["epoch"] == 1
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["best_epoch"], metrics["epochs"]) == (1, 3)
    first, *others = (json.loads(line)["valid"] for line in (folder / "log.jsonl").read_text().splitlines())
    assert metrics["valid"] == first and first not in others
    table = capsys.readouterr().out
    call(evaluate, monkeypatch, folder)
    assert capsys.readouterr().out == table

    (folder / "metrics.json").unlink()  # as a run cut off before the ranking
    torch.save([1], folder / "checkpoint.pt")
    assert "checkpoint.pt: does not fit the settings" in refused(train, "--resume", folder)


def test_adaptiverec_trains_through_the_op(
    log_file, tmp_path, monkeypatch
) -> None:
    calls = []
    op = adaptiverec.adaptive_info_nce

    def counted(*args, **kwargs):
        calls.append(args)
        return op(*args, **kwargs)

    monkeypatch.setattr(adaptiverec, "adaptive_info_nce", counted)
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 3,
         "--views", "su", *SMALL)  # fmt: skip
    steps = 3 * -(-90 // 32)
    assert len(calls) == steps


def test_a_broken_last_checkpoint_names_the_way_out(
    log_file, tmp_path, monkeypatch, capsys, refused
) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL)
    table = capsys.readouterr().out
    (folder / "metrics.json").unlink()
    (folder / "last.pt").write_bytes(b"PK")
    assert "delete it, and --resume trains from the beginning" in refused(train, "--resume", folder)
    (folder / "last.pt").unlink()
    call(train, monkeypatch, "--resume", folder)
    assert capsys.readouterr().out == table
    log = (folder / "log.jsonl").read_text()
    (folder / "log.jsonl").write_text(log[:-30])
    (folder / "metrics.json").unlink()
    call(train, monkeypatch, "--resume", folder)
    assert (folder / "log.jsonl").read_text() == log, "it is in last.pt too"


@pytest.mark.parametrize(
    ("given", "validated"),
    [(["--validation-users", 7], [7, 7, 90]), ([], [90, 90])],  # of all they are known in the end
)
def test_few_users_validate_and_all_are_tested(
    log_file, tmp_path, monkeypatch, given: list, validated: list[int]
) -> None:
    ranked = []

    def counted(split, stage, *args, **options):
        ranked.append((stage, len(split.eval_users)))
        return rank(split, stage, *args, **options)

    rank = arec.scoring.evaluate_scores
    monkeypatch.setattr(arec.scoring, "evaluate_scores", counted)
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 2,
         *given, *SMALL)  # fmt: skip
    assert ranked == [*(("valid", users) for users in validated), ("test", 90)]


def test_early_stopping_keeps_the_first_best_epoch(log_file, tmp_path, monkeypatch) -> None:
    figures = iter([0.1, 0.3, 0.2, 0.3, 0.25, 0.9])

    def planned(objective, split, stage, **options):
        value = next(figures) if stage == "valid" else 0.0
        return {name: {"NDCG@10": value} for name in ("filtered", "unfiltered")}

    monkeypatch.setattr(arec.trainer, "evaluate_model", planned)
    config = train.Config(
        dataset=str(log_file), hidden_size=16, feed_forward=16, epochs=10, patience=3
    )
    trainer = Trainer(config, checkpoint.load_data(config), str(tmp_path))
    assert len(trainer.fit()) == 5
    assert torch.load(tmp_path / "checkpoint.pt")["epoch"] == trainer.best_epoch == 2


@pytest.mark.parametrize("broken", [1, 2])
@pytest.mark.parametrize("seconds", [0, 300])  # saved after every batch, and after epochs alone
@pytest.mark.parametrize(
    ("what", "message"),
    [("loss", "the training loss is nan"), ("weights", "weights of the model have become")],
)
def test_a_broken_model_writes_no_checkpoint(
    log_file, tmp_path, monkeypatch, broken, seconds, what, message, refused
) -> None:
    monkeypatch.setattr(arec.trainer, "_SAVE_SECONDS", seconds)
    original = Trainer._train

    @torch.no_grad()
    def explode(trainer: Trainer) -> None:
        trainer.objective.encoder.items.weight.fill_(torch.nan)

    def train_and_explode(self, epoch, bar):
        def after_last_step(*_) -> None:
            if self.step == len(self.batches) - 1:
                explode(self)

        if epoch == broken and what == "loss":
            explode(self)
        elif epoch == broken:
            self.optimizer.register_step_post_hook(after_last_step)
        return original(self, epoch, bar)

    monkeypatch.setattr(Trainer, "_train", train_and_explode)
    folder = tmp_path / "run"
    error = refused(train, "--dataset", log_file, "--run-dir", folder, "--epochs", 3, *SMALL)
    assert f"epoch {broken}: {message}" in error
    assert ("still holds the best epoch" in error) is (broken > 1)
    assert ("the next run needs another folder" in error) is (broken == 1)
    assert "a lower learning_rate or a higher temperature" in error
    kept = sorted(path.name for path in folder.glob("*.pt"))
    on_the_way = what == "weights" and seconds == 0  # batches before the broken one
    expected = ["checkpoint.pt"] * (broken > 1) + ["last.pt"] * (broken > 1 or on_the_way)
    assert kept == expected
    for name in kept:
        weights = torch.load(folder / name)["objective"]["encoder.items.weight"]
        assert weights.isfinite().all()


@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_gradients_have_the_norm_that_is_allowed(log_file, tmp_path, monkeypatch, limit) -> None:
    norms = []
    step = torch.optim.AdamW.step

    def recorded(self, *args, **kwargs):
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(grads).item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "run", "--epochs", 1,
         "--gradient-clip", limit, *SMALL)  # fmt: skip
    if limit:
        assert norms == pytest.approx([limit] * len(norms), rel=1e-2)
    else:
        assert min(norms) > 1e-2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_says_which_precision_and_data_it_took(
    log_file, tmp_path, monkeypatch, precision
) -> None:
    monkeypatch.setattr(arec.trainer, "pick_precision", lambda name, device: precision)
    run = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", run, "--precision", "auto",
         "--epochs", 1, *SMALL)  # fmt: skip
    metrics, config = json.loads((run / checkpoint.METRICS).read_text()), checkpoint.read_config(run)
    assert config.precision == "auto" and metrics["precision"] == precision
    assert metrics["data"] == checkpoint.fingerprint(checkpoint.load_data(config).sequences)
    assert f"on cpu in {precision}" in (run / "train.log").read_text()


def test_a_run_goes_on_in_the_precision_it_began_with(tmp_path, monkeypatch) -> None:
    config = config_of(method="sasrec", epochs=1)
    for precision in ("bfloat16", "float32"):
        monkeypatch.setattr(arec.trainer, "pick_precision", lambda name, device, found=precision: found)
        trainer = Trainer(config, histories(), tmp_path, resume=precision == "float32")
        trainer.fit()
        assert trainer.precision == "bfloat16"


def test_resume_says_where_it_looked_for_the_data(
    log_file, tmp_path, monkeypatch, capsys, refused
) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 1, *SMALL)
    (folder / "metrics.json").unlink()
    log_file.unlink()
    error = refused(train, "--resume", folder)
    assert f"no such file; {folder / 'config.toml'} says where the data are" in error
    with pytest.raises(SystemExit):
        call(train, monkeypatch, "--dataset", log_file, "--run-dir", tmp_path / "new", *SMALL)
    assert "config.toml" not in capsys.readouterr().err, "there is none yet"


def test_planted_data_tell_the_detected_false_negatives_of_every_epoch(tmp_path) -> None:
    data = generate(seed=1, num_users=500, num_items=200, num_intents=8)
    small = {"hidden_size": 8, "feed_forward": 8, "max_length": 8, "epochs": 2}
    for method in ("adaptiverec", "duorec"):
        config = Config(method=method, **small)
        records = Trainer(config, LeaveOneOut(data), tmp_path / method).fit()
        told = [set(record.get("false_negatives", ())) for record in records]
        names = {"precision", "recall", "base_rate", "selected"}
        assert told == [names if method == "adaptiverec" else set()] * 2


def test_false_negatives_are_those_of_the_epoch_s_batches(tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(arec.trainer, "false_negative_detection", lambda _, batches: seen.extend(batches))
    trainer = Trainer(config_of(epochs=2), planted(), tmp_path)
    trainer.fit()
    for batch, expected in zip(seen, [*trainer.batches.epoch(0), *trainer.batches.epoch(1)], strict=True):
        assert torch.equal(batch.inputs, expected.inputs)


def test_an_epoch_in_one_line() -> None:
    record = {
        "epoch": 3, "loss": 5.25, "seconds": 61.26,
        "valid": {"filtered": {"NDCG@10": 0.12345}, "unfiltered": {"NDCG@10": 0.1}},
    }  # fmt: skip
    assert describe(record) == (
        "epoch   3  loss 5.2500  valid NDCG@10 0.1235 filtered, 0.1000 not  61.3 s"
    )
    record |= {"L_cl": 3.5, "k_mean": 0.9, "k_std": 0.01, "positives_per_row": 2.25}
    assert describe(record).split("  ")[3:] == [
        "L_cl 3.5000", "k 0.900±0.010", "positives/row 2.2",
        "valid NDCG@10 0.1235 filtered, 0.1000 not", "61.3 s",
    ]
    record["masked_per_row"] = record.pop("positives_per_row")
    assert "k 0.900±0.010  masked/row 2.2  valid" in describe(record)


class Counting(torch.nn.Module):
    """A loss with the gradient 1, and a scalar that counts the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.path = []

    def forward(self, batch):
        self.path.append(self.weight.item())
        loss = self.weight - self.weight.detach() + 2
        return loss, {"count": torch.tensor(float(len(self.path)))}

    def end_epoch(self):
        return {}


def test_a_batch_counts_by_its_weight(log_file, tmp_path) -> None:
    config = Config(method="sasrec", dataset=str(log_file), batch_size=32)
    trainer = Trainer(config, checkpoint.load_data(config), tmp_path)
    trainer.objective = Counting()
    trainer.optimizer = torch.optim.SGD(trainer.objective.parameters(), lr=1)
    trainer.schedule = torch.optim.lr_scheduler.ConstantLR(trainer.optimizer, factor=1)
    weights = [batch.weight for batch in trainer.batches.epoch(0)]
    means = trainer._train(1, tqdm(disable=True))
    path = [*trainer.objective.path, trainer.objective.weight.item()]
    assert [before - after for before, after in pairwise(path)] == pytest.approx(weights)
    assert means["loss"] == pytest.approx(2 * sum(weights) / len(weights))
    counts = [count * weight for count, weight in enumerate(weights, start=1)]
    assert means["count"] == pytest.approx(sum(counts) / len(weights))


@pytest.mark.parametrize(("filter_history", "chosen"), [(True, 0.1), (False, 0.2)])
def test_the_ranking_of_the_settings_chooses_the_epoch(tmp_path, filter_history, chosen) -> None:
    trainer = Trainer(config_of(method="sasrec", filter_history=filter_history), histories(), tmp_path)
    figures = {"filtered": {"NDCG@10": 0.1}, "unfiltered": {"NDCG@10": 0.2}}
    trainer.records = [{"valid": figures}]
    assert trainer._validation(1) == chosen


def test_seconds_before_an_interruption_count(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(arec.trainer, "time", SimpleNamespace(perf_counter=lambda: 7.0))  # stands still
    trainer = Trainer(config_of(method="sasrec", epochs=2), histories(), tmp_path)
    trainer.seconds = 1000.0
    first, second = trainer.fit()
    assert first["train_seconds"] == first["seconds"] == 1000
    assert second["train_seconds"] == second["seconds"] == 0


def test_the_best_epoch_outlives_an_interruption(tmp_path, monkeypatch) -> None:
    figures = iter([0.3, 0.1, None, 0.2])
    config = config_of(method="sasrec", epochs=3)

    def planned(objective, split, stage, **options):
        value = next(figures)
        if value is None:
            raise KeyboardInterrupt
        return {name: {"NDCG@10": value} for name in ("filtered", "unfiltered")}

    monkeypatch.setattr(arec.trainer, "evaluate_model", planned)
    with pytest.raises(KeyboardInterrupt):
        Trainer(config, histories(), tmp_path).fit()
    trainer = Trainer(config, histories(), tmp_path, resume=True)
    trainer.fit()
    assert torch.load(tmp_path / "checkpoint.pt")["epoch"] == trainer.best_epoch == 1


def test_a_long_epoch_is_kept_every_five_minutes(tmp_path, monkeypatch) -> None:
    clock, whole, kept = SimpleNamespace(now=0.0), TrainingBatches.epoch, []

    def slow(self, epoch):
        for batch in whole(self, epoch):
            clock.now += 200
            yield batch

    # The only time that goes by is what `slow` says.
    monkeypatch.setattr(arec.trainer, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(TrainingBatches, "epoch", slow)
    monkeypatch.setattr(Trainer, "_save_last", lambda self: kept.append((self.step, self.seconds)))
    config = config_of(method="sasrec", epochs=1).model_copy(update={"batch_size": 16})
    (record,) = Trainer(config, histories(), tmp_path).fit()
    assert kept == [(2, 400), (4, 800), (0, 0)], "batches, and what the clock said"
    assert record["train_seconds"] == clock.now == 1200


def test_a_best_epoch_that_was_not_yet_the_checkpoint_becomes_it(log_file, tmp_path, monkeypatch) -> None:
    config = Config(dataset=str(log_file), method="sasrec", epochs=2, hidden_size=8, feed_forward=8)
    split = checkpoint.load_data(config)
    monkeypatch.setattr(Trainer, "_validation", lambda self, epoch: epoch)

    def killed(self) -> None:
        if len(self.records) == 2:
            raise KeyboardInterrupt
        save(self)

    save = Trainer._save_best
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_best", killed)
        trainer = Trainer(config, split, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
    resumed = Trainer(config, split, tmp_path, resume=True)
    assert resumed.best_epoch == checkpoint.load_state(tmp_path / "checkpoint.pt")["epoch"] == 2
    resumed.restore_best()
    for name, weight in trainer.objective.state_dict().items():
        torch.testing.assert_close(resumed.objective.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_products_have_the_precision_of_the_settings(tmp_path, precision) -> None:
    trainer = Trainer(config_of(method="sasrec", precision=precision), histories(), tmp_path)
    found = set()
    linear = trainer.objective.encoder.blocks[0].query
    linear.register_forward_hook(lambda module, inputs, output: found.add(output.dtype))
    trainer._train(1, tqdm(disable=True))
    assert found == {getattr(torch, precision)}


def test_a_seed_has_batches_of_its_own() -> None:
    firsts = [
        next(training_batches(config_of(method="sasrec", seed=seed), histories()).epoch(0)).inputs
        for seed in (0, 1)
    ]
    assert not torch.equal(*firsts)


def test_a_seed_has_a_model_of_its_own(tmp_path) -> None:
    tables = [
        Trainer(config_of(method="sasrec", seed=seed), histories(), tmp_path).objective.encoder.item_table
        for seed in (0, 0, 1)
    ]
    assert torch.equal(*tables[:2]) and not torch.equal(*tables[1:])


def test_the_seed_chooses_who_validates(tmp_path) -> None:
    configs = [config_of(method="sasrec", validation_users=9, seed=seed) for seed in (0, 1)]
    one, other = (Trainer(config, histories(), tmp_path).valid_split for config in configs)
    assert one.eval_users.tolist() != other.eval_users.tolist()
