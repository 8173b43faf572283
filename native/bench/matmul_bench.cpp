// One weight matrix against M rows: what the kernels reach by themselves.
//   matmul_bench LEVEL LAYOUT M [N K [THREADS]]    prints GB/s of packed weights and int8 GOPS
// N = 512 stays in a core's caches: the kernel's own limit. 65536 is read from memory.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "insula_isa.h"
#include "../kernels/table.h"
#include "../runtime/memory.h"

using namespace insula;

int main(int argc, char **argv) {
  if (argc < 4)
    return std::printf("usage: matmul_bench LEVEL LAYOUT M [N K]\n"), 2;
  std::string error;
  const KernelTable *t = select_level(argv[1], &error);
  if (!t)
    return std::printf("%s\n", error.c_str()), 2;
  Layout l = Layout::Q4_K;
  for (int i = 0; i < kLayouts; ++i)
    if (!std::strcmp(kLayoutInfo[i].name, argv[2]))
      l = static_cast<Layout>(i);
  int M = std::atoi(argv[3]), N = argc > 4 ? std::atoi(argv[4]) : 32768;
  size_t K = argc > 5 ? static_cast<size_t>(std::atoi(argv[5])) : 2048, m = static_cast<size_t>(M);
  const int threads = argc > 6 ? std::atoi(argv[6]) : 2;
  size_t bytes = panel_bytes(l, K) * static_cast<size_t>(N / 16);
  Buffer weights(bytes + 8192); // in huge pages where a model's weights are
  uint8_t *w = weights.as<uint8_t>();
  // Scales neither infinite nor, where they are exponents (MXFP4), so small that sums are denormal.
  const size_t least = l == Layout::MXFP4 ? 0x44 : 0;
  for (size_t i = 0; i < bytes; ++i)
    w[i] = static_cast<uint8_t>((i * 2654435761u >> 13 & 0x3b) | least);
  std::vector<float> x(m * K, 0.01f), y(m * static_cast<size_t>(N));
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(i % 97) / 97 - 0.5f;
  const int R = tile_rows(*t, M);
  const size_t r = static_cast<size_t>(R), n = (m + r - 1) / r * r, qt = (K + 63) / 64 * 16 * r;
  std::vector<uint32_t> q(n / r * qt), q2(q), s(n * K / 32), s2(n * K / 256 * kSums256 + 1);
  std::vector<float> d(n * K / 32), d2(n * K / 256 + 1), f(n * K);
  for (size_t i = 0; i < m; ++i) {
    size_t tl = i / r, at = i % r;
    const int row = static_cast<int>(at);
    t->quantize_a32(&x[i * K], K, R, row, &q[tl * qt], &d[tl * K / 32 * r], &s[tl * K / 32 * r]);
    t->quantize_a256(&x[i * K], K, R, row, &q2[tl * qt], &d2[tl * K / 256 * r],
                     &s2[tl * K / 256 * kSums256 * r]);
    for (size_t k = 0; k < K; ++k)
      f[tl * K * r + k * r + at] = x[i * K + k];
  }
  ActSet a;
  a.a32 = {q.data(), d.data(), s.data(), nullptr, qt, K / 32 * r, K / 32 * r, 0};
  a.a256 = {q2.data(), d2.data(), s2.data(), nullptr, qt, K / 256 * r, K / 256 * kSums256 * r, 0};
  std::vector<uint32_t> q3(n * K / 2, 0x00400040); // I16: any numbers
  std::vector<float> d3(n * K / kI16Block, 0.01f);
  a.a16 = {q3.data(), d3.data(), nullptr, nullptr, K / 2 * r, K / kI16Block * r, 0, 0};
  a.f32 = {nullptr, nullptr, nullptr, f.data(), 0, 0, 0, K * r};
  a.R = R;
  const int panels = N / 16, each = panels / threads;
  std::vector<Buffer> scratch;
  for (int i = 0; i < threads; ++i)
    scratch.emplace_back(wide_scratch(M, K));
  const int passes = static_cast<int>((size_t{1} << 28) / bytes) / (M < 8 ? 1 : 8) + 1;
  auto part = [&](int thread) {
    const int first = thread * each, count = each;
    for (int pass = 0; pass < passes; ++pass)
      for (int p = first; p < first + count; p += 4) {
        MatJob j{};
        j.layout = l, j.w = w, j.first_panel = p, j.panels = 4, j.columns = N, j.K = K;
        j.acts = &a, j.rows = M, j.dst = y.data(), j.dst_stride = static_cast<size_t>(N);
        j.scratch = scratch[static_cast<size_t>(thread)].data();
        t->matmul(j);
      }
  };
  double best = 1e9;
  for (int round = 0; round < 7; ++round) {
    auto t0 = std::chrono::steady_clock::now();
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i)
      others.emplace_back(part, i);
    part(0);
    for (std::thread &o : others)
      o.join();
    double s1 = std::chrono::duration<double>(std::chrono::steady_clock::now() - t0).count();
    best = std::min(best, s1 / passes);
  }
  std::printf("%s %s M=%d: %.3f ms  %.1f GB/s  %.0f GOPS\n", t->name, argv[2], M, best * 1e3,
              static_cast<double>(bytes) / best / 1e9,
              2.0 * M * N * static_cast<double>(K) / best / 1e9);
}
