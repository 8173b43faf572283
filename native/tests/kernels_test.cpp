// Every level against scalar, bit by bit: all layouts, M = 1..33, odd N, tails; and against fp64.
//   kernels_test [LEVEL]    that level alone; 2 where the processor lacks it
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "insula_isa.h"
#include "../kernels/table.h"
#include "../quants/quants.h"

using namespace insula;

static int failures = 0;
#define CHECK(cond, ...)                                                                           \
  do {                                                                                             \
    if (!(cond)) {                                                                                 \
      ++failures;                                                                                  \
      std::printf("FAIL %s:%d ", __FILE__, __LINE__);                                              \
      std::printf(__VA_ARGS__);                                                                    \
      std::printf("\n");                                                                           \
    }                                                                                              \
  } while (0)

static std::mt19937 rng(7);

static std::vector<uint8_t> random_file(Layout l, int N, int K) {
  const LayoutInfo &li = info(l);
  size_t row = static_cast<size_t>(K / li.block * li.file_bytes);
  std::vector<uint8_t> out(row * static_cast<size_t>(N));
  for (auto &b : out)
    b = static_cast<uint8_t>(rng());
  auto half = [&](size_t at, float scale) {
    uint16_t h = float_to_half(scale * (static_cast<float>(rng() % 2000) / 1000.0f - 1.0f));
    std::memcpy(&out[at], &h, 2);
  };
  for (size_t at = 0; at < out.size(); at += static_cast<size_t>(li.file_bytes))
    switch (l) {
    case Layout::F32: {
      float f = static_cast<float>(static_cast<int>(rng() % 2001) - 1000) / 777.0f;
      std::memcpy(&out[at], &f, 4);
      break;
    }
    case Layout::F16:
      half(at, 1);
      break;
    case Layout::BF16: {
      float f = static_cast<float>(static_cast<int>(rng() % 2001) - 1000) / 777.0f;
      std::memcpy(&out[at], reinterpret_cast<uint8_t *>(&f) + 2, 2);
      break;
    }
    case Layout::I16: {
      for (size_t i = 0; i < kI16Block; ++i) {
        const int16_t q =
            static_cast<int16_t>(static_cast<int>(rng() % (2 * kI16Most + 1)) - kI16Most);
        std::memcpy(&out[at + 2 * i], &q, 2);
      }
      const float d = 1e-6f * static_cast<float>(1 + rng() % 500);
      std::memcpy(&out[at + 2 * kI16Block], &d, 4);
      break;
    }
    case Layout::Q4_1:
    case Layout::Q5_1:
      half(at, 0.1f);
      half(at + 2, 0.5f);
      break;
    case Layout::Q4_K:
    case Layout::Q5_K:
      half(at, 0.01f);
      half(at + 2, 0.05f);
      break;
    case Layout::Q6_K:
      half(at + 208, 0.01f);
      break;
    case Layout::Q2_K:
      half(at + 80, 0.05f);
      half(at + 82, 0.05f);
      break;
    case Layout::Q3_K:
      half(at + 108, 0.01f);
      break;
    case Layout::MXFP4: // up to 2^-120 and 2^120 it would drown the other blocks
      out[at] = static_cast<uint8_t>(120 + rng() % 8);
      break;
    default:
      half(at, 0.1f);
      break;
    }
  return out;
}

struct Packed {
  std::vector<uint8_t> bytes;
  Layout l;
  int N, K;
};
static Packed pack(Layout l, const std::vector<uint8_t> &f, int N, int K) {
  size_t row = f.size() / static_cast<size_t>(N), pb = panel_bytes(l, static_cast<size_t>(K));
  int panels = (N + 15) / 16;
  Packed p{std::vector<uint8_t>(pb * static_cast<size_t>(panels) + 8192), l, N, K};
  for (int i = 0; i < panels; ++i) {
    const uint8_t *rows[16] = {};
    for (int r = 0; r < 16 && i * 16 + r < N; ++r)
      rows[r] = &f[static_cast<size_t>(i * 16 + r) * row];
    pack_panel(l, rows, static_cast<size_t>(K), &p.bytes[static_cast<size_t>(i) * pb]);
  }
  return p;
}

