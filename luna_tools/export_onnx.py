# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Export a Luna to ONNX, in float32 and for any batch size and length, and check it with ONNX Runtime.

`luna export MODEL --output_dir FOLDER` writes FOLDER/model.onnx by transformers' own exporter, which has no command.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luna_tools.errors import InputError, first_sentence, undone_when_stopped
from luna_tools.files import is_disk_full, put_in_place, staging_folder, writing
from luna_tools.settings import Parser

if TYPE_CHECKING:  # imported where they are used: the command line is read before
    import torch

TOLERANCE = 1e-4


def make_batch(model, lengths: list[int], n: int, side: str = "right") -> dict[str, "torch.Tensor"]:
    """Rows of `lengths` random tokens, padded to n on one side: (b, n), or (b, 2, n) for multiple choice."""
    import torch

    generator = torch.Generator().manual_seed(n)
    pad = model.config.pad_token_id
    mask = torch.stack([torch.arange(n) < length for length in lengths])
    mask = (mask if side == "right" else mask.flip(-1)).long()
    ids = torch.randint(pad + 1, model.config.vocab_size, mask.shape, generator=generator)
    batch = {"input_ids": torch.where(mask.bool(), ids, pad), "attention_mask": mask}
    if type(model).__name__ == "LunaForMultipleChoice":
        batch = {name: torch.stack([values, values.roll(1, dims=0)], dim=1) for name, values in batch.items()}
    return batch


def export(model, folder: Path) -> Path:
    """Write one graph for all batch sizes and lengths. The example shows it padding, more rows and tokens than one."""
    from torch.export import Dim
    from transformers.exporters import OnnxConfig, OnnxExporter

    folder.mkdir()
    batch = make_batch(model, [4, 3, 2], 4)
    shapes = {name: dict.fromkeys(range(values.ndim), Dim.DYNAMIC) for name, values in batch.items()}
    exported = OnnxExporter().export(model, batch, OnnxConfig(dynamic_shapes=shapes))
    path = folder / "model.onnx"
    if hasattr(exported, "save_pretrained"):  # since transformers 5.23: with what `ExportedModel.from_pretrained` reads
        exported.save_pretrained(folder)
    else:
        exported.save(path, external_data=True)
        model.config.save_pretrained(folder)
    return path


def largest_difference(model, path: Path) -> tuple[float, list[int]]:
    """Over lengths around 1, l and 3 l, padding on either side, one row and three; and these lengths."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    l, longest = model.config.projection_length, model.config.max_sequence_length
    lengths = sorted({n for n in (1, 2, l - 1, l, l + 1, 3 * l) if 1 <= n <= (longest or n)})
    worst = 0.0
    for n in lengths:
        for rows, side in (([n], "right"), ([n, 1, -(-n // 2)], "right"), ([n, 1, -(-n // 2)], "left")):
            batch = make_batch(model, rows, n, side)
            with torch.no_grad():
                expected = model(**batch)
            found = session.run(None, {name: values.numpy() for name, values in batch.items()})
            for name, values in zip(names, found, strict=True):
                worst = max(worst, (torch.from_numpy(values).float() - expected[name].float()).abs().max().item())
    return worst, lengths


def export_and_compare(model, name: str, folder: Path) -> tuple[Path, float, list[int]]:
    """The graph in a folder, its largest difference from the model, and the lengths that were compared.

    Raises:
        InputError: for what the exporter and ONNX Runtime raise, but of files that cannot be written.
    """
    try:
        graph = export(model, folder)
        return graph, *largest_difference(model, graph)
    except Exception as error:
        if isinstance(error, OSError) or is_disk_full(error):
            raise
        reason = f"{type(error).__name__}: {first_sentence(error)}"
        raise InputError(f"{name!r} cannot be exported ({reason}): try other versions of torch and onnxscript.") from error


@dataclass
class ExportOptions:
    output_dir: str
    """Folder to write: new or empty."""


def main(argv: list[str]) -> None:
    parser = Parser("luna export", __doc__.splitlines()[0], ExportOptions, words=("MODEL",))
    (name,), options = parser.parse_command(argv)

    import onnxruntime  # noqa: F401  (both are asked for before the model is loaded)
    import onnxscript  # noqa: F401

    from luna_tools.load import load_luna, quiet_transformers

    out = Path(options.output_dir)
    with undone_when_stopped(), writing(out):
        folder = out.resolve()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"--output_dir is {options.output_dir!r}, which is not an empty folder: choose another name.")
        with quiet_transformers():
            model = load_luna(name)
        if model.can_generate():
            raise InputError(f"{name!r} is a {type(model).__name__}, whose cache has no form in ONNX: export an encoder.")
        with staging_folder(folder) as staging:  # what is wrong never gets the name
            graph, difference, lengths = export_and_compare(model, name, staging / "onnx")
            if not difference <= TOLERANCE:
                raise InputError(
                    f"The graph is {difference:.1e} from the model, more than {TOLERANCE:.0e}: nothing was written; "
                    "try other versions of torch, onnxscript and onnxruntime."
                )
            put_in_place(graph.parent, folder)
    print(f"Wrote {out}: at most {difference:.1e} from the model over lengths {lengths} with padding.")
