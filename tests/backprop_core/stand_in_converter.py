"""What a llama.cpp checkout has as `convert_hf_to_gguf.py`, for one architecture that exists nowhere else.

It is a Llama under another name, so llama.cpp can read what is written. A file `broken` beside it lets it fail with
half a file, a file `slow` lets it never end.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path

KNOWN = "OddForCausalLM"
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--outfile", type=Path)
    parser.add_argument("--outtype", choices=["f32", "f16", "bf16", "q8_0", "auto"], default="auto")
    parser.add_argument("--print-supported-models", action="store_true")
    asked = parser.parse_args()
    if asked.print_supported_models:
        logging.error("Supported models:\n- %s\n- OtherModel", KNOWN)
        return
    told = {"argv": sys.argv[1:], "files": sorted(path.name for path in asked.model.iterdir()), "pid": os.getpid()}
    (HERE / "asked.json").write_text(json.dumps(told))
    while (HERE / "slow").exists():
        time.sleep(0.05)
    if (HERE / "broken").exists():
        asked.outfile.write_bytes(b"GGUF")
        raise NotImplementedError("BPE pre-tokenizer was not recognized")
    write(asked.model, asked.outfile, asked.outtype)


def write(model: Path, outfile: Path, outtype: str) -> None:
    from backprop_core.export.gguf import convert

    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    convert(model, None, outfile, outtype=outtype)


def install(checkout: Path) -> Path:
    """Make a directory a checkout with this converter."""
    (checkout / "conversion").mkdir(parents=True)
    (checkout / "conversion" / "odd.py").write_text("LAYERS = 2\n")
    shutil.copyfile(__file__, checkout / "convert_hf_to_gguf.py")
    return checkout


def rename(base: Path) -> Path:
    """Give a Llama the architecture that only this converter knows."""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": [KNOWN]}))
    return base


if __name__ == "__main__":
    main()
