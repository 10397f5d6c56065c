# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Pathfinder's pictures: dashed curves ("snakes" of "paddles"), two of which are long, and a dot on two ends of long ones.

The algorithm is that of the task's authors (Linsley et al. 2018, after Houtkamp and Roelfsema 2010). Two long snakes start
near each other and grow paddle by paddle, in turns: the next paddle starts where the last one points, and its direction is
drawn with probability cos^2 of the continuity times the turn, among the pixels on a circle that are free. A paddle's mask,
its line widened by the margin, must not overlap the masks of others but its snake's last one. Short snakes, the distractors,
are put where there is room. Where a long snake gets stuck, the picture is begun anew.

As in the authors' program, and so in the benchmark's pictures, a long snake may cross the newest paddle of the other one,
and a distractor the last paddle of the first long snake.

Coordinates are (y, x). All arrays of a picture have a border that is occupied, and are flat: a place is one integer, and so
is a displacement.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_dilation

from luna_tools.errors import InputError

ANTIALIAS_SCALE = 2  # pictures are drawn at twice their size
MAX_OVERLAP = 0.8  # of the mask of a new paddle and the one that is there, above 1
MAX_OCCUPIED = 0.3  # of a pixel that is free
MIN_FREE = 0.01  # of a picture's pixels: with fewer, no distractor is begun
PADDLE_TRIES, DISTRACTOR_TRIES = 3, 5
MAX_ATTEMPTS = 20_000  # at the long snakes of a picture; the benchmark's take 30 at 32 pixels and 220 at 128, on average


@dataclass(frozen=True)
class Geometry:
    """Sizes in pixels, and how bright snakes are; the rest of a set's parameters."""

    size: int
    """Of the picture's sides."""
    padding: int
    """Nothing is drawn so near to the border."""
    seed_distance: int
    """Between the first ends of the two long snakes; the first one is twice as far from the border."""
    paddle_length: int
    paddle_thickness: float
    margins: tuple[int, ...]
    """One of them is drawn for each picture: the gap around paddles."""
    marker_radius: float
    continuity: float
    """The greater, the straighter."""
    target_contrast: float
    distractor_contrast: float


class Stamp(NamedTuple):
    """A paddle's line and mask: displacements from its start, and what is there."""

    places: np.ndarray
    line: np.ndarray  # 0 to 1
    mask: np.ndarray  # 0 to 1


class Turn(NamedTuple):
    """A direction to go on from: where the next pivot lies from the last one, and how likely each next direction is."""

    step: int
    weights: np.ndarray


class Snake(NamedTuple):
    """Its paddles, the places of its two ends, and the state from which it grows."""

    paddles: list[tuple[int, Stamp]]
    first_end: int
    last_end: int
    pivot: int
    turn: Turn


