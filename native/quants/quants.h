// Quantization formats: blocks to float32 and back.
//
// Owns: decoding and encoding of whole rows. Refuses: type ids it does not know (std::nullopt from
// `traits`), rows that do not divide into blocks, values that a format cannot hold.
// Invariants: decoding is exact float32 arithmetic in a fixed order (bitwise equal to
// ops/reference_quants.py); encoding of a row depends on that row (and the weights) alone, so the
// number of threads changes nothing. Nothing outside the given ranges is read or written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace insula::quants {

// GGUF's ids, for the types that are decoded here.
enum class Type : std::int32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  IQ4_NL = 20,
  IQ4_XS = 23,
  BF16 = 30,
  MXFP4 = 39,
};

struct Traits {
  Type type;
  const char *name;
  std::size_t block_size; // elements
  std::size_t block_bytes;
  // blocks -> n floats, n a multiple of block_size
  void (*dequantize)(const std::uint8_t *src, float *dst, std::size_t n);
  // n finite floats -> blocks, false if a scale overflowed; importance: null or n non-negative
  // weights.
  bool (*quantize)(const float *src, std::uint8_t *dst, std::size_t n, const float *importance);
};

std::optional<Traits> traits(std::int32_t type_id);

// Decodes n elements with up to `threads` threads.
void dequantize(const Traits &format, const std::uint8_t *src, float *dst, std::size_t n,
                unsigned threads);

enum class Fault { none, not_finite, overflow };

struct QuantizeResult {
  Fault fault = Fault::none;
  std::size_t row = 0; // the first row at fault
};

// Encodes rows x cols floats. importance: null or cols weights, the same for every row.
QuantizeResult quantize(const Traits &format, const float *src, std::uint8_t *dst, std::size_t rows,
                        std::size_t cols, const float *importance, unsigned threads);

// One row of each format; see Traits.
void dequantize_f32(const std::uint8_t *, float *, std::size_t);
void dequantize_f16(const std::uint8_t *, float *, std::size_t);
void dequantize_bf16(const std::uint8_t *, float *, std::size_t);
void dequantize_q4_0(const std::uint8_t *, float *, std::size_t);
void dequantize_q4_1(const std::uint8_t *, float *, std::size_t);
void dequantize_q5_0(const std::uint8_t *, float *, std::size_t);
void dequantize_q5_1(const std::uint8_t *, float *, std::size_t);
void dequantize_q8_0(const std::uint8_t *, float *, std::size_t);
void dequantize_q2_k(const std::uint8_t *, float *, std::size_t);
void dequantize_q3_k(const std::uint8_t *, float *, std::size_t);
void dequantize_q4_k(const std::uint8_t *, float *, std::size_t);
void dequantize_q5_k(const std::uint8_t *, float *, std::size_t);
void dequantize_q6_k(const std::uint8_t *, float *, std::size_t);
void dequantize_iq4_nl(const std::uint8_t *, float *, std::size_t);
void dequantize_iq4_xs(const std::uint8_t *, float *, std::size_t);
void dequantize_mxfp4(const std::uint8_t *, float *, std::size_t);

bool quantize_f32(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_f16(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_bf16(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_q4_0(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_q4_1(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_q5_0(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_q5_1(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_q8_0(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_q2_k(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_q3_k(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_q4_k(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_q5_k(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_q6_k(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_iq4_nl(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_iq4_xs(const float *, std::uint8_t *, std::size_t, const float *);
bool quantize_mxfp4(const float *, std::uint8_t *, std::size_t, const float *);

} // namespace insula::quants