// Activations in tiles of R rows.
struct Inputs {
  std::vector<uint32_t> q32, q256, q16, s32, s256;
  std::vector<float> d32, d256, d16, f;
  ActSet set;
};
static void quantize(const KernelTable *t, const float *x, int M, int K, int R, Inputs &b) {
  size_t k = static_cast<size_t>(K), r = static_cast<size_t>(R);
  size_t tiles = static_cast<size_t>((M + R - 1) / R), n = tiles * r, blocks = k / 32 + 1;
  const size_t qt = (k + 63) / 64 * 16 * r; // words of a tile
  b.q32.assign(tiles * qt, 0), b.q256 = b.q32;
  b.d32.assign(n * blocks, 0), b.d256 = b.d32;
  b.s32.assign(n * blocks, 0);
  size_t st = (k / 256 + 1) * kSums256;
  b.s256.assign(n * st, 0);
  b.f.assign(n * k, 0);
  const size_t blocks16 = k / kI16Block + 1;
  b.q16.assign(n * (k / 2), 0), b.d16.assign(n * blocks16, 0);
  for (int i = 0; i < M; ++i) {
    size_t tl = static_cast<size_t>(i / R), m = static_cast<size_t>(i % R);
    const float *row = x + static_cast<size_t>(i) * k;
    t->quantize_a32(row, k, R, static_cast<int>(m), &b.q32[tl * qt], &b.d32[tl * blocks * r],
                    &b.s32[tl * blocks * r]);
    t->quantize_a256(row, k, R, static_cast<int>(m), &b.q256[tl * qt], &b.d256[tl * blocks * r],
                     &b.s256[tl * st * r]);
    t->quantize_a16(row, k, R, static_cast<int>(m), &b.q16[tl * (k / 2) * r],
                    &b.d16[tl * blocks16 * r]);
    for (size_t j = 0; j < k; ++j)
      b.f[tl * k * r + j * r + m] = row[j];
  }
  b.set.a32 = {b.q32.data(), b.d32.data(), b.s32.data(), nullptr, qt, blocks * r, blocks * r, 0};
  b.set.a256 = {b.q256.data(), b.d256.data(), b.s256.data(), nullptr, qt, blocks * r, st * r, 0};
  b.set.a16 = {b.q16.data(), b.d16.data(), nullptr, nullptr, k / 2 * r, blocks16 * r, 0, 0};
  b.set.f32 = {nullptr, nullptr, nullptr, b.f.data(), 0, 0, 0, k * r};
  b.set.R = R;
}

static std::vector<float> product(const KernelTable *t, const Packed &p, const float *x, int M) {
  Inputs b;
  quantize(t, x, M, p.K, tile_rows(*t, M), b);
  std::vector<uint8_t> scratch(wide_scratch(M, static_cast<size_t>(p.K)) + 64);
  std::vector<float> y(static_cast<size_t>(M * p.N), 0.5f);
  MatJob j{};
  j.layout = p.l, j.w = p.bytes.data(), j.panels = (p.N + 15) / 16, j.columns = p.N;
  j.K = static_cast<size_t>(p.K), j.acts = &b.set, j.rows = M, j.dst = y.data();
  j.dst_stride = static_cast<size_t>(p.N);
  j.scratch = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64);
  t->matmul(j);
  return y;
}

static bool same(const std::vector<float> &a, const std::vector<float> &b) {
  return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * 4);
}

// quants has the formats of files, and I16 is in none.
static void whole_numbers(const uint8_t *s, float *out, size_t K) {
  for (size_t k = 0; k < K; ++k) {
    const uint8_t *block = s + k / kI16Block * 132;
    int16_t q;
    float d;
    std::memcpy(&q, block + k % kI16Block * 2, 2);
    std::memcpy(&d, block + kI16Block * 2, 4);
    out[k] = d * static_cast<float>(q);
  }
}

// A packed row decodes to what its file's bytes decode to.
static void packing() {
  for (int li = 0; li < kLayouts; ++li) {
    const Layout l = static_cast<Layout>(li);
    const int N = 19, K = 768;
    const std::vector<uint8_t> file = random_file(l, N, K);
    const Packed p = pack(l, file, N, K);
    const auto decode =
        l == Layout::I16 ? whole_numbers : quants::traits(info(l).ggml_type)->dequantize;
    const size_t row = file.size() / static_cast<size_t>(N), k = static_cast<size_t>(K);
    std::vector<float> want(k), got(k);
    for (size_t n = 0; n < static_cast<size_t>(N); ++n) {
      decode(&file[n * row], want.data(), k);
      unpack_row(l, &p.bytes[n / 16 * panel_bytes(l, k)], static_cast<int>(n % 16), k, got.data());
      CHECK(same(got, want), "%s row %zu is not the file's", info(l).name, n);
    }
  }
}

