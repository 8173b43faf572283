// Formats and mappings without Python: what the cross-compiled builds can run.
#include "../quants/blocks.h"
#include "../quants/quants.h"
#include "../runtime/mapping.h"
#include "../runtime/mapping_strings.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <vector>

namespace {

int failures = 0;

void check(bool holds, const char *what, int line) {
  if (!holds) {
    std::printf("line %d: %s\n", line, what);
    ++failures;
  }
}

#define CHECK(condition) check(condition, #condition, __LINE__)

using namespace insula;
using namespace insula::quants;

// Deterministic values in about -3..3, near enough to normal.
std::vector<float> values(std::size_t n) {
  std::vector<float> x(n);
  std::uint64_t state = 1;
  for (float &value : x) {
    float sum = 0;
    for (int i = 0; i < 6; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<float>(state >> 40) / static_cast<float>(1 << 24) - 0.5f;
    }
    value = sum * 1.4f;
  }
  return x;
}

void halves_round_trip() {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = half_to_float(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) {
      CHECK((bits & 0x7fff) > 0x7c00);
      continue;
    }
    CHECK(float_to_half(value) == bits);
  }
  CHECK(float_to_half(65519.99f) == 0x7bff && float_to_half(65520.0f) == 0x7c00);
  CHECK(float_to_half(0x1p-25f) == 0 && float_to_half(std::nextafter(0x1p-25f, 1.0f)) == 1);
  CHECK(float_to_bfloat(1.00390625f) == 0x3f80); // a tie goes to even
}

void scales_round_trip() {
  std::uint8_t packed[12] = {};
  for (int g = 0; g < 8; ++g) {
    pack_scale_min(packed, g, static_cast<std::uint8_t>(63 - g), static_cast<std::uint8_t>(7 * g));
  }
  for (int g = 0; g < 8; ++g) {
    const ScaleMin found = unpack_scale_min(packed, g);
    CHECK(found.scale == 63 - g && found.min == 7 * g);
  }
}

void formats_keep_what_they_promise() {
  constexpr std::size_t rows = 7;
  constexpr std::size_t cols = 512;
  const std::vector<float> x = values(rows * cols);
  const struct {
    Type type;
    double loss; // of the standard deviation, root mean square
  } promises[] = {
      {Type::F32, 0},      {Type::F16, 3e-4},    {Type::BF16, 3e-3},   {Type::Q4_0, 0.09},
      {Type::Q4_1, 0.08},  {Type::Q5_0, 0.045},  {Type::Q5_1, 0.039},  {Type::Q8_0, 0.006},
      {Type::Q4_K, 0.075}, {Type::Q5_K, 0.038},  {Type::Q6_K, 0.019},  {Type::Q2_K, 0.3},
      {Type::Q3_K, 0.16},  {Type::IQ4_NL, 0.08}, {Type::IQ4_XS, 0.08}, {Type::MXFP4, 0.12}};
  for (const auto &promise : promises) {
    const Traits format = *traits(static_cast<std::int32_t>(promise.type));
    const std::size_t nbytes = x.size() / format.block_size * format.block_bytes;
    std::vector<std::uint8_t> one(nbytes);
    std::vector<std::uint8_t> three(nbytes);
    CHECK(quantize(format, x.data(), one.data(), rows, cols, nullptr, 1).fault == Fault::none);
    CHECK(quantize(format, x.data(), three.data(), rows, cols, nullptr, 3).fault == Fault::none);
    CHECK(one == three);
    std::vector<float> back(x.size());
    dequantize(format, one.data(), back.data(), x.size(), 2);
    double off = 0;
    double all = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      off += std::pow(static_cast<double>(back[i]) - static_cast<double>(x[i]), 2);
      all += std::pow(static_cast<double>(x[i]), 2);
    }
    check(std::sqrt(off / all) <= promise.loss, format.name, __LINE__);
  }
}

void faults_name_the_row() {
  std::vector<float> x = values(4 * 256);
  std::vector<std::uint8_t> out(4 * 256);
  const Traits format = *traits(static_cast<std::int32_t>(Type::Q4_K));
  x[2 * 256 + 9] = NAN;
  const QuantizeResult nan = quantize(format, x.data(), out.data(), 4, 256, nullptr, 2);
  CHECK(nan.fault == Fault::not_finite && nan.row == 2);
  x[2 * 256 + 9] = 1e30f;
  const QuantizeResult large = quantize(format, x.data(), out.data(), 4, 256, nullptr, 2);
  CHECK(large.fault == Fault::overflow && large.row == 2);
  CHECK(!traits(4) && !traits(-1) && !traits(16));
}

void strings_are_bounded() {
  const std::uint8_t data[] = {2, 0, 0, 0, 0, 0, 0, 0, 'h', 'i', 0, 0, 0, 0, 0, 0, 0, 0};
  const StringScan both = scan_strings(data, sizeof(data), 0, 2, 100);
  CHECK(both.fault == ScanFault::none && both.end == sizeof(data) && both.blob_size == 2);
  CHECK(both.offsets == (std::vector<std::int64_t>{0, 2, 2}) && both.blob[1] == 'i');
  CHECK(scan_strings(data, sizeof(data) - 1, 0, 2, 100).fault == ScanFault::cut);
  CHECK(scan_strings(data, sizeof(data), 0, ~0ull, ~0ull).fault == ScanFault::cut);
  CHECK(scan_strings(data, sizeof(data), ~0ull, 1, 100).fault == ScanFault::cut);
  CHECK(scan_strings(data, sizeof(data), 0, 2, 17).fault == ScanFault::too_large);
}

void mappings_survive_truncation() {
  const auto path = std::filesystem::temp_directory_path() / "insula_formats_test.bin";
  std::ofstream(path, std::ios::binary) << std::string(300'000, 'x');
  {
    FileMapping mapping(path);
    CHECK(mapping.size() == 300'000 && mapping.data()[299'999] == 'x' && !mapping.poisoned());
    mapping.drop(0, 300'000);
    CHECK(mapping.data()[100'000] == 'x');
#if !defined(_WIN32)
    std::filesystem::resize_file(path, 10);
    // volatile: the compiler may not remember the byte it has just read
    const volatile std::uint8_t *bytes = mapping.data();
    CHECK(bytes[299'999] == 0 && bytes[200'000] == 0 && bytes[0] == 'x');
    CHECK(mapping.poisoned());
#endif
    mapping.close();
    mapping.close();
    CHECK(mapping.size() == 0);
  }
  std::filesystem::remove(path);
  try {
    FileMapping missing(path);
    CHECK(!"a missing file was mapped");
  } catch (const std::system_error &error) {
    CHECK(error.code() == std::errc::no_such_file_or_directory);
  }
}

} // namespace

int main() {
  halves_round_trip();
  scales_round_trip();
  formats_keep_what_they_promise();
  faults_name_the_row();
  strings_are_bounded();
  mappings_survive_truncation();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
