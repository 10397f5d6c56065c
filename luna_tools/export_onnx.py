# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Export a Luna to ONNX, in float32 and for any batch size and length, and check it with ONNX Runtime.

`python scripts/export_onnx.py MODEL FOLDER` writes FOLDER/model.onnx by transformers' own exporter, which has no command.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch.export import Dim
from transformers.exporters import OnnxConfig, OnnxExporter

import modeling_luna
from luna_tools.files import one_sentence_when_stopped, put_in_place, staging_folder
from luna_tools.load import load_luna, one_line

TOLERANCE = 1e-4


def make_batch(model, lengths: list[int], n: int, side: str = "right") -> dict[str, torch.Tensor]:
    """Rows of `lengths` random tokens, padded to n on one side: (b, n), or (b, 2, n) for multiple choice."""
    generator = torch.Generator().manual_seed(n)
    pad = model.config.pad_token_id
    mask = torch.stack([torch.arange(n) < length for length in lengths])
    mask = (mask if side == "right" else mask.flip(-1)).long()
    ids = torch.randint(pad + 1, model.config.vocab_size, mask.shape, generator=generator)
    batch = {"input_ids": torch.where(mask.bool(), ids, pad), "attention_mask": mask}
    if isinstance(model, modeling_luna.LunaForMultipleChoice):
        batch = {name: torch.stack([values, values.roll(1, dims=0)], dim=1) for name, values in batch.items()}
    return batch


def export(model, folder: Path) -> Path:
    """Write one graph for all batch sizes and lengths. The example shows it padding, more rows and tokens than one."""
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder that save_pretrained wrote, or a name on the Hub")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(arguments)
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        sys.exit(f"error: {error.name} is not installed: `pip install 'luna-transformers[onnx]'`.")
    with one_sentence_when_stopped():
        try:
            folder = args.folder.resolve()
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                sys.exit(f"error: {str(folder)!r} exists and is not an empty folder: choose another name.")
            model = load_luna(args.model)
            with staging_folder(folder) as staging:  # what is wrong never gets the name
                graph = export(model, staging / "onnx")
                difference, lengths = largest_difference(model, graph)
                if not difference <= TOLERANCE:
                    sys.exit(
                        f"error: the graph is {difference:.1e} from the model, more than {TOLERANCE:.0e}: nothing was "
                        "written; try other versions of torch, onnxscript and onnxruntime."
                    )
                put_in_place(graph.parent, folder)
        except OSError as error:
            sys.exit(f"error: {str(args.folder)!r} cannot be written ({one_line(error)}): choose another folder.")
        except Exception as error:  # whatever the exporter and ONNX Runtime raise
            reason = f"{type(error).__name__}: {one_line(error)}"
            sys.exit(f"error: {args.model!r} cannot be exported ({reason}): try other versions of torch and onnxscript.")
    print(f"Wrote {args.folder}: at most {difference:.1e} from the model over lengths {lengths} with padding.")


if __name__ == "__main__":
    main()
