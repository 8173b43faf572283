"""Look for weak symbols in the objects of native/isa.

The linker keeps one copy of a weak symbol (an inline function, a template) for the whole program.
If the copy it keeps was compiled with AVX-512 flags, a machine without AVX-512 dies on an illegal
instruction in code that never asked for it. So an object of native/isa defines no weak symbol at
all: what it needs has internal linkage, and what it offers is an ordinary strong symbol.

    check_isa_objects.py BUILD_DIR          every object of native/isa below it
    check_isa_objects.py FILE.o …           these

Reads ELF itself (System V gABI, chapter 4), so that it needs no binutils and reads cross-compiled
objects too. Exit 1 where a weak symbol is found, 2 where there is nothing to read.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

SHT_SYMTAB = 2
STB_WEAK = 2
STB_GNU_UNIQUE = 10
SHN_UNDEF = 0


class NotElfError(ValueError):
    """Not a 64-bit little-endian ELF file."""


def weak_symbols(data: bytes) -> list[str]:
    """Names of the weak (or GNU unique) symbols that an ELF64 object defines."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise NotElfError("not a 64-bit little-endian ELF object")
    section_table = struct.unpack_from("<Q", data, 0x28)[0]
    entry_size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", data, section_table + i * entry_size)
        for i in range(count)
    ]
    names: list[str] = []
    for _, kind, _, _, offset, size, link, _, _, entry in sections:
        if kind != SHT_SYMTAB:
            continue
        strings = sections[link][4]
        for at in range(offset, offset + size, entry):
            name, info, _, section = struct.unpack_from("<IBBH", data, at)
            if section != SHN_UNDEF and info >> 4 in (STB_WEAK, STB_GNU_UNIQUE):
                end = data.index(b"\0", strings + name)
                names.append(data[strings + name : end].decode())
    return sorted(names)


def objects(argument: str) -> list[Path]:
    path = Path(argument)
    if path.is_dir():
        return sorted(path.glob("CMakeFiles/insula_core.dir/native/isa/*.o"))
    return [path]


def main(arguments: list[str]) -> int:
    files = [file for argument in arguments for file in objects(argument)]
    if not files:
        print(f"no object of native/isa in {' '.join(arguments)}; build first", file=sys.stderr)
        return 2
    bad = 0
    for file in files:
        try:
            found = weak_symbols(file.read_bytes())
        except NotElfError:
            print(f"{file.name}: not ELF; this check reads ELF only", file=sys.stderr)
            return 2
        for name in found:
            print(f"{file.name}: weak symbol {name}: give it internal linkage", file=sys.stderr)
        bad += len(found)
    if bad:
        return 1
    print(f"{len(files)} objects of native/isa define no weak symbol")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
