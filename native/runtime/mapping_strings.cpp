#include "mapping_strings.h"

#include <algorithm>
#include <cstring>

namespace insula {

namespace {

std::uint64_t load_u64(const std::uint8_t *at) {
  std::uint64_t value = 0;
  for (int i = 7; i >= 0; --i) {
    value = value << 8 | at[i];
  }
  return value;
}

} // namespace

StringScan scan_strings(const std::uint8_t *data, std::uint64_t size, std::uint64_t start,
                        std::uint64_t count, std::uint64_t budget) {
  StringScan scan;
  const auto fail = [&scan](ScanFault fault, std::uint64_t at) {
    scan = StringScan{};
    scan.fault = fault;
    scan.fault_at = at;
  };
  if (start > size || count > (size - start) / 8) { // each string has at least its length
    fail(ScanFault::cut, std::min(start, size));
    return scan;
  }
  if (count > budget / sizeof(std::int64_t)) {
    fail(ScanFault::too_large, start);
    return scan;
  }
  std::uint64_t left = budget - count * sizeof(std::int64_t);
  scan.offsets.reserve(count + 1);
  scan.offsets.push_back(0);
  std::uint64_t at = start;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (size - at < 8) {
      fail(ScanFault::cut, at);
      return scan;
    }
    const std::uint64_t length = load_u64(data + at);
    if (length > size - at - 8) {
      fail(ScanFault::cut, at);
      return scan;
    }
    if (length > left) {
      fail(ScanFault::too_large, at);
      return scan;
    }
    left -= length;
    at += 8 + length;
    scan.offsets.push_back(scan.offsets.back() + static_cast<std::int64_t>(length));
  }
  // The lengths are not read a second time: the file may have changed in between.
  scan.blob_size = static_cast<std::size_t>(scan.offsets.back());
  scan.blob = std::make_unique_for_overwrite<std::uint8_t[]>(scan.blob_size);
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto from = static_cast<std::size_t>(scan.offsets[i]);
    const auto length = static_cast<std::size_t>(scan.offsets[i + 1]) - from;
    std::memcpy(scan.blob.get() + from, data + start + 8 * (i + 1) + from, length);
  }
  scan.end = at;
  return scan;
}

} // namespace insula