class Tables:
    """All that depends on a geometry and a margin alone, on arrays with `border` pixels around the picture."""

    def __init__(self, geometry: Geometry, margin: int):
        self.geometry = geometry
        self.margin = margin
        self.reach = geometry.paddle_length + margin
        self.border = 2 * (self.reach + math.ceil(geometry.paddle_thickness))
        self.width = geometry.size + 2 * self.border
        # The pixels of a circle of radius `reach`, one for each pixel of its length, as displacements from the pivot.
        angles = np.arange(0, 2 * np.pi, 1 / self.reach)
        circle = self.reach * np.stack([np.sin(angles), np.cos(angles)], axis=1)
        self.circle = np.unique(np.floor(circle).astype(int), axis=0)
        self.angles = np.arctan2(*self.circle.T)
        self.candidates = self.flat(self.circle)
        # The places from which a candidate is nearer than the margin.
        span = np.arange(-margin, margin + 1)
        disk = np.stack(np.meshgrid(span, span, indexing="ij"), axis=-1).reshape(-1, 2)
        disk = disk[(disk**2).sum(axis=1) <= margin**2]
        self.around = self.candidates[:, None] + self.flat(disk)
        self.turns = [self.turn(angle) for angle in self.angles]
        self.stamps = [self.stamp(angle + np.pi) for angle in self.angles]  # drawn back from the head

    def flat(self, coordinates: np.ndarray) -> np.ndarray:
        return coordinates @ (self.width, 1)

    def turn(self, angle: float) -> Turn:
        difference = np.abs(self.angles - angle)
        difference = np.minimum(difference, 2 * np.pi - difference)
        weights = np.cos(np.minimum(self.geometry.continuity * difference, np.pi / 2)) ** 2
        return Turn(int(self.flat(move(angle, self.reach + self.margin))), weights)

    def stamp(self, angle: float) -> Stamp:
        """The paddle that starts in the middle and points to `angle`."""
        geometry = self.geometry
        radius = geometry.paddle_length + math.ceil(geometry.paddle_thickness) + self.margin
        side, middle = 2 * radius + 1, radius * ANTIALIAS_SCALE
        large = Image.new("L", (2 * middle + 1, 2 * middle + 1))
        y, x = middle + move(angle, geometry.paddle_length * ANTIALIAS_SCALE)
        width = round(geometry.paddle_thickness * ANTIALIAS_SCALE)
        ImageDraw.Draw(large).line([(middle, middle), (int(x), int(y))], fill=255, width=width)
        reach = self.margin * ANTIALIAS_SCALE
        y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
        wide = Image.fromarray(binary_dilation(np.array(large) > 0, y**2 + x**2 <= reach**2).astype(np.uint8) * 255)
        line, mask = (np.asarray(image.resize((side, side), Image.Resampling.LANCZOS)) / 255 for image in (large, wide))
        places = np.argwhere(np.maximum(line, mask) > 0)
        return Stamp(self.flat(places - radius), line[tuple(places.T)], mask[tuple(places.T)])

    @cache  # noqa: B019 - tables are made once for each geometry and margin
    def seed(self, degrees: int) -> tuple[Stamp, int, int, Turn]:
        """A first paddle: its stamp, its head and its pivot as displacements from the tail, and its turn."""
        angle = math.radians(degrees)
        head = move(angle, self.geometry.paddle_length)
        pivot = head + move(angle + np.pi, self.reach)
        return self.stamp(angle), int(self.flat(head)), int(self.flat(pivot)), self.turn(angle)

    @cached_property
    def dot(self) -> tuple[np.ndarray, np.ndarray]:
        """The displacements of a dot's pixels from its middle, and how bright they are."""
        radius = math.ceil(self.geometry.marker_radius) + 3  # what the filter smears, too
        middle = radius * ANTIALIAS_SCALE
        y, x = np.ogrid[-middle : middle + ANTIALIAS_SCALE, -middle : middle + ANTIALIAS_SCALE]
        is_inside = y**2 + x**2 <= (self.geometry.marker_radius * ANTIALIAS_SCALE) ** 2
        large, side = Image.fromarray(is_inside.astype(np.uint8) * 255), 2 * radius + 1
        small = np.asarray(large.resize((side, side), Image.Resampling.LANCZOS)) / 255
        return self.flat(np.argwhere(small > 0) - radius), small[small > 0]

    @cached_property
    def empty_mask(self) -> np.ndarray:
        mask = np.ones((self.width, self.width))
        inside = self.border + self.geometry.padding
        mask[inside:-inside, inside:-inside] = 0
        return mask.ravel()

    @cache  # noqa: B019
    def places_of_first_seed(self, degrees: int) -> np.ndarray:
        """Where the first long snake may begin: twice the distance of the second one from the border."""
        middle = self.empty_mask.copy()
        rows = middle.reshape(self.width, self.width)
        inside = self.border + 2 * self.geometry.seed_distance
        rows[:inside] = rows[-inside:] = rows[:, :inside] = rows[:, -inside:] = 1
        return self.free_places(middle, degrees)

    def free_places(self, mask: np.ndarray, degrees: int) -> np.ndarray:
        """The places from which a first paddle in this direction is on free ground."""
        stamp = self.seed(degrees)[0]
        is_occupied = mask > MAX_OCCUPIED
        first, last = self.inside[0, 0], self.inside[-1, -1] + 1
        is_blocked = np.zeros(last - first, bool)
        for displacement in stamp.places[stamp.mask >= 1].tolist():
            is_blocked |= is_occupied[first + displacement : last + displacement]
        return first + (~is_blocked).nonzero()[0]

    @cached_property
    def inside(self) -> np.ndarray:
        """The places of the picture."""
        places = np.arange(self.width**2).reshape(self.width, self.width)
        return places[self.border : -self.border, self.border : -self.border]


@cache
def tables_of(geometry: Geometry, margin: int) -> Tables:
    return Tables(geometry, margin)


def move(angle: float, distance: float) -> np.ndarray:
    """The displacement in whole pixels, up to the next ones as in the authors' program."""
    displacement = distance * np.array([math.sin(angle), math.cos(angle)])
    return np.ceil(displacement.round(9)).astype(int)


@dataclass(frozen=True)
class Scene:
    """What is in a picture."""

    tables: Tables
    long_snakes: list[Snake]
    distractors: list[Snake]
    dots: tuple[int, int]
    label: int
    """1 where both dots are on the same snake."""


def compose(
    rng: np.random.Generator,
    geometry: Geometry,
    label: int,
    contour_length: int,
    distractor_length: int,
    num_distractors: int,
) -> Scene:
    """Draw a picture's snakes and dots by chance.

    Args:
        label: 1 where the dots are on the two ends of one long snake, 0 for an end of each.
        contour_length, distractor_length: paddles of a long snake, and of a distractor.
        num_distractors: as many as find room, up to this.

    Raises:
        InputError: there is no room for the long snakes.
    """
    tables = tables_of(geometry, int(rng.choice(geometry.margins)))
    for _ in range(MAX_ATTEMPTS):
        mask = tables.empty_mask.copy()
        long_snakes = grow_long_snakes(rng, tables, mask, contour_length)
        if long_snakes is not None:
            break
    else:
        raise InputError(
            f"Two curves of `contour_length` {contour_length} find no room in {geometry.size} x {geometry.size} pixels: "
            "make it smaller."
        )
    distractors = []
    for _ in range(num_distractors):
        for _ in range(DISTRACTOR_TRIES):
            distractor = grow_distractor(rng, tables, mask, distractor_length)
            if distractor is not None:
                distractors.append(distractor)
                break
    first = int(rng.integers(2))
    last = first if label else 1 - first
    return Scene(tables, long_snakes, distractors, (long_snakes[first].first_end, long_snakes[last].last_end), label)