static void matmuls(const KernelTable *t, const KernelTable *ref) {
  uint64_t before = t->calls->load();
  for (int li = 0; li < kLayouts; ++li) {
    Layout l = static_cast<Layout>(li);
    const int block = info(l).block;
    int N = 37, K = block == 256 ? 768 : block == 64 ? 320 : block == 32 ? 352 : 83;
    Packed p = pack(l, random_file(l, N, K), N, K);
    const int M = 33;
    std::vector<float> x(static_cast<size_t>(M * K));
    for (auto &v : x)
      v = static_cast<float>(static_cast<int>(rng() % 2001) - 1000) / 313.0f;
    for (int i = 0; i < K; ++i)
      x[static_cast<size_t>(i)] = 0; // a row of zeros
    Inputs a, b;
    quantize(ref, x.data(), M, K, 3, a); // 3: no level has a form of its own for it
    quantize(t, x.data(), M, K, 3, b);
    CHECK(a.q32 == b.q32 && a.q256 == b.q256 && a.q16 == b.q16 && a.s32 == b.s32 &&
              a.s256 == b.s256 && same(a.d32, b.d32) && same(a.d256, b.d256) && same(a.d16, b.d16),
          "%s: activations differ from scalar", t->name);
    std::vector<float> want;
    for (int m = 0; m < M; ++m) {
      std::vector<float> one = product(ref, p, &x[static_cast<size_t>(m * K)], 1);
      want.insert(want.end(), one.begin(), one.end());
    }
    for (int m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33}) {
      std::vector<float> got = product(t, p, x.data(), m);
      std::vector<float> head(want.begin(), want.begin() + m * N);
      CHECK(same(got, head), "%s %s M=%d differs from scalar, row by row", t->name, info(l).name,
            m);
    }
    // fp64 over the dequantized weights: int8 activations cost at most 5e-4 NMSE, int16 1e-7.
    double err = 0, ref2 = 0;
    std::vector<float> w(static_cast<size_t>(K));
    for (int n = 0; n < N; ++n) {
      unpack_row(l, &p.bytes[static_cast<size_t>(n / 16) * panel_bytes(l, static_cast<size_t>(K))],
                 n % 16, static_cast<size_t>(K), w.data());
      for (int m = 0; m < M; ++m) {
        double s = 0;
        for (int k = 0; k < K; ++k)
          s += static_cast<double>(w[static_cast<size_t>(k)]) * x[static_cast<size_t>(m * K + k)];
        double e = s - want[static_cast<size_t>(m * N + n)];
        err += e * e, ref2 += s * s;
      }
    }
    CHECK(err / ref2 < (l == Layout::I16 ? 1e-7 : 5e-4), "%s %s NMSE %g", t->name, info(l).name,
          err / ref2);
  }
  CHECK(t->calls->load() > before, "%s did not count its calls", t->name);
}

static void rows(const KernelTable *t, const KernelTable *ref) {
  for (size_t n : {1ul, 7ul, 16ul, 24ul, 64ul, 100ul, 576ul}) {
    std::vector<float> x(n), w(n), b(n), y(n), z(n);
    for (size_t i = 0; i < n; ++i) {
      x[i] = static_cast<float>(static_cast<int>(rng() % 2001) - 1000) / 50.0f;
      w[i] = static_cast<float>(rng() % 1000) / 500.0f, b[i] = w[i] - 1;
    }
    t->rms_norm(x.data(), w.data(), n, 1e-5f, y.data());
    ref->rms_norm(x.data(), w.data(), n, 1e-5f, z.data());
    CHECK(same(y, z), "%s rms_norm n=%zu", t->name, n);
    t->layer_norm(x.data(), w.data(), b.data(), n, 1e-5f, y.data());
    ref->layer_norm(x.data(), w.data(), b.data(), n, 1e-5f, z.data());
    CHECK(same(y, z), "%s layer_norm n=%zu", t->name, n);
    for (int act : {0, 1}) {
      t->glu(x.data(), w.data(), n, act, y.data());
      ref->glu(x.data(), w.data(), n, act, z.data());
      CHECK(same(y, z), "%s glu act=%d n=%zu", t->name, act, n);
      for (size_t i = 0; i < n; ++i) {
        double v = x[i],
               s = act == 0
                       ? v / (1 + std::exp(-v))
                       : 0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
        CHECK(std::fabs(s * w[i] - y[i]) <= 2e-6 * (1 + std::fabs(s * w[i])), "%s act %d at %g",
              t->name, act, v);
      }
    }
    y = x, z = x;
    t->softcap(y.data(), n, 30.0f);
    ref->softcap(z.data(), n, 30.0f);
    CHECK(same(y, z), "%s softcap", t->name);
    for (size_t i = 0; i < n; ++i)
      CHECK(std::fabs(30 * std::tanh(static_cast<double>(x[i]) / 30) - y[i]) < 1e-5,
            "%s softcap value", t->name);
  }
}

