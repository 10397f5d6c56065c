# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Pathfinder's pictures: curves that keep apart, labels that a tracer finds in the drawing, and dots where they belong."""

import functools
import itertools

import numpy as np
import pytest
from scipy.ndimage import label as find_components
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from finetuning.lra.pathfinder import Pathfinder32Options, Pathfinder128Options
from finetuning.lra.snakes import Scene, Snake, compose, draw, extend, seed, tables_of
from luna_tools.errors import InputError

SETS = {"32": (Pathfinder32Options, 60), "128": (Pathfinder128Options, 16)}


@functools.cache
def scenes(name: str) -> list[Scene]:
    """Scenes of the benchmark's parameters, half of each class."""
    options, count = SETS[name]
    parameters = (options.contour_length, options.distractor_length, options.num_distractors)
    return [compose(np.random.default_rng(i), options.geometry, i % 2, *parameters) for i in range(count)]


def paint(scene: Scene, snakes: list[Snake], layer: str) -> np.ndarray:
    """The lines or masks of snakes, one on the other, in the picture."""
    canvas = np.zeros(scene.tables.width**2)
    for snake in snakes:
        for place, stamp in snake.paddles:
            np.maximum.at(canvas, place + stamp.places, getattr(stamp, layer))
    return canvas[scene.tables.inside]


def yx(scene: Scene, place: int) -> np.ndarray:
    return np.array(divmod(place, scene.tables.width)) - scene.tables.border


