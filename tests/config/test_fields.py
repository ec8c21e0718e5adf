"""The fields of a run: each in a topic, with a rule where it is a number, and a help text of one sentence."""

import dataclasses
import re
import typing

import pytest
import torch

from fastdhm.cli import COMMANDS, main
from fastdhm.cli.parser import Parser
from fastdhm.config import TOPICS, TrainConfig
from fastdhm.ops.mimic_loss import mimic_loss

NUMBER = re.compile(r"\b(int|float)\b")
FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


class Asked(Exception):
    """A parser has all of its flags."""


@pytest.fixture
def actions_of(monkeypatch):
    """The flags of a command."""

    def stop(parser, *arguments, **how):
        raise Asked(parser)

    def actions(command):
        with monkeypatch.context() as patched:
            patched.setattr(Parser, "_parsed", stop)
            patched.setattr("fastdhm.cli._ended", lambda error, argv: error.args[0])
            return main([*command.split(), "x"])._actions

    return actions


def test_every_field_stands_in_one_topic_and_in_the_topics_order():
    assert list(FIELDS) == [field.name for topic in TOPICS for field in dataclasses.fields(topic)]
    assert set(TOPICS) == set(TrainConfig.__bases__)


def test_a_run_is_one_flat_frozen_value():
    run = TrainConfig(lr=0.2)
    assert not hasattr(run, "__dict__") and dataclasses.replace(run, lr=0.1) == TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.lr = 0.3
    with pytest.raises(TypeError):
        TrainConfig("cifar10")


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if NUMBER.search(str(field.type))])
def test_a_number_has_a_rule_and_its_default_keeps_it(name):
    rule = FIELDS[name].metadata["rule"]
    assert FIELDS[name].default is None or rule.holds(FIELDS[name].default)
    with pytest.raises(ValueError, match=re.escape(f"{name} is nonsense: must be {rule.words}")):
        TrainConfig(**{name: "nonsense"})


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_the_config_and_the_loss_take_the_same_temperatures(temperature):
    def computed(T):
        target_B = torch.zeros(1, dtype=torch.int64)
        return mimic_loss(torch.zeros(2, 1, 3), target_B, torch.ones(2, 2), temperature=T, impl="eager")

    assert TrainConfig(temperature=temperature).temperature == temperature
    computed(temperature)
    beyond = temperature * 10 if temperature > 1 else temperature / 10
    for take in (lambda T: TrainConfig(temperature=T), computed):
        with pytest.raises(ValueError, match="must be a number from 1e-6 to 1e6"):
            take(beyond)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_says_what_it_is_in_a_sentence(command, actions_of):
    for action in actions_of(command):
        if action.dest in ("help", "print_config"):
            continue
        sentence = re.sub(r" \(default: .+\)$", "", action.help.partition("\n")[0])
        assert re.fullmatch(r"\S.{1,98}\.", sentence) and ". " not in sentence.replace("Eq. ", ""), (
            f"{action.dest}: {sentence}"
        )


def test_what_null_means_and_what_there_is_to_choose_is_said(actions_of):
    for action in actions_of("train"):
        field = FIELDS.get(action.dest)
        if field and field.default is None:
            assert "Null: " in action.help, action.dest
        kinds = [field.type, *typing.get_args(field.type)] if field else []
        for kind in (kind for kind in kinds if typing.get_origin(kind) is typing.Literal):
            sentence = action.help.partition("\n")[0]
            assert not [word for word in typing.get_args(kind) if not re.search(rf"\b{word}\b", sentence)], action.dest


def test_help_is_in_the_order_of_the_topics_and_shows_the_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--dataset", "cifar100", "--help"])
    text = capsys.readouterr().out
    told = " ".join(text.split())
    places = [text.index(f"\n{topic.__doc__.rstrip('.')}:\n") for topic in TOPICS]
    assert places == sorted(places)
    assert "--epochs N Passes over the training images. (default: 164)" in told
    assert "--max-steps N End the run, in order, after this many steps. (default: no limit)" in told
    assert "--milestones X,... Epochs at which lr is multiplied by gamma. (default: 81,122)" in told


@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_examples_parse(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    examples = re.findall(rf"^  fastdhm {command} (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert len(examples) > 2
    module = __import__(f"fastdhm.cli.{command}", fromlist=["_parser"])
    for example in examples:
        parser = module._parser()
        assert parser.given([word for word in example.split() if word != "--print-config"])
