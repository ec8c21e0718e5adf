"""How methods and seeds are written."""

import pytest

from fastdhm.compare.arms import Variant, check_variants, folder_name, parse_seeds, split_methods
from fastdhm.errors import UserError


def test_methods_alone_are_their_own_names():
    names = [(v.name, v.method, v.changes) for v in split_methods("baseline, dsl,dhm")]
    assert names == [(method, method, {}) for method in ("baseline", "dsl", "dhm")]


def test_a_comma_before_a_field_goes_on_with_the_variant():
    variants = split_methods("baseline,dhm:direction=top-down,branches=B1+B2,soft=dhm:temperature=2,dsl")
    assert variants == [
        Variant("baseline", "baseline", {}),
        Variant("dhm-direction=top-down-branches=B1+B2", "dhm", {"direction": "top-down", "branches": "B1+B2"}),
        Variant("soft", "dhm", {"temperature": "2"}),
        Variant("dsl", "dsl", {}),
    ]


def test_a_field_has_dashes_or_underscores():
    dashes, underscores = (split_methods(f"dhm:mimic{c}weight=0.5,ce{c}weight=2") for c in "-_")
    assert dashes == underscores
    assert dashes[0].changes == {"mimic_weight": "0.5", "ce_weight": "2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown method ''"),
        ("baseline,dhn", "unknown method 'dhn'; did you mean 'dhm'"),
        ("dhm,dhm", "'dhm' twice.*NAME=METHOD"),
        ("a b=dhm,a-b=dsl", "'a-b' twice"),
        ("dhm:colour=red", "'dhm:colour=red': write METHOD:FIELD=VALUE"),
        ("dhm:seed=4", "dhm:seed=4"),
        ("dhm:lr=", "dhm:lr="),
        ("dhm,run_dir=x", "run_dir=x"),
    ],
)
def test_methods_that_say_nothing_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        split_methods(text)


def test_no_variant_is_refused():
    with pytest.raises(UserError, match="give at least one"):
        check_variants([])


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", (0, 1, 2)), ("1", (0,)), ("4,7", (4, 7)), ("[4]", (4,)), ("[0, 2, 5]", (0, 2, 5)), (" 2 ", (0, 1))],
)
def test_seeds_are_a_number_or_a_list(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "many", "1,,2x", "3,3", "[]", "5000"])
def test_seeds_that_are_neither_are_refused(text):
    with pytest.raises(UserError, match="seeds is"):
        parse_seeds(text)


def test_a_folder_name_is_safe():
    assert folder_name("dhm, T = 2/3") == "dhm-T-=-2-3"
    assert folder_name("../..") == "arm"
