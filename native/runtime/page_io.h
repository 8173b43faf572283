// Pages of KV cache on their way out of memory and back: bytes in order, and their checksum.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace insula {

// A page lies in one run of bytes per slot.
struct Run {
  uint8_t *data;
  size_t bytes;
};

// 64 bits against damage, not against malice. Every step can be undone, so one changed word always
// shows; more of them go unseen with a chance of about 2^-64.
uint64_t checksum(const uint8_t *data, size_t bytes);

// The same of runs, as the two below give it.
uint64_t checksum(const std::vector<Run> &runs);

// Copies the runs to `out`, one after the other; returns their checksum.
uint64_t copy_out(const std::vector<Run> &runs, uint8_t *out);

// Fills the runs with what lies at `offset` of an open file. False if it ends too soon or cannot be
// read; what the runs hold then is anything.
bool read_in(int file, uint64_t offset, const std::vector<Run> &runs, uint64_t *sum);

} // namespace insula
