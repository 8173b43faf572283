// What a step's threads work in: input rows in the forms that kernels take, and attention's states.
#pragma once
#include "executor.h"

namespace insula {

inline constexpr int kQueries = 32;      // query vectors of one attention task,
inline constexpr int kMostQueries = 128; // unless so many share one KV head

// One set of activation buffers: room for `rows` rows of up to k values, whatever the tile.
struct ActBuffers {
  Buffer q32, q256, q16, d32, d256, d16, s32, s256, f;
  // Tiles of R rows that stand from row `at` on; a multiple of R rows belongs to them.
  ActSet set(int R, size_t k, size_t at = 0) const {
    const size_t r = static_cast<size_t>(R), b32 = k / 32, b256 = k / 256, s = b256 * kSums256;
    ActSet a{};
    a.a32 = {q32.as<uint32_t>() + at * (k / 4),
             d32.as<float>() + at * b32,
             s32.as<uint32_t>() + at * b32,
             nullptr,
             k / 4 * r,
             b32 * r,
             b32 * r,
             0};
    a.a256 = {q256.as<uint32_t>() + at * (k / 4),
              d256.as<float>() + at * b256,
              s256.as<uint32_t>() + at * s,
              nullptr,
              k / 4 * r,
              b256 * r,
              s * r,
              0};
    a.f32 = {nullptr, nullptr, nullptr, f.as<float>() + at * k, 0, 0, 0, k * r};
    a.a16 = {q16.as<uint32_t>() + at * (k / 2),
             d16.as<float>() + at * (k / kI16Block),
             nullptr,
             nullptr,
             k / 2 * r,
             k / kI16Block * r,
             0,
             0};
    a.R = R;
    return a;
  }
};

struct Executor::Inputs : ActBuffers {
  Inputs(size_t rows, size_t k) {
    q32 = Buffer(rows * k), q256 = Buffer(rows * k), f = Buffer(rows * k * 4);
    d32 = Buffer(rows * k / 32 * 4), d256 = Buffer(rows * k / 256 * 4);
    q16 = Buffer(rows * k * 2), d16 = Buffer(rows * k / kI16Block * 4);
    s32 = Buffer(rows * k / 32 * 4), s256 = Buffer(rows * k / 256 * kSums256 * 4);
  }
};

struct Executor::Scratch {
  Inputs inputs;
  Buffer norm, scores, m, l, o, m2, l2, o2, wide;
  Scratch(size_t rows, size_t k) : inputs(rows, k) {}
};

// Which rows of a step use which experts. A pair is a row and one of the experts it chose; an
// expert's pairs stand together, from a whole tile on, and their places are those of the inputs,
// of the gated rows and of the products.
struct Executor::Mixture {
  struct Group {
    int expert, first, count; // places first .. first + count)
  };
  std::vector<int> chosen;    // [row][used]: experts, the largest score first
  std::vector<float> weights; // [row][used]
  std::vector<int> place;     // [row][used]
  std::vector<int> pair;      // [place]: row * used + i
  std::vector<Group> groups;  // by expert
  std::vector<int> counts;    // [expert]
  std::unique_ptr<Inputs> inputs;
  Buffer gated, products; // [place][ff], [place][width]
  // Room for one op of a program whose largest row is k long; ops take turns.
  void fit(int rows, int used, int experts, size_t ff, size_t width, size_t k);

private:
  size_t inputs_ = 0;
};

} // namespace insula
