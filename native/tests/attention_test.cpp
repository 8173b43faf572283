// Attention at every level against scalar, bit by bit, and against fp64: types of pages, head
// sizes, numbers of queries, lengths, windows; what a page holds beside the positions that are
// seen; and for int8 on tiles, how many products there were.
//   attention_test [LEVEL]    that level alone; 2 where the processor lacks it
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "insula_isa.h"
#include "../kernels/table.h"

using namespace insula;

#ifdef INSULA_HAVE_TILES_EMULATED
namespace insula {
const KernelTable *table_amx_emulated();
}
#endif

namespace {

int failures = 0, checked = 0;
#define CHECK(cond, ...)                                                                           \
  do {                                                                                             \
    ++checked;                                                                                     \
    if (!(cond)) {                                                                                 \
      ++failures;                                                                                  \
      std::printf("FAIL %s:%d ", __FILE__, __LINE__);                                              \
      std::printf(__VA_ARGS__);                                                                    \
      std::printf("\n");                                                                           \
    }                                                                                              \
  } while (0)

std::mt19937 rng(7);

size_t at(int i) { return static_cast<size_t>(i); }

std::vector<float> random(int n, float most) {
  std::vector<float> out(at(n));
  for (float &f : out)
    f = most * (static_cast<float>(rng() % 2001) / 1000.0f - 1.0f);
  return out;
}

bool same(const std::vector<float> &a, const std::vector<float> &b) {
  return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * 4);
}

// One KV head's keys and values, and the queries that look at them: query i sees the positions
// before end[i], from begin[i] on.
struct Scene {
  KVType kv;
  int hd, total, n;
  float softcap;
  std::vector<float> k, v, q;
  std::vector<int> begin, end;

  Scene(KVType type, int head_dim, int positions, int queries, int window, float cap)
      : kv(type), hd(head_dim), total(positions), n(queries), softcap(cap) {
    k = random(total * hd, 2), v = random(total * hd, 2), q = random(n * hd, 2);
    for (int i = 0; i < n; ++i) {
      end.push_back(std::max(1, total - i));
      begin.push_back(window ? std::max(0, end.back() - window) : 0);
    }
  }
  size_t page_bytes() const { return kv_page_head_bytes(kv, hd); }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(hd)); }

  // What stands where no position has been stored is anything.
  std::vector<uint8_t> pages(const KernelTable *t, int rest) const {
    std::vector<uint8_t> out(at((total + kPageTokens - 1) / kPageTokens) * page_bytes());
    const std::vector<float> other = random(hd, 40);
    for (int i = 0; i < static_cast<int>(out.size() / page_bytes()) * kPageTokens; ++i) {
      uint8_t *page = &out[at(i / kPageTokens) * page_bytes()];
      if (i < total)
        t->store_kv(&k[at(i * hd)], &v[at(i * hd)], hd, i % kPageTokens, kv, page);
      else if (rest)
        t->store_kv(other.data(), other.data(), hd, i % kPageTokens, kv, page);
    }
    return out;
  }

  // Queries first..first+count-1, as one task for each chunk.
  std::vector<float> run(const KernelTable *t, const std::vector<uint8_t> &mem, int first,
                         int count) const {
    const int hp = pad16(hd);
    std::vector<float> m(at(count), -INFINITY), l(at(count)), o(at(count * hp)), m2(m), l2(l),
        o2(o), scores(at(count * kAttnChunk)), out(at(count * hd));
    std::vector<const float *> queries;
    for (int i = first; i < first + count; ++i)
      queries.push_back(&q[at(i * hd)]);
    for (int c0 = 0; c0 < total; c0 += kAttnChunk) {
      const int len = std::min(kAttnChunk, total - c0);
      std::vector<const uint8_t *> ps;
      for (int i = 0; i < len; i += kPageTokens)
        ps.push_back(&mem[at((c0 + i) / kPageTokens) * page_bytes()]);
      std::vector<int> lo, hi;
      for (int i = first; i < first + count; ++i) {
        lo.push_back(std::clamp(begin[at(i)] - c0, 0, len));
        hi.push_back(std::clamp(end[at(i)] - c0, 0, len));
      }
      AttnChunk c{};
      c.q = queries.data(), c.n = count, c.head_dim = hd;
      c.pages = ps.data(), c.positions = len, c.lo = lo.data(), c.hi = hi.data();
      c.scale = scale(), c.softcap = softcap, c.kv = kv;
      c.scores = scores.data(), c.m = m2.data(), c.l = l2.data(), c.o = o2.data();
      t->attention(c);
      for (int i = 0; i < count; ++i)
        t->attn_merge(&m[at(i)], &l[at(i)], &o[at(i * hp)], &m2[at(i)], &l2[at(i)], &o2[at(i * hp)],
                      hd);
    }
    for (int i = 0; i < count; ++i)
      t->attn_finish(&l[at(i)], &o[at(i * hp)], hd, &out[at(i * hd)]);
    return out;
  }

  // What int8 pages hold, as numbers: table.h has the layout.
  void unpack(const std::vector<uint8_t> &mem, std::vector<float> &keys,
              std::vector<float> &values) const {
    const size_t words = key_bytes_i8(hd) / 4, blocks = kv_blocks(hd);
    keys.clear(), values.clear();
    for (int i = 0; i < total; ++i)
      for (size_t d = 0; d < at(hd); ++d) {
        const uint8_t *page = &mem[at(i / kPageTokens) * page_bytes()];
        const uint8_t *vp = page + kPageTokens * words * 4, *sp = vp + kPageTokens * pad16(hd);
        const size_t p = at(i % kPageTokens), scale = (p / 16 * blocks + d / 32) * 16 + p % 16;
        auto number = [&](uint8_t byte, size_t which) {
          uint16_t h;
          std::memcpy(&h, sp + (which * kPageTokens * blocks + scale) * 2, 2);
          return static_cast<float>(static_cast<int8_t>(byte)) * half_to_float(h);
        };
        keys.push_back(number(page[((p / 16 * words + d / 4) * 16 + p % 16) * 4 + d % 4], 0));
        values.push_back(number(vp[((d / 16 * 16 + p / 4) * 16 + d % 16) * 4 + p % 4], 1));
      }
  }

  // Against fp64, the largest.
  double error(const std::vector<float> &got) const {
    double worst = 0;
    for (int i = 0; i < n; ++i) {
      std::vector<double> p, o(at(hd));
      double top = -1e30, sum = 0;
      for (int j = begin[at(i)]; j < end[at(i)]; ++j) {
        double s = 0;
        for (int d = 0; d < hd; ++d)
          s += static_cast<double>(q[at(i * hd + d)]) * k[at(j * hd + d)];
        s *= scale();
        if (softcap > 0)
          s = softcap * std::tanh(s / softcap);
        p.push_back(s), top = std::max(top, s);
      }
      for (double &s : p)
        s = std::exp(s - top), sum += s;
      for (int d = 0; d < hd; ++d) {
        double want = 0;
        for (int j = begin[at(i)]; j < end[at(i)]; ++j)
          want += p[at(j - begin[at(i)])] / sum * v[at(j * hd + d)];
        worst = std::max(worst, std::fabs(want - got[at(i * hd + d)]));
      }
    }
    return worst;
  }
};