static void halves() {
  for (uint32_t h = 0; h < 65536; ++h) {
    float f = half_to_float(static_cast<uint16_t>(h));
    if (f != f)
      continue;
    CHECK(float_to_half(f) == h, "half %04x does not come back", h);
  }
}

#ifdef INSULA_HAVE_TILES_EMULATED
namespace insula {
const KernelTable *table_amx_emulated();
}
#endif

static void tiles(const KernelTable *t) {
  const uint64_t before = t->tiles->load();
  std::vector<float> x(64 * 512, 0.5f);
  Packed p = pack(Layout::Q4_K, random_file(Layout::Q4_K, 32, 512), 32, 512);
  product(t, p, x.data(), 4);
  CHECK(t->tiles->load() == before, "four rows went through tiles");
  product(t, p, x.data(), 17); // 2 panels x 2 tiles of rows x 2 blocks x (4 tiles of k, 2 planes)
  CHECK(t->tiles->load() - before == 64, "%d tile products", int(t->tiles->load() - before));
  CHECK(t->peak(1) == 4 * 16 * 16 * 64, "the peak is not of tiles");
}

// From four rows of a tile on the level takes two at once.
static void pairs(const KernelTable *t) {
  const Packed p = pack(Layout::Q4_K, random_file(Layout::Q4_K, 32, 512), 32, 512);
  const std::vector<float> x(19 * 512, 0.5f);
  auto counted = [&](int rows) {
    const uint64_t before = t->tiles->load();
    product(t, p, x.data(), rows);
    return t->tiles->load() - before;
  };
  CHECK(counted(1) == 0 && counted(3) == 0, "few rows went in pairs");
  CHECK(counted(4) == 2 && counted(8) == 2 && counted(19) == 4, "%d panels in pairs, not 2",
        int(counted(4))); // two panels, of each tile with enough rows
}

// What the level computed was computed by its own code.
static void counters(const Level &l, const std::vector<uint64_t> &before) {
  for (size_t i = 0; i < levels().size(); ++i) {
    const Level &other = levels()[i];
    const bool rose = other.table->calls->load() > before[i];
    const bool may = other.table == l.table || other.table == table_scalar();
    CHECK(other.table == l.table ? rose : may || !rose, "level %s ran the code of %s", l.name,
          other.name);
  }
}

int main(int argc, char **argv) {
  std::string error;
  std::printf("default level: %s\n", select_level(nullptr, &error)->name);
  if (argc > 1 && !select_level(argv[1], &error))
    return std::printf("%s\n", error.c_str()), 2;
  halves();
  packing();
  const KernelTable *ref = table_scalar();
  int tested = 0;
  for (const Level &l : levels()) {
    if (!l.available) {
      std::printf("level %s: not on this processor\n", l.name);
      continue;
    }
    if (argc > 1 && std::strcmp(l.name, argv[1]))
      continue;
    std::vector<uint64_t> before;
    for (const Level &other : levels())
      before.push_back(other.table->calls->load());
    matmuls(l.table, ref);
    counters(l, before);
    if (!std::strcmp(l.name, "neon-i8mm"))
      pairs(l.table);
    rows(l.table, ref);
    CHECK(l.table->peak(3) == 3 * l.table->peak(1), "%s: steps of no equal size", l.name);
    std::printf("level %s: tested\n", l.name);
    ++tested;
  }
#ifdef INSULA_HAVE_TILES_EMULATED
  if (argc == 1 && select_level("avx512", &error)) {
    const KernelTable *t = table_amx_emulated();
    matmuls(t, ref);
    tiles(t);
    std::printf("level amx, with emulated tiles: tested\n");
    ++tested;
  }
  if (const KernelTable *t = select_level("amx", &error))
    tiles(t);
#endif
  std::printf("%d passed, %d failed\n", tested, failures);
  return failures != 0;
}
