#include "page_io.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#if defined(_WIN32)
#include <io.h>
#include <stdio.h>
#else
#include <unistd.h>
#endif

namespace insula {
namespace {

constexpr uint64_t kOdd = 0x9E3779B185EBCA87ull; // a product with an odd number can be undone

inline uint64_t mix(uint64_t h, uint64_t x) { return std::rotl(h ^ x, 29) * kOdd; }

// Up to `bytes`; 0 at the end of the file, -1 if it cannot be read.
long long read_some(int file, uint64_t offset, uint8_t *out, size_t bytes) {
  bytes = std::min<size_t>(bytes, 1 << 30);
#if defined(_WIN32)
  if (_lseeki64(file, static_cast<long long>(offset), SEEK_SET) < 0)
    return -1;
  return _read(file, out, static_cast<unsigned>(bytes));
#else
  ssize_t n;
  do
    n = pread(file, out, bytes, static_cast<off_t>(offset));
  while (n < 0 && errno == EINTR);
  return n;
#endif
}

} // namespace

uint64_t checksum(const uint8_t *data, size_t bytes) {
  uint64_t lanes[8]; // a product takes several cycles: eight of them are under way at once
  for (uint64_t i = 0; i < 8; ++i)
    lanes[i] = kOdd * (i + 1);
  auto block = [&lanes](const uint8_t *p) {
    for (int i = 0; i < 8; ++i) {
      uint64_t x;
      std::memcpy(&x, p + 8 * i, 8);
      lanes[i] = mix(lanes[i], x);
    }
  };
  size_t left = bytes;
  for (; left >= 64; data += 64, left -= 64)
    block(data);
  if (left > 0) {
    uint8_t last[64] = {};
    std::memcpy(last, data, left);
    block(last);
  }
  uint64_t sum = bytes;
  for (uint64_t lane : lanes)
    sum = mix(sum, lane);
  return sum ^ (sum >> 32);
}

// Each run is summed right after it was written, while it is in the cache.
uint64_t copy_out(const std::vector<Run> &runs, uint8_t *out) {
  uint64_t sum = 0;
  for (const Run &r : runs) {
    std::memcpy(out, r.data, r.bytes);
    sum = mix(sum, checksum(out, r.bytes));
    out += r.bytes;
  }
  return sum;
}

bool read_in(int file, uint64_t offset, const std::vector<Run> &runs, uint64_t *sum) {
  *sum = 0;
  for (const Run &r : runs) {
    for (size_t done = 0; done < r.bytes;) {
      const long long n = read_some(file, offset, r.data + done, r.bytes - done);
      if (n <= 0)
        return false;
      done += static_cast<size_t>(n);
      offset += static_cast<uint64_t>(n);
    }
    *sum = mix(*sum, checksum(r.data, r.bytes));
  }
  return true;
}

} // namespace insula
