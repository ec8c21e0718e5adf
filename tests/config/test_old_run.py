"""A config.yaml that an earlier fastdhm wrote, with fields in another order, is the same run today."""

import dataclasses

from fastdhm.config import TrainConfig
from fastdhm.engine.saved.checkpoint import read_config, write_config

# Every value that can differ from its default does, as far as the rules allow it.
WRITTEN = """\
dataset: folder:photos
arch: resnet18
method: dhm
preset: fast
dropout: 0.0
weights: imagenet
freeze_epochs: 3
branches:
- B1
- B2
- B3
only_branch: null
direction: top-down
sampler: structural
sample_every: step
keep_prob: 0.5
branch_sets:
  B1+B2: 0.5
  none: 0.5
corrupt_labels: 0.2
corrupt_seed: 4
run_dir: runs/old
data_dir: /data
seed: 7
loader: ffcv
workers: 3
store: smart
store_size: 500
store_quality: 85
grey_range:
- 0.0
- 4095.0
skip_bad: true
hold_out: false
subset: 1000
image_size:
- 256
- 128
crop: whole
pad: 2
crop_ratio: 0.875
flip: false
progressive: 0.5
mean:
- 0.5
- 0.4
- 0.3
std:
- 0.2
- 0.2
- 0.1
epochs: 30
max_steps: 900
batch_size: 64
accumulate: 2
activation_checkpointing: true
eval_batch_size: 100
lr: 0.05
scale_lr: true
lr_batch_size: 32
optimizer: amsgrad
betas:
- 0.8
- 0.99
momentum: 0.8
nesterov: false
weight_decay: 0.0005
decay_norm_bias: false
ema: 0.99
clip_grad: 5.0
schedule: cosine
milestones:
- 10.0
- 20.0
gamma: 0.2
warmup_epochs: 2.0
warmup_lr: 0.001
warmup: constant
temperature: 2.0
ce_weight: 0.5
mimic_weight: 2.0
label_smoothing: 0.1
mimic_warmup: 5.0
device: cpu
impl: cpp
precision: bfloat16
compile: 'off'
cuda_graphs: false
deterministic: true
eval_every: 2
keep: best
log_every: 10
grad_cosine: 25
save_minutes: 1.5
"""
RUN = TrainConfig(
    dataset="folder:photos",
    arch="resnet18",
    method="dhm",
    preset="fast",
    dropout=0.0,
    weights="imagenet",
    freeze_epochs=3,
    branches=("B1", "B2", "B3"),
    only_branch=None,
    direction="top-down",
    sampler="structural",
    sample_every="step",
    keep_prob=0.5,
    branch_sets={"B1+B2": 0.5, "none": 0.5},
    corrupt_labels=0.2,
    corrupt_seed=4,
    run_dir="runs/old",
    data_dir="/data",
    seed=7,
    loader="ffcv",
    workers=3,
    store="smart",
    store_size=500,
    store_quality=85,
    grey_range=(0.0, 4095.0),
    skip_bad=True,
    hold_out=False,
    subset=1000,
    image_size=(256, 128),
    crop="whole",
    pad=2,
    crop_ratio=0.875,
    flip=False,
    progressive=0.5,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.1),
    epochs=30,
    max_steps=900,
    batch_size=64,
    accumulate=2,
    activation_checkpointing=True,
    eval_batch_size=100,
    lr=0.05,
    scale_lr=True,
    lr_batch_size=32,
    optimizer="amsgrad",
    betas=(0.8, 0.99),
    momentum=0.8,
    nesterov=False,
    weight_decay=0.0005,
    decay_norm_bias=False,
    ema=0.99,
    clip_grad=5.0,
    schedule="cosine",
    milestones=(10.0, 20.0),
    gamma=0.2,
    warmup_epochs=2.0,
    warmup_lr=0.001,
    warmup="constant",
    temperature=2.0,
    ce_weight=0.5,
    mimic_weight=2.0,
    label_smoothing=0.1,
    mimic_warmup=5.0,
    device="cpu",
    impl="cpp",
    precision="bfloat16",
    compile="off",
    cuda_graphs=False,
    deterministic=True,
    eval_every=2,
    keep="best",
    log_every=10,
    grad_cosine=25,
    save_minutes=1.5,
)


def test_it_loads_to_the_same_values(tmp_path):
    (tmp_path / "config.yaml").write_text(WRITTEN, "utf-8")
    run = read_config(tmp_path)
    assert run == RUN
    usual = dataclasses.asdict(TrainConfig())
    assert [type(value) for value in dataclasses.asdict(run).values()] == [
        type(value) for value in dataclasses.asdict(RUN).values()
    ]
    assert len([name for name, value in usual.items() if getattr(run, name) != value]) > 60


def test_it_is_read_back_as_it_is_written_now(tmp_path):
    write_config(tmp_path, RUN)
    assert read_config(tmp_path) == RUN
    assert {*WRITTEN.splitlines()} <= {*(tmp_path / "config.yaml").read_text("utf-8").splitlines()}


def test_what_came_later_is_at_its_default(tmp_path):
    (tmp_path / "config.yaml").write_text("dataset: synthetic\narch: resnet8\n", "utf-8")
    assert read_config(tmp_path) == TrainConfig(dataset="synthetic", arch="resnet8")
