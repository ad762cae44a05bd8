"""Compositions in words: what they mean, and where they are wrong."""

from __future__ import annotations

import pytest

from genkit.errors import GenkitError
from genkit.particles import Density, Target
from genkit.particles.compositions import Mixture, Product, Temperature
from genkit.particles.expression import parse
from tests.particles.test_targets import Fake, T, points

NAMES = ("cat", "dog", "T-shirt/top", "polar bear", "3")
MODEL, OTHER = Fake(5, names=NAMES), Fake(7)


def shown(target: Target) -> str:
    """A target as text, with the labels that its leaves ask for."""
    if isinstance(target, Density):
        asked = MODEL.asked + OTHER.asked
        target(T, points(2))
        y = next(
            y
            for _, _, y in (MODEL.asked + OTHER.asked)
            if y is not None and not any(y is z for _, _, z in asked)
        )
        return str(int(y[0])) if int(y[0]) >= 0 else "any"
    parts = [shown(part) for part in target.parts]
    if isinstance(target, Temperature):
        return f"{parts[0]}^{target.beta:g}"
    if isinstance(target, Product):
        return "(" + " ".join(f"{part}^{w:g}" for part, w in zip(parts, target.weights, strict=True)) + ")"
    assert isinstance(target, Mixture)
    shares = [2.718281828459045**log for log in target.log_weights]
    return "[" + " ".join(f"{w:.2g}*{part}" for part, w in zip(parts, shares, strict=True)) + "]"


@pytest.mark.parametrize(
    ("text", "divide", "meaning"),
    [
        ("1", False, "1"),
        ("cat", False, "0"),
        ("  dog ", False, "1"),
        ("any", False, "any"),
        ("3", False, "4"),  # a name that looks like a number is a name
        ("'polar bear'", False, "3"),
        ('"T-shirt/top" AND 0', False, "(2^1 0^1)"),
        ("cat AND dog", False, "(0^1 1^1)"),
        ("cat AND dog", True, "(0^1 1^1 any^-1)"),
        ("cat AND dog AND 2", True, "(0^1 1^1 2^1 any^-2)"),
        ("cat AND NOT dog^0.5", False, "(0^1 1^-0.5)"),
        ("cat AND NOT dog", True, "(0^1 1^-1 any^1)"),
        ("cat^2", False, "0^2"),
        ("cat^2", True, "(0^2 any^-1)"),
        ("cat", True, "0"),
        ("cat^1", False, "0"),
        ("cat^2 AND dog^0.5", False, "(0^2 1^0.5)"),
        ("0.3*cat OR 0.7*dog", False, "[0.3*0 0.7*1]"),
        ("cat OR 3*dog", False, "[0.25*0 0.75*1]"),
        ("2 OR cat OR dog OR any", False, "[0.25*2 0.25*0 0.25*1 0.25*any]"),
        ("cat AND dog OR 0 AND 2", False, "[0.5*(0^1 1^1) 0.5*(0^1 2^1)]"),
        ("(cat OR dog) AND 2", False, "([0.5*0 0.5*1]^1 2^1)"),
        ("(cat OR dog)^3", False, "[0.5*0 0.5*1]^3"),
        ("((cat))AND(dog)", False, "(0^1 1^1)"),
        ("any AND NOT cat^0.5", False, "(any^1 0^-0.5)"),
        ("(0 AND 1)^0.5 AND NOT(2 OR 0)^.5", False, None),
        ("other:6 AND cat", False, "(6^1 0^1)"),
        ("other : any AND other:0", False, "(any^1 0^1)"),
    ],
)
def test_what_an_expression_means(text: str, divide: bool, meaning: str | None) -> None:
    if meaning is None:  # numbers have a digit before the point
        with pytest.raises(GenkitError, match="'.' begins nothing"):
            parse(text, MODEL, models={"other": OTHER})
    else:
        assert shown(parse(text, MODEL, models={"other": OTHER}, divide_prior=divide)) == meaning


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"'', at character 1: expected a class, 'any', NOT or \(, not the end"),
        ("cat AND", r"at character 8: expected a class, .*, not the end"),
        ("cat dog", r"'cat dog', at character 5: expected AND, OR, \^ or the end, not 'dog'"),
        ("AND cat", r"at character 1: expected a class, .* not 'AND'"),
        ("cat AND OR dog", r"at character 9: expected a class, .* not 'OR'"),
        ("(cat AND dog", r"at character 13: expected AND, OR, \^ or \), not the end"),
        ("cat)", r"at character 4: expected AND, OR, \^ or the end, not '\)'"),
        ("cat^", r"at character 5: expected a positive number, not the end"),
        ("cat^dog", r"at character 5: expected a positive number, not 'dog'"),
        ("cat^0", r"at character 5: a power must be positive \(for a negative one write NOT\)"),
        ("cat^-1", r"at character 5: '-' begins nothing"),
        ("cat & dog", r"at character 5: '&' begins nothing that is known here: classes, any, AND"),
        ("cat AND 'dog", r"at character 9: ''' begins nothing"),
        ("0.5*cat", r"at character 1: weights go with OR; of one part alone a power may be meant: \^0.5"),
        ("cat AND 0.5*dog", r"at character 9: weights go with OR; in a product write a power: \^0.5"),
        ("0*cat OR dog", r"at character 1: a weight must be positive"),
        ("NOT cat", r"at character 1: NOT takes away from something, .*: 'any AND NOT ...'"),
        ("dog OR NOT cat", r"at character 8: NOT takes away"),
        ("cta", r"at character 1: no class 'cta'; did you mean 'cat'\? \(one of: .*any"),
        ("cat AND Dog", r"at character 9: no class 'Dog'; did you mean 'dog'\?"),
        ("cat AND 12", r"at character 9: class 12 is out of range: 'fakes' has classes 0 to 4"),
        ("cat AND 1.5", r"at character 9: no class '1.5'"),
        ("othr:1 AND cat", r"at character 1: no model 'othr'; did you mean 'other'\?"),
        ("other:cat", r"at character 7: no class 'cat' \(one of: 0, 1, .*any"),
        ("other:", r"at character 7: expected a class or 'any', not the end"),
        ("cat AND NOT dog", r"sum to 0, and at t=0 .* or divide the prior out"),
        ("cat OR dog^2", r"sum to 1, 2, so that at t=0"),
    ],
)
def test_where_an_expression_is_wrong(text: str, message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        parse(text, MODEL, models={"other": OTHER})


def test_models_without_classes_or_without_the_null_class() -> None:
    assert parse("any", Fake(None)).exponent == 1
    with pytest.raises(GenkitError, match=r"at character 9: this model of 'fakes' is unconditional"):
        parse("any AND 1", Fake(None))
    strict = Fake(5, label_dropout=0.0)
    assert parse("1 AND 2", strict).exponent == 2
    with pytest.raises(GenkitError, match=r"at character 1: .* label_dropout 0: it has no unconditional"):
        parse("any", strict)
    with pytest.raises(GenkitError, match="label_dropout 0"):
        parse("1 AND 2", strict, divide_prior=True)
