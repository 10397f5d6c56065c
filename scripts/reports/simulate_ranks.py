# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Take the sampler, the data order and the schedule of a recipe through many ranks, without as many devices.

    python -m scripts.reports.simulate_ranks                            # an epoch of 10^6 sequences over 64 ranks
    python -m scripts.reports.simulate_ranks --every_place 1000000000   # besides, every place of an index of 10^9
    python -m scripts.reports.simulate_ranks --dataset data/python-docs # besides, real rows, masks and batches

The first part runs the real `MicroBatchSampler` of every rank, step by step, until the epoch is over, and compares each
global batch with that of one rank. The second proves that an epoch of so many sequences reads each of them once: the row at
each place leads back to that place, so no row stands at two. No table of the size of the index is made.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from luna_tools.errors import InputError
from pretraining.order import MicroBatchSampler, permute, places_of
from pretraining.recipe import Recipe, load_recipe

CHUNK = 2**17  # places at a time: what stays in a core's cache
MIB = 2**20


def simulate_epoch(global_batch: int, micro_batch: int, sequences: int, processes: int, seed: int) -> dict:
    """Read the first epoch as `processes` ranks read it together.

    Returns:
        The steps, and how many sequences were read how often: {1: sequences} if all is well.

    Raises:
        AssertionError: a global batch is not that of one rank.
    """
    steps = -(-sequences // global_batch)
    many, one = (
        [iter(MicroBatchSampler(0, steps, global_batch, micro_batch, rank, ranks)) for rank in range(ranks)]
        for ranks in (processes, 1)
    )
    micro_batches = global_batch // micro_batch
    readings = np.zeros(sequences, dtype=np.uint8)
    for step in tqdm(range(steps), desc=f"{processes} ranks", unit="step", mininterval=1):
        alone = [place for _ in range(micro_batches) for place in next(one[0])]
        together = [place for _ in range(micro_batches // processes) for rank in many for place in next(rank)]
        assert together == alone, f"step {step}: the global batch of {processes} ranks is not that of one"
        places = np.array(together)
        # The last step goes on with the second epoch.
        np.add.at(readings, permute(places[places < sequences], sequences, seed, 0), 1)
    assert all(next(rank, None) is None for rank in many), "a rank has micro-batches left"
    counts, occurrences = np.unique(readings, return_counts=True)
    return {"steps": steps, "readings": dict(zip(counts.tolist(), occurrences.tolist(), strict=True))}


def simulate_steps(dataset, global_batch: int, micro_batch: int, processes: int, steps: int) -> int:
    """Take steps with their real rows, masks and batches: together the ranks have the tensors of one rank, bit for bit.

    The loss of a step is a sum over all masked tokens divided by their number, so with the tensors both are the same too.

    Returns:
        The number of masked tokens.

    Raises:
        AssertionError: a tensor differs.
    """
    from torch.utils.data import DataLoader

    from pretraining.data import collate

    def batches(rank: int, ranks: int):
        sampler = MicroBatchSampler(0, steps, global_batch, micro_batch, rank, ranks)
        return iter(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate))

    one, many, masked = batches(0, 1), [batches(rank, processes) for rank in range(processes)], 0
    for step in tqdm(range(steps), desc="real batches", unit="step", mininterval=1):
        for _ in range(global_batch // (micro_batch * processes)):
            for rank in many:
                alone, mine = next(one), next(rank)
                assert all(alone[name].equal(mine[name]) for name in alone), f"step {step}: a rank has another batch"
                masked += int((mine["labels"] != -100).sum())
    return masked


def check_schedule(recipe: Recipe, rates: np.ndarray) -> None:
    """Compare every learning rate with the paper's schedule, which is drawn: straight lines between three points.

    Args:
        rates: of all updates in their order.

    Raises:
        AssertionError: at the first update that is not.
    """
    corners = (-1, recipe.warmup_steps, recipe.max_steps)  # updates from 0: nothing before the first, nothing after the last
    expected = np.interp(np.arange(recipe.max_steps), corners, (0.0, recipe.learning_rate, 0.0))
    wrong = np.flatnonzero(~np.isclose(rates, expected, rtol=1e-9, atol=0))
    assert len(wrong) == 0, f"update {wrong[0] + 1}: not the schedule's learning rate"


def check_places(first: int, last: int, sequences: int, seed: int) -> int:
    """Count how many of the places `first` to `last` - 1 hold a row of the index that leads back to them."""
    good = 0
    for start in range(first, last, CHUNK):
        places = np.arange(start, min(start + CHUNK, last))
        rows = permute(places, sequences, seed, 0)
        good += int(((places_of(rows, sequences, seed, 0) == places) & (rows >= 0) & (rows < sequences)).sum())
    return good


def check_share(share: tuple[int, int, int, int]) -> tuple[int, int]:
    """Return `check_places`, and the peak memory of the process that did it in bytes."""
    good = check_places(*share)
    return good, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_every_place(sequences: int, seed: int, num_proc: int) -> dict:
    """Check all places of an index, divided over `num_proc` processes."""
    bounds = np.linspace(0, sequences, 64 * num_proc + 1).astype(int).tolist()
    shares = [(first, last, sequences, seed) for first, last in zip(bounds, bounds[1:], strict=False)]
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(num_proc) as pool:
        done = list(tqdm(pool.imap(check_share, shares), total=len(shares), desc="index", mininterval=1))
    return {
        "good": sum(good for good, _ in done),
        "seconds": time.perf_counter() - started,
        "peak_bytes": max(peak for _, peak in done),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="luna_base_160gb_tied")
    parser.add_argument("--sequences", type=int, default=10**6)
    parser.add_argument("--num_processes", type=int, default=64)
    parser.add_argument("--dataset", type=Path, help="a prepared dataset, to take its rows through the ranks as well")
    parser.add_argument("--steps", type=int, default=4, help="steps of --dataset")
    parser.add_argument("--every_place", type=int, metavar="SEQUENCES", help="check an index of so many sequences too")
    parser.add_argument("--num_proc", type=int, default=os.cpu_count(), help="processes for --every_place")
    args = parser.parse_args()

    if args.every_place is not None:
        result = check_every_place(args.every_place, seed=0, num_proc=args.num_proc)
        print(
            f"Index of {args.every_place:,}: {result['good']:,} places hold rows that lead back to them, in "
            f"{result['seconds']:.0f} s with {args.num_proc} processes of at most {result['peak_bytes'] / MIB:.0f} MiB."
        )
        if result["good"] != args.every_place:
            return 1

    try:
        recipe = load_recipe(args.recipe)
        share = recipe.micro_batch_size * args.num_processes
        if recipe.global_batch_size % share:
            raise InputError(f"`--num_processes` is {args.num_processes}: {share} does not divide the global batch.")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from pretraining.run import learning_rate_at  # brings torch, which the places do without

    sizes = (recipe.global_batch_size, recipe.micro_batch_size)
    result = simulate_epoch(*sizes, args.sequences, args.num_processes, recipe.seed)
    print(
        f"Epoch of {args.sequences:,} over {args.num_processes} ranks: {result['steps']:,} global batches of {sizes[0]:,}, "
        f"each that of one rank; sequences by the times they were read: {result['readings']}."
    )
    rates = np.array([learning_rate_at(step, recipe) for step in range(recipe.max_steps)])
    check_schedule(recipe, rates)
    shown = ", ".join(f"{rates[i]:.3g} at update {i + 1:,}" for i in (0, recipe.warmup_steps, recipe.max_steps - 1))
    print(f"Learning rate: {shown}; every update's is that of the schedule.")
    if args.dataset is not None:
        from transformers import AutoTokenizer

        from pretraining.dataset_format import read_manifest
        from pretraining.objectives import OBJECTIVES

        tokenizer = AutoTokenizer.from_pretrained(args.dataset / "tokenizer")
        rows = OBJECTIVES[recipe.objective](recipe, tokenizer, read_manifest(args.dataset)).rows(
            args.dataset / "train", shuffle=True
        )
        masked = simulate_steps(rows, *sizes, args.num_processes, args.steps)
        print(
            f"{args.steps} steps with the rows of {args.dataset}: the batches of {args.num_processes} ranks are those of "
            f"one, masks and {masked:,} labels included."
        )
    return 0 if result["readings"] == {1: args.sequences} else 1


if __name__ == "__main__":
    sys.exit(main())