def may_touch(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Of two paddles, each a snake (0 and 1 are long) and a number in it: was the first not yet in the mask?"""
    (snake, number), (later_snake, later_number) = sorted((one, other))
    if snake == later_snake:
        return abs(number - later_number) == 1
    if later_snake == 1:  # paddles are put in turns
        return number - later_number in (0, 1)
    return snake == 0 and number == 13


@pytest.mark.parametrize("name", SETS)
def test_curves_are_as_long_as_wanted_and_keep_apart(name):
    options = SETS[name][0]
    for scene in scenes(name):
        assert [len(snake.paddles) for snake in scene.long_snakes] == [14, 14]
        assert {len(snake.paddles) for snake in scene.distractors} <= {4}
        assert len(scene.distractors) <= options.num_distractors
        lines = {
            (number, place): paint(scene, [snake._replace(paddles=[paddle])], "line")
            for number, snake in enumerate(scene.long_snakes + scene.distractors)
            for place, paddle in enumerate(snake.paddles)
        }
        for one, other in itertools.combinations(lines, 2):
            assert may_touch(one, other) or np.minimum(lines[one], lines[other]).max() < 0.3
    assert np.mean([len(scene.distractors) for scene in scenes(name)]) > 0.85 * options.num_distractors


@pytest.mark.parametrize("name", SETS)
def test_nothing_is_drawn_in_the_padding(name):
    for scene in scenes(name):
        picture = paint(scene, scene.long_snakes + scene.distractors, "line")
        inner = picture[1:-1, 1:-1]
        assert picture.sum() - inner.sum() < 0.01 * inner.sum()


@pytest.mark.parametrize("name", SETS)
def test_a_flood_from_dot_to_dot_finds_the_label(name):
    """Over the long curves as they are drawn, each widened by its margin; where they touch, a flood cannot tell."""
    compared = 0
    for scene in scenes(name):
        drawn = [paint(scene, [snake], "line") for snake in scene.long_snakes]
        if np.minimum(*drawn).max() > 0.1:
            continue
        compared += 1
        first, last = (tuple(yx(scene, dot)) for dot in scene.dots)
        connected = []
        for snake, line in zip(scene.long_snakes, drawn, strict=True):
            ground, count = find_components(paint(scene, [snake], "mask") > 0.05, np.ones((3, 3)))
            assert count == 1
            connected.append(min(line[first], line[last]) > 0.15 and ground[first] == ground[last])
        assert any(connected) == scene.label
    assert compared > 0.4 * len(scenes(name))


def paddle_ends(scene: Scene, place: int, stamp) -> np.ndarray:
    """Where the drawn line points to on both sides, a margin beyond its ends, from its brightness alone."""
    pixels = np.stack(np.divmod(place + stamp.places, scene.tables.width), axis=1)
    centre = stamp.line @ pixels / stamp.line.sum()
    spread = (pixels - centre).T @ ((pixels - centre) * stamp.line[:, None])
    axis = np.linalg.eigh(spread)[1][:, -1]
    return centre + np.array([[-1], [1]]) * axis * (scene.tables.geometry.paddle_length / 2 + scene.tables.margin)


def test_a_tracer_of_single_paddles_finds_the_label():
    """All paddles in random order, distractors too: those whose ends point to one place belong together."""
    right = 0
    for number, scene in enumerate(scenes("128")):
        paddles = [paddle for snake in scene.long_snakes + scene.distractors for paddle in snake.paddles]
        np.random.default_rng(number).shuffle(paddles)
        ends = np.concatenate([paddle_ends(scene, *paddle) for paddle in paddles])
        owner = np.repeat(np.arange(len(paddles)), 2)
        joined = (cdist(ends, ends) < 2.8) | (owner[:, None] == owner)
        curve = connected_components(joined)[1]
        dots = np.array([yx(scene, dot) for dot in scene.dots]) + scene.tables.border
        one, other = curve[cdist(dots, ends).argmin(axis=1)]
        right += (one == other) == bool(scene.label)
    assert right >= 0.9 * len(scenes("128"))


@pytest.mark.parametrize("name", SETS)
def test_dots_are_on_the_ends_and_bright(name):
    for scene in scenes(name):
        firsts, lasts = zip(*((snake.first_end, snake.last_end) for snake in scene.long_snakes), strict=True)
        first, last = scene.dots
        assert (firsts.index(first) == lasts.index(last)) == bool(scene.label)
        picture = draw(scene)
        assert picture.shape == (int(name), int(name)) and picture.dtype == np.uint8 and picture.max() == 255
        for dot in scene.dots:
            y, x = yx(scene, dot)
            assert picture[y, x] >= 200
        distance = np.linalg.norm(yx(scene, firsts[0]) - yx(scene, firsts[1]))
        assert abs(distance - scene.tables.geometry.seed_distance) < 1


def test_the_next_direction_has_the_published_probabilities():
    """On free ground: cos^2 of the continuity times the turn, and nothing beyond a right angle."""
    tables = tables_of(Pathfinder128Options.geometry, 2)
    mask = np.zeros_like(tables.empty_mask)
    middle = tables.width * (tables.width // 2) + tables.width // 2
    start = seed(tables, middle, 30)
    rng, counts = np.random.default_rng(0), np.zeros(len(tables.candidates))
    for _ in range(4000):
        grown = extend(rng, tables, mask, start)
        counts[tables.candidates.tolist().index(grown.last_end - grown.pivot)] += 1
    turn = np.abs((tables.angles - np.radians(30) + np.pi) % (2 * np.pi) - np.pi)
    likely = np.where(1.8 * turn < np.pi / 2, np.cos(1.8 * turn) ** 2, 0)
    expected = likely / likely.sum() * counts.sum()
    assert not counts[expected == 0].any()
    assert np.abs(counts - expected).max() < 4 * np.sqrt(expected.max())


def test_occupied_ground_is_avoided():
    tables = tables_of(Pathfinder32Options.geometry, 1)
    middle = tables.width * (tables.width // 2) + tables.width // 2
    start = seed(tables, middle, 0)
    mask = np.ones_like(tables.empty_mask)
    assert extend(np.random.default_rng(0), tables, mask, start) is None
    rows = mask.reshape(tables.width, tables.width)
    rows[tables.width // 2 :] = 0  # free below
    for number in range(50):
        grown = extend(np.random.default_rng(number), tables, mask, start)
        assert grown.last_end // tables.width > tables.width // 2


def test_curves_that_find_no_room(monkeypatch):
    monkeypatch.setattr("finetuning.lra.snakes.MAX_ATTEMPTS", 50)
    with pytest.raises(
        InputError, match="^Two curves of `contour_length` 90 find no room in 32 x 32 pixels: make it smaller.$"
    ):
        compose(np.random.default_rng(0), Pathfinder32Options.geometry, 1, 90, 4, 5)