// A level's bits are scalar's, query by query, whatever else a task has and the pages hold.
void equal_to_scalar(const KernelTable *t, const Scene &s, const std::vector<int> &counts) {
  const KernelTable *ref = table_scalar();
  const std::vector<uint8_t> pages = s.pages(t, 0);
  CHECK(pages == s.pages(ref, 0), "%s store_kv hd=%d total=%d", t->name, s.hd, s.total);
  const std::vector<uint8_t> used = s.pages(t, 1);
  std::vector<float> want;
  for (int i = 0; i < s.n; ++i) {
    const std::vector<float> one = s.run(ref, pages, i, 1);
    want.insert(want.end(), one.begin(), one.end());
  }
  for (int count : counts)
    for (int first = 0; first + count <= s.n; first += std::max(1, s.n - count)) {
      const std::vector<float> got = s.run(t, first ? used : pages, first, count);
      const std::vector<float> part(want.begin() + first * s.hd,
                                    want.begin() + (first + count) * s.hd);
      CHECK(same(got, part), "%s kv=%d hd=%d total=%d window from %d: queries %d..%d differ",
            t->name, static_cast<int>(s.kv), s.hd, s.total, s.begin[0], first, first + count - 1);
    }
  const double allowed = s.kv == KVType::F32 ? 2e-5 : s.kv == KVType::F16 ? 5e-3 : 3e-2;
  CHECK(s.error(want) < allowed, "%s kv=%d hd=%d total=%d: off by %g", t->name,
        static_cast<int>(s.kv), s.hd, s.total, s.error(want));
  if (s.kv == KVType::I8) { // what it costs that sums are integers
    Scene held = s;
    s.unpack(pages, held.k, held.v);
    CHECK(held.error(want) < 3e-4, "%s hd=%d total=%d: off by %g from what the pages hold", t->name,
          s.hd, s.total, held.error(want));
  }
}

void sweep(const KernelTable *t) {
  const std::vector<int> few{1, 2, 3, 4, 7}, all{1, 2, 3, 4, 5, 6, 8, 9, 15, 16, 17, 20, 21, 32};
  for (KVType kv : {KVType::F16, KVType::F32})
    for (int hd : {8, 24, 40, 64, 128})
      for (int total : {1, 17, 255, 256, 300, 513})
        equal_to_scalar(t, {kv, hd, total, 7, total % 2 ? 200 : 0, hd == 24 ? 20.0f : 0.0f}, few);
  for (int hd : {1, 7, 16, 24, 33, 64, 80, 96, 128, 250, 256})
    for (int total : {1, 63, 64, 65, 300})
      equal_to_scalar(t, {KVType::I8, hd, total, 9, total == 300 ? 40 : 0, 0}, {1, 4, 5, 9});
  for (int hd : {64, 80, 101})
    for (int total : {31, 256, 257, 700})
      for (int window : {0, 1, 100, 500})
        equal_to_scalar(t, {KVType::I8, hd, total, 32, window, window == 100 ? 20.0f : 0.0f}, all);
}

