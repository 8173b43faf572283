#include "page_io.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <system_error>

#include "mapping.h"

#if defined(_WIN32)
#include <io.h>
#include <stdio.h>
#endif

namespace insula {
namespace {

constexpr uint64_t kOdd = 0x9E3779B185EBCA87ull; // a product with an odd number can be undone

inline uint64_t mix(uint64_t h, uint64_t x) { return std::rotl(h ^ x, 29) * kOdd; }

// The checksum of the source's bytes, which go to `out` on the way if there is one: one pass.
template <bool kCopy> uint64_t pass(const uint8_t *data, size_t bytes, uint8_t *out) {
  uint64_t lanes[8]; // a product takes several cycles: eight of them are under way at once
  for (uint64_t i = 0; i < 8; ++i)
    lanes[i] = kOdd * (i + 1);
  auto block = [&lanes](const uint8_t *p, [[maybe_unused]] uint8_t *to) {
    for (int i = 0; i < 8; ++i) {
      uint64_t x;
      std::memcpy(&x, p + 8 * i, 8);
      if constexpr (kCopy)
        std::memcpy(to + 8 * i, &x, 8);
      lanes[i] = mix(lanes[i], x);
    }
  };
  size_t at = 0;
  for (; at + 64 <= bytes; at += 64)
    block(data + at, kCopy ? out + at : nullptr);
  if (at < bytes) {
    uint8_t last[64] = {}, copy[64];
    std::memcpy(last, data + at, bytes - at);
    block(last, copy);
    if constexpr (kCopy)
      std::memcpy(out + at, last, bytes - at);
  }
  uint64_t sum = bytes;
  for (uint64_t lane : lanes)
    sum = mix(sum, lane);
  return sum ^ (sum >> 32);
}

} // namespace

uint64_t checksum(const uint8_t *data, size_t bytes) { return pass<false>(data, bytes, nullptr); }

uint64_t checksum(const std::vector<Run> &runs) {
  uint64_t sum = 0;
  for (const Run &r : runs)
    sum = mix(sum, checksum(r.data, r.bytes));
  return sum;
}

uint64_t copy_out(const std::vector<Run> &runs, uint8_t *out) {
  uint64_t sum = 0;
  for (const Run &r : runs) {
    sum = mix(sum, pass<true>(r.data, r.bytes, out));
    out += r.bytes;
  }
  return sum;
}

#if defined(_WIN32)
bool read_in(int file, uint64_t offset, const std::vector<Run> &runs, uint64_t *sum) {
  *sum = 0;
  if (_lseeki64(file, static_cast<long long>(offset), SEEK_SET) < 0)
    return false;
  for (const Run &r : runs) {
    for (size_t done = 0; done < r.bytes;) {
      const int n = _read(file, r.data + done,
                          static_cast<unsigned>(std::min<size_t>(r.bytes - done, 1 << 30)));
      if (n <= 0)
        return false;
      done += static_cast<size_t>(n);
    }
    *sum = mix(*sum, checksum(r.data, r.bytes));
  }
  return true;
}
#else
// Mapped, because copying from there is more than twice as fast as reading, and sums on the way.
bool read_in(int file, uint64_t offset, const std::vector<Run> &runs, uint64_t *sum) {
  *sum = 0;
  try {
    const FileMapping mapping(file);
    size_t at = static_cast<size_t>(offset);
    for (const Run &r : runs) {
      if (mapping.size() < at || mapping.size() - at < r.bytes)
        return false;
      *sum = mix(*sum, pass<true>(mapping.data() + at, r.bytes, r.data));
      at += r.bytes;
    }
    return !mapping.poisoned();
  } catch (const std::system_error &) {
    return false;
  }
}
#endif

} // namespace insula
