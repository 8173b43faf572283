// The packed weight layouts: 16 output rows ("a panel") interleaved, K in groups of 4 bytes.
//
// One accumulator lane is one output row, so that no horizontal sum is needed and the same bytes
// serve one activation row (GEMV), a few rows and tiles. A panel holds its quants block by block,
// each vector of 64 bytes being 4 consecutive k of the 16 rows; where the per-block scales would
// break 64-byte alignment they follow the panel's quants as a stream of their own.
//
//   v*64 + r*4 + i   low nibble: k = 4v+i, high nibble: k = S/2+4v+i   (S: sub-block length)
//   fifth bits       byte r*4+i, bit g: bit 4 of k = 4g+i               (32 k at a time)
//   sixth bits       byte r*4+i, bits 2g,2g+1: g = 0..3 for (v0 low, v0 high, v1 low, v1 high)
//   two bits         byte r*4+i, bits 2g,2g+1: k = 4g+i (16 k at a time)
//   third bits       as the fifth ones: two sub-blocks of 16 share a vector
//   I16              v*64 + r*4: k = 2v, 2v+1 as int16
//
// Formats with a codebook keep their four-bit codes; the kernels look the values up in registers.
#pragma once
#include <cstddef>
#include <cstdint>

namespace insula {

enum class Layout : uint8_t {
  F32,
  F16,
  BF16,
  Q4_0,
  Q4_1,
  Q5_0,
  Q5_1,
  Q8_0,
  IQ4_NL,
  MXFP4,
  Q2_K,
  Q3_K,
  Q4_K,
  Q5_K,
  Q6_K,
  IQ4_XS,
  I16
};
inline constexpr int kLayouts = 17;
inline constexpr int kPanel = 16;

enum class ActForm : uint8_t { F32, A32, A256, A16 };

struct LayoutInfo {
  const char *name;
  int ggml_type;   // the id in GGUF files; I16 is in none
  int block;       // k per block
  int file_bytes;  // bytes of one block of one row in a file
  int main_bytes;  // packed bytes of one block of a panel, quants and what is interleaved with them
  int scale_bytes; // packed bytes of one block of a panel in the scale stream, 0 if none
  ActForm act;
};

// Float weights as whole numbers of at most 4095 in blocks of 64 that share a float32 scale, which
// follows them. Against activations of at most 8191 a block's sum fits an int32, just.
inline constexpr int kI16Type = 0x10000, kI16Most = 4095, kA16Most = 8191, kI16Block = 64;
static_assert(int64_t{kI16Most} * kA16Most * kI16Block <= INT32_MAX);

constexpr LayoutInfo kLayoutInfo[kLayouts] = {
    {"F32", 0, 1, 4, 64, 0, ActForm::F32},
    {"F16", 1, 1, 2, 32, 0, ActForm::F32},
    {"BF16", 30, 1, 2, 32, 0, ActForm::F32},
    {"Q4_0", 2, 32, 18, 256, 32, ActForm::A32},
    {"Q4_1", 3, 32, 20, 320, 0, ActForm::A32},
    {"Q5_0", 6, 32, 22, 320, 32, ActForm::A32},
    {"Q5_1", 7, 32, 24, 384, 0, ActForm::A32},
    {"Q8_0", 8, 32, 34, 512, 32, ActForm::A32},
    {"IQ4_NL", 20, 32, 18, 256, 32, ActForm::A32},
    {"MXFP4", 39, 32, 17, 256, 16, ActForm::A32},
    {"Q2_K", 10, 256, 84, 1344, 0, ActForm::A256},
    {"Q3_K", 11, 256, 110, 1792, 32, ActForm::A256},
    {"Q4_K", 12, 256, 144, 2368, 0, ActForm::A256},
    {"Q5_K", 13, 256, 176, 2880, 0, ActForm::A256},
    {"Q6_K", 14, 256, 210, 3328, 32, ActForm::A256},
    {"IQ4_XS", 23, 256, 136, 2176, 32, ActForm::A256},
    {"I16", kI16Type, 64, 132, 2048, 64, ActForm::A16},
};

inline const LayoutInfo &info(Layout l) { return kLayoutInfo[static_cast<int>(l)]; }

// Bytes of one packed panel of 16 rows of K elements, a multiple of 64.
inline size_t panel_bytes(Layout l, size_t K) {
  const LayoutInfo &i = info(l);
  size_t blocks = K / static_cast<size_t>(i.block);
  size_t n = blocks * static_cast<size_t>(i.main_bytes + i.scale_bytes);
  return (n + 63) / 64 * 64;
}

// The layout for a GGUF type id; false where there is none.
bool layout_of(int ggml_type, Layout *out);

// Packs up to 16 rows (the others become zero) of K elements from file order.
// rows[r] points to the row's first block or is null.
void pack_panel(Layout l, const uint8_t *const rows[kPanel], size_t K, uint8_t *panel);

// Dequantizes one row of a packed panel: K float32 values. r in 0..15.
void unpack_row(Layout l, const uint8_t *panel, int r, size_t K, float *out);

float half_to_float(uint16_t h);
uint16_t float_to_half(float f);

} // namespace insula