// Keys or values that are not finite stay with those who see them; so do those of another task.
void others_are_not_read(const KernelTable *t) {
  Scene s(KVType::I8, 40, 70, 6, 0, 0);
  std::vector<uint8_t> pages = s.pages(t, 0);
  const std::vector<float> want = s.run(t, pages, 0, s.n);
  for (float bad : {INFINITY, NAN, 1e30f}) {
    const std::vector<float> x(40, bad);
    for (int i = s.total; i < 2 * kPageTokens; ++i)
      t->store_kv(x.data(), x.data(), 40, i % kPageTokens, s.kv, &pages[s.page_bytes()]);
    CHECK(same(s.run(t, pages, 0, s.n), want), "%s: what nobody sees (%g) counts", t->name,
          static_cast<double>(bad));
  }
}

// Small weights beside a large one in another page are as exact as the large one.
void small_weights_count(const KernelTable *t) {
  const int hd = 32, total = 128;
  Scene s(KVType::I8, hd, total, 1, 0, 0);
  std::fill(s.q.begin(), s.q.end(), 0.0f), std::fill(s.k.begin(), s.k.end(), 0.0f);
  s.q[0] = 1;
  s.k[0] = 14 / s.scale(); // e^14 times as much as the others, of a value that is nothing
  for (int d = 0; d < hd; ++d)
    s.v[at(d)] = 0;
  for (int i = kPageTokens; i < total; ++i)
    for (int d = 0; d < hd; ++d)
      s.v[at(i * hd + d)] = 1;
  const std::vector<float> got = s.run(t, s.pages(t, 0), 0, 1);
  double others = 0, in_page = 0;
  for (int d = 0; d < hd; ++d) {
    double want = 0;
    for (int i = 1; i < total; ++i)
      want += std::exp(-14.0) * s.v[at(i * hd + d)];
    want /= 1 + 127 * std::exp(-14.0);
    others = std::max(others, std::fabs(got[at(d)] - want)), in_page = std::max(in_page, want);
  }
  CHECK(others < 1e-2 * in_page, "%s: off by %g of %g", t->name, others, in_page);
}

#ifdef INSULA_HAVE_TILES_EMULATED
void tiles(const KernelTable *t) {
  auto counted = [&](const Scene &s, int count) {
    const std::vector<uint8_t> pages = s.pages(t, 0);
    const uint64_t before = t->tiles->load();
    s.run(t, pages, 0, count);
    return static_cast<int>(t->tiles->load() - before);
  };
  const Scene s(KVType::I8, 80, 300, 32, 0, 0), half(KVType::F16, 80, 300, 32, 0, 0);
  CHECK(counted(s, 4) == 0, "four queries went through tiles");
  CHECK(counted(half, 32) == 0, "float16 went through tiles");
  // 16 + 3 groups of 16 positions x 3 blocks, and 5 pages x 5 groups of 16 dimensions; 2 planes.
  const int one = 2 * (19 * 3 + 5 * 5);
  CHECK(counted(s, 5) == one, "%d products of 5 queries, not %d", counted(s, 5), one);
  CHECK(counted(s, 16) == one, "%d products of 16 queries", counted(s, 16));
  CHECK(counted(s, 20) == one, "%d products of 20 queries: the last four are few", counted(s, 20));
  // The queries behind see 2 of the last 3 groups.
  CHECK(counted(s, 32) == 2 * one - 6, "%d products of 32 queries", counted(s, 32));
}
#endif

} // namespace

int main(int argc, char **argv) {
  std::string error;
  if (argc > 1 && !select_level(argv[1], &error))
    return std::printf("%s\n", error.c_str()), 2;
  std::vector<const KernelTable *> tables;
  for (const Level &l : levels())
    if (l.available && (argc == 1 || !std::strcmp(l.name, argv[1])))
      tables.push_back(l.table);
#ifdef INSULA_HAVE_TILES_EMULATED
  if (argc == 1 && select_level("avx512", &error))
    tables.push_back(table_amx_emulated());
#endif
  for (const KernelTable *t : tables) {
    sweep(t);
    others_are_not_read(t);
    small_weights_count(t);
    std::printf("level %s: tested\n", t->name);
  }
#ifdef INSULA_HAVE_TILES_EMULATED
  for (const KernelTable *t : tables)
    if (!std::strcmp(t->name, "amx"))
      tiles(t);
#endif
  std::printf("%d passed, %d failed\n", checked - failures, failures);
  return failures != 0;
}
