// Fuzz target: what native code does with a GGUF file's bytes.
//
// The scan of string arrays at any place with any count and budget, and the decoding of whatever
// bytes a tensor may have, in every format. Build with clang:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all
//     -Inative native/fuzz/gguf_fuzz.cpp native/quants/*.cpp native/runtime/mapping_strings.cpp
// Checked besides the sanitizers: offsets ascend, strings lie where the lengths say, the budget
// holds, decoding does not depend on threads, and what was decoded encodes again or is refused.
#include "../quants/quants.h"
#include "../runtime/mapping_strings.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace {

void require(bool holds) {
  if (!holds) {
    std::abort();
  }
}

// Exactly as long as its content, so that the sanitizer sees the first byte read past the end.
std::unique_ptr<std::uint8_t[]> tight_copy(const std::uint8_t *data, std::size_t size) {
  auto copy = std::make_unique<std::uint8_t[]>(size);
  if (size > 0) {
    std::memcpy(copy.get(), data, size);
  }
  return copy;
}

std::uint64_t load_u64(const std::uint8_t *at) {
  std::uint64_t value = 0;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

void scan(const std::uint8_t *data, std::size_t size, std::uint64_t start, std::uint64_t count,
          std::uint64_t budget) {
  const insula::StringScan found = insula::scan_strings(data, size, start, count, budget);
  if (found.fault != insula::ScanFault::none) {
    require(found.fault_at <= size && found.blob_size == 0 && found.offsets.empty());
    return;
  }
  require(found.offsets.size() == count + 1 && found.offsets.front() == 0);
  require(found.offsets.back() == static_cast<std::int64_t>(found.blob_size));
  require(found.end == start + 8 * count + found.blob_size && found.end <= size);
  require(found.blob_size + 8 * count <= budget);
  std::uint64_t at = start;
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto length = static_cast<std::uint64_t>(found.offsets[i + 1] - found.offsets[i]);
    require(length == load_u64(data + at));
    require(std::memcmp(found.blob.get() + found.offsets[i], data + at + 8, length) == 0);
    at += 8 + length;
  }
}

void decode(std::int32_t type_id, const std::uint8_t *data, std::size_t size) {
  const auto format = insula::quants::traits(type_id);
  if (!format) {
    return;
  }
  const std::size_t blocks = size / format->block_bytes;
  const std::size_t n = blocks * format->block_size;
  const auto raw = tight_copy(data, blocks * format->block_bytes);
  std::vector<float> one(n);
  std::vector<float> two(n);
  insula::quants::dequantize(*format, raw.get(), one.data(), n, 1);
  insula::quants::dequantize(*format, raw.get(), two.data(), n, 2);
  require(n == 0 || std::memcmp(one.data(), two.data(), n * sizeof(float)) == 0);
  if (format->quantize == nullptr || n == 0) {
    return;
  }
  std::vector<float> weights(n);
  for (std::size_t i = 0; i < n; ++i) {
    weights[i] = static_cast<float>(data[i % size]);
  }
  std::vector<std::uint8_t> encoded(raw.get(), raw.get() + blocks * format->block_bytes);
  insula::quants::quantize(*format, one.data(), encoded.data(), 1, n, nullptr, 1);
  insula::quants::quantize(*format, one.data(), encoded.data(), 1, n, weights.data(), 1);
}

// Floats of any kind into every quantizer.
void encode(std::int32_t type_id, const std::uint8_t *data, std::size_t size) {
  const auto format = insula::quants::traits(type_id);
  if (!format || format->quantize == nullptr) {
    return;
  }
  const std::size_t blocks = size / sizeof(float) / format->block_size;
  const std::size_t n = blocks * format->block_size;
  std::vector<float> x(n);
  if (n > 0) {
    std::memcpy(x.data(), data, n * sizeof(float));
  }
  std::vector<std::uint8_t> encoded(blocks * format->block_bytes);
  insula::quants::quantize(*format, x.data(), encoded.data(), 1, n, nullptr, 1);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  constexpr std::size_t header = 1 + 3 * 8;
  if (size < header) {
    return 0;
  }
  const std::uint8_t mode = data[0];
  const std::uint64_t a = load_u64(data + 1);
  const std::uint64_t b = load_u64(data + 9);
  const std::uint64_t c = load_u64(data + 17);
  const std::uint8_t *body = data + header;
  const std::size_t length = size - header;
  if (mode % 3 == 0) {
    const auto bytes = tight_copy(body, length);
    scan(bytes.get(), length, a, b, c);
    scan(bytes.get(), length, a % (length + 1), b % (length + 1), c % 100'000);
  } else if (mode % 3 == 1) {
    decode(static_cast<std::int32_t>(a % 41), body, length);
  } else {
    encode(static_cast<std::int32_t>(a % 41), body, length);
  }
  return 0;
}
