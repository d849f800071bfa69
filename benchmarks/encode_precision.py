"""Tells how far features of `kcache encode --encode-dtype fp16|bf16` are from those computed in fp32.

    python benchmarks/encode_precision.py                    kandinsky-tiny and the pictures that come with kcache
    python benchmarks/encode_precision.py --size full        the hub's architecture with random weights, on a GPU

Every cache stores fp32, so that only the encoders' arithmetic differs. For each field of each column: the error's norm
over the feature's norm, the median of all samples and the largest.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from hub_folders import DATA, write_models, write_pictures
from machine import add_json_option, describe, keep

from kcache.encoding.config import EncodeConfig
from kcache.encoding.encode import encode
from kcache.shards import Cache, ColumnReader, Snapshot

RESOLUTION = {"tiny": 64, "full": 512}
DTYPES = ("fp32", "fp16", "bf16")


def encoded(dtype: str, models: Path, pictures: Path, resolution: int, cache: Path) -> Cache:
    """A cache of the pictures with encoders that compute in ``dtype``."""
    config = EncodeConfig(
        dataset=str(pictures),
        cache=str(cache),
        pretrained_prior_model_name_or_path=str(models / "prior"),
        pretrained_decoder_model_name_or_path=str(models / "decoder"),
        resolution=(resolution,),
        encode_dtype=dtype,
        store_dtype="fp32",
    )
    encode(config)
    return Cache(str(cache))


def fields_of(cache: Cache) -> dict[str, list[npt.NDArray[np.float64]]]:
    """The features of every sample, by column and field."""
    found: dict[str, list[npt.NDArray[np.float64]]] = {}
    for name in cache.column_names():
        snapshot = Snapshot(cache, [name])
        reader = ColumnReader(snapshot, name)
        for field in cache.column(name).fields:
            rows = [reader.read(position, field.name) for position in range(len(snapshot.rows))]
            if rows[0].dtype.kind == "f":
                found[f"{name}: {field.name}"] = [row.astype(np.float64) for row in rows]
        reader.close()
    return found


def errors(one: list[npt.NDArray[np.float64]], exact: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """The norm of each sample's error, as a share of the norm of what is exact."""
    pairs = zip(one, exact, strict=True)
    return np.array([np.linalg.norm(near - true) / np.linalg.norm(true) for near, true in pairs])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=RESOLUTION, default="tiny")
    add_json_option(parser)
    options = parser.parse_args()
    machine, figures = describe("diffusers", "transformers"), dict[str, dict[str, float]]()
    with tempfile.TemporaryDirectory(prefix="kcache-precision-") as name:
        folder, models, pictures = Path(name), DATA / "kandinsky-tiny", DATA / "pictures"
        if options.size == "full":
            models, pictures = folder / "models", folder / "pictures"
            write_models("prior", "full", models, ("text", "vision"))
            write_models("decoder", "full", models, ("movq",))
            write_pictures(96, RESOLUTION["full"], pictures)
        made = {
            dtype: fields_of(encoded(dtype, models, pictures, RESOLUTION[options.size], folder / dtype))
            for dtype in DTYPES
        }
    print(f"{'':28} {'median':>9} {'largest':>9}")
    for dtype in DTYPES[1:]:
        for field, exact in made["fp32"].items():
            found = errors(made[dtype][field], exact)
            figures[f"{dtype}, {field}"] = {"median": float(np.median(found)), "largest": float(found.max())}
            print(f"{dtype} {field:23} {np.median(found):9.1e} {found.max():9.1e}")
    keep(options, machine, figures)


if __name__ == "__main__":
    main()