def grow_long_snakes(rng: np.random.Generator, tables: Tables, mask: np.ndarray, length: int) -> list[Snake] | None:
    """Two snakes of `length` paddles, which are then in the mask too; None where one gets stuck.

    A paddle comes into the mask when its snake goes on, so the other snake may cross it before; the last one of the first
    snake does not come in.
    """
    snakes = seed_two(rng, tables)
    for _ in range(length - 1):
        for number, snake in enumerate(snakes):
            grown = extend(rng, tables, mask, snake)
            if grown is None:
                return None
            occupy(mask, *snake.paddles[-1])
            snakes[number] = grown
    occupy(mask, *snakes[1].paddles[-1])
    return snakes


def grow_distractor(rng: np.random.Generator, tables: Tables, mask: np.ndarray, length: int) -> Snake | None:
    """A snake of `length` paddles where there is room, which is then in the mask too; None where there is none."""
    if (mask[tables.inside] <= MAX_OCCUPIED).mean() < MIN_FREE:
        return None
    snake = seed_anywhere(rng, tables, mask)
    obstacles = mask.copy()
    for _ in range(length - 1):
        if snake is None:
            return None
        grown = extend(rng, tables, obstacles, snake)
        occupy(obstacles, *snake.paddles[-1])
        snake = grown
    if snake is not None:
        for paddle in snake.paddles:
            occupy(mask, *paddle)
    return snake


def seed_two(rng: np.random.Generator, tables: Tables) -> list[Snake]:
    """The first paddles of the long snakes, near the middle of the picture."""
    distance = tables.geometry.seed_distance
    degrees = draw_degrees(rng)
    first_tail = int(rng.choice(tables.places_of_first_seed(degrees)))
    angle = math.radians(draw_degrees(rng))
    apart = np.rint([distance * math.sin(angle), distance * math.cos(angle)]).astype(int)
    return [seed(tables, first_tail, degrees), seed(tables, first_tail + int(tables.flat(apart)), draw_degrees(rng))]


def seed_anywhere(rng: np.random.Generator, tables: Tables, mask: np.ndarray) -> Snake | None:
    """A first paddle in a random direction; None where there is no room for it."""
    degrees = draw_degrees(rng)
    places = tables.free_places(mask, degrees)
    return seed(tables, int(rng.choice(places)), degrees) if len(places) else None


def draw_degrees(rng: np.random.Generator) -> int:
    return int(rng.integers(-180, 180))


def seed(tables: Tables, tail: int, degrees: int) -> Snake:
    stamp, head, pivot, turn = tables.seed(degrees)
    return Snake([(tail, stamp)], tail, tail + head, tail + pivot, turn)


def extend(rng: np.random.Generator, tables: Tables, mask: np.ndarray, snake: Snake) -> Snake | None:
    """The snake with one more paddle; None where there is no room for it."""
    pivot = snake.pivot + snake.turn.step
    is_free = 1 - mask[pivot + tables.around].max(axis=1)
    cumulative = (is_free * snake.turn.weights).cumsum()
    if cumulative[-1] < 1e-4:
        return None
    for _ in range(PADDLE_TRIES):
        chosen = int(cumulative.searchsorted(rng.random() * cumulative[-1], side="right"))
        head, stamp = int(pivot + tables.candidates[chosen]), tables.stamps[chosen]
        if (mask[head + stamp.places] + stamp.mask).max() < 1 + MAX_OVERLAP:
            return Snake([*snake.paddles, (head, stamp)], snake.first_end, head, pivot, tables.turns[chosen])
    return None


def occupy(mask: np.ndarray, place: int, stamp: Stamp) -> None:
    """Put a paddle's mask at a place."""
    places = place + stamp.places
    mask[places] = np.maximum(mask[places], stamp.mask)


def draw(scene: Scene) -> np.ndarray:
    """The picture, (size, size) uint8, its brightest pixel 255."""
    tables, geometry = scene.tables, scene.tables.geometry
    canvas = np.zeros(tables.width**2)
    snakes = [(geometry.target_contrast, snake) for snake in scene.long_snakes]
    snakes += [(geometry.distractor_contrast, snake) for snake in scene.distractors]
    lines = [(place, stamp.places, contrast * stamp.line) for contrast, snake in snakes for place, stamp in snake.paddles]
    for place, places, line in [*lines, *((dot, *tables.dot) for dot in scene.dots)]:
        canvas[place + places] = np.maximum(canvas[place + places], line)
    picture = canvas[tables.inside]
    return (picture * (255 / picture.max()) + 0.5).astype(np.uint8)
