// What a step's threads work in: input rows in the forms that kernels take, and attention's states.
#pragma once
#include "executor.h"

namespace insula {

inline constexpr int kQueries = 32;      // query vectors of one attention task,
inline constexpr int kMostQueries = 128; // unless so many share one KV head

// One set of activation buffers: room for `rows` rows of up to k values, whatever the tile.
struct ActBuffers {
  Buffer q32, q256, d32, d256, s32, s256, f;
  ActSet set(int R, size_t k) const {
    const size_t r = static_cast<size_t>(R);
    ActSet a{};
    a.a32 = {q32.as<uint32_t>(), d32.as<float>(), s32.as<uint32_t>(), nullptr,
             k / 4 * r,          k / 32 * r,      k / 32 * r,         0};
    a.a256 = {q256.as<uint32_t>(), d256.as<float>(), s256.as<uint32_t>(),    nullptr,
              k / 4 * r,           k / 256 * r,      k / 256 * kSums256 * r, 0};
    a.f32 = {nullptr, nullptr, nullptr, f.as<float>(), 0, 0, 0, k * r};
    a.R = R;
    return a;
  }
};

struct Executor::Inputs : ActBuffers {
  Inputs(size_t rows, size_t k) {
    q32 = Buffer(rows * k), q256 = Buffer(rows * k), f = Buffer(rows * k * 4);
    d32 = Buffer(rows * k / 32 * 4), d256 = Buffer(rows * k / 256 * 4);
    s32 = Buffer(rows * k / 32 * 4), s256 = Buffer(rows * k / 256 * kSums256 * 4);
  }
};

struct Executor::Scratch {
  Inputs inputs;
  Buffer norm, scores, m, l, o, m2, l2, o2, wide;
  Scratch(size_t rows, size_t k) : inputs(rows, k) {}
};

} // namespace insula
