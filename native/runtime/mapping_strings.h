// A GGUF array of strings, copied out of a file's bytes.
//
// Layout in the file: `count` times a 64-bit little-endian length and that many bytes.
// Invariants: no byte outside [data, data + size) is read, nothing is allocated before the bytes
// that justify it were seen, and what is returned does not depend on the file any more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace insula {

enum class ScanFault { none, cut, too_large };

struct StringScan {
  std::unique_ptr<std::uint8_t[]> blob; // the strings one after the other
  std::size_t blob_size = 0;
  std::vector<std::int64_t> offsets; // count + 1: string i is blob[offsets[i] .. offsets[i + 1])
  std::uint64_t end = 0;             // the first byte after the array, in data
  ScanFault fault = ScanFault::none;
  std::uint64_t fault_at = 0; // where in data the offending length stands
};

// budget: how many bytes blob and offsets may take together; too_large beyond it.
StringScan scan_strings(const std::uint8_t *data, std::uint64_t size, std::uint64_t start,
                        std::uint64_t count, std::uint64_t budget);

} // namespace insula
