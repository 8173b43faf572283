// What the four-bit codes of the formats with a codebook stand for. Source: ggml-common.h (MIT);
// MXFP4 is E2M1 of the OCP microscaling formats 1.0, doubled, which makes its values integers.
#pragma once

#include <cstdint>

namespace insula::quants {

constexpr std::int8_t kIQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
constexpr std::int8_t kMXFP4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

} // namespace insula::quants
