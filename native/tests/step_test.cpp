// A small model through the whole boundary: threads, slices and batches do not change a bit,
// and wrong programs and batches are refused. Also what the thread sanitizer runs.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <algorithm>
#include <vector>

#include "insula.h"
#include "insula_isa.h"
#include "../kernels/table.h"
#include "../runtime/page_io.h"
#include "../runtime/threads.h"

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

namespace {

constexpr int kDim = 64, kFfn = 96, kHeads = 4, kKv = 2, kHead = 16, kVocab = 50, kLayers = 2;
constexpr int kExperts = 5, kUsed = 2, kExpertFfn = 32;
enum Buf { X, Hh, Q, Kk, Vv, A, G, U, S, D, kBuffers };
enum class Shape { Plain, PostNorm, Experts };

std::vector<uint8_t> q8(std::mt19937 &rng, int rows, int cols) {
  std::vector<uint8_t> out(static_cast<size_t>(rows * cols / 32 * 34));
  for (auto &b : out)
    b = static_cast<uint8_t>(rng());
  for (size_t i = 0; i < out.size(); i += 34) {
    const uint16_t d = float_to_half(0.0015f);
    std::memcpy(&out[i], &d, 2);
  }
  return out;
}

void build(Model &m, Shape shape) {
  std::mt19937 rng(5);
  auto weight = [&](int rows, int cols) {
    auto b = q8(rng, rows, cols);
    return m.add_weight(8, rows, cols, b.data(), b.size(), false);
  };
  const std::vector<float> ones(kDim, 1.0f), head_ones(kHead, 1.0f);
  const int norm = m.add_vector(ones.data(), ones.size());
  const float sinks_values[kHeads] = {0.5f, -1.0f, 2.0f, 0.0f};
  const int sinks = m.add_vector(sinks_values, kHeads);
  const int head_norm = m.add_vector(head_ones.data(), head_ones.size());
  std::vector<double> f;
  for (int i = 0; i < kHead / 2; ++i)
    f.push_back(1.0 / (1 + i));
  const int freqs = m.add_freqs(f.data(), f.size());
  std::vector<Op> ops;
  auto op = [&](OpKind k, int dst, int src, int w) {
    Op o;
    o.kind = k, o.dst = dst, o.src = src, o.weight = w, o.eps = 1e-5f;
    ops.push_back(o);
    return ops.size() - 1;
  };
  op(OpKind::Embed, X, -1, weight(kVocab, kDim));
  for (int l = 0; l < kLayers; ++l) {
    op(OpKind::Norm, Hh, X, norm);
    op(OpKind::Linear, Q, Hh, weight(kHeads * kHead, kDim));
    op(OpKind::Linear, Kk, Hh, weight(kKv * kHead, kDim));
    op(OpKind::Linear, Vv, Hh, weight(kKv * kHead, kDim));
    for (int b : {Q, Kk}) {
      Op &n = ops[op(OpKind::Norm, b, b, head_norm)];
      n.heads = b == Q ? kHeads : kKv;
      Op &r = ops[op(OpKind::Rope, b, -1, -1)];
      r.heads = b == Q ? kHeads : kKv, r.head_dim = kHead, r.freqs = freqs, r.neox = l == 0;
    }
    Op &a = ops[op(OpKind::Attention, A, Q, -1)];
    a.k = Kk, a.v = Vv, a.slot = l, a.heads = kHeads, a.kv_heads = kKv, a.head_dim = kHead;
    a.scale = 0.25f, a.window = l == 0 ? 100 : 0;
    a.bias = shape == Shape::Experts ? sinks : -1;
    op(OpKind::Linear, Hh, A, weight(kDim, kHeads * kHead));
    if (shape == Shape::PostNorm)
      op(OpKind::Norm, Hh, Hh, norm);
    op(OpKind::Add, X, Hh, -1);
    op(OpKind::Norm, Hh, X, norm);
    if (shape == Shape::Experts) {
      op(OpKind::Linear, S, Hh, weight(kExperts, kDim));
      Op &e = ops[op(OpKind::Experts, D, Hh, weight(kExperts * kExpertFfn, kDim))];
      e.up = weight(kExperts * kExpertFfn, kDim), e.down = weight(kExperts * kDim, kExpertFfn);
      e.k = S, e.experts = kExperts, e.used = kUsed, e.among_used = l == 0, e.act = l ? 4 : 0;
      op(OpKind::Add, X, D, -1);
      continue;
    }
    op(OpKind::Linear, G, Hh, weight(kFfn, kDim));
    op(OpKind::Linear, U, Hh, weight(kFfn, kDim));
    ops[op(OpKind::Glu, G, G, -1)].k = U;
    op(OpKind::Linear, Hh, G, weight(kDim, kFfn));
    op(OpKind::Add, X, Hh, -1);
  }
  op(OpKind::Norm, Hh, X, norm);
  op(OpKind::Logits, -1, Hh, weight(kVocab, kDim));
  std::vector<int> widths(kBuffers, kDim);
  widths[Q] = widths[A] = kHeads * kHead, widths[Kk] = widths[Vv] = kKv * kHead;
  widths[G] = widths[U] = kFfn, widths[S] = kExperts;
  m.set_program(ops, widths, {{kKv, kHead}, {kKv, kHead}});
  m.allocate(24, KVType::F16, 512);
}

// from: the tokens before it were run already; all sequences share their pages (whole ones).
std::vector<float> run(Model &m, const std::vector<int> &slices, int sequences, int from = 0) {
  const int T = 330;
  std::vector<std::vector<int32_t>> tables;
  std::vector<float> out(static_cast<size_t>(sequences * T * kVocab));
  for (int s = 0; s < sequences; ++s) {
    tables.emplace_back();
    for (int i = 0; i < 6; ++i)
      tables.back().push_back((i < from / kPageTokens ? 0 : s * 6) + (i * 5) % 6);
  }
  for (int at = from, step = 0; at < T; ++step) {
    const int n = std::min(slices[static_cast<size_t>(step) % slices.size()], T - at);
    std::vector<int32_t> tok, pos, row, want;
    for (int s = 0; s < sequences; ++s)
      for (int i = 0; i < n; ++i) {
        tok.push_back((at + i) * 7 % kVocab), pos.push_back(at + i), row.push_back(s);
        want.push_back(static_cast<int32_t>(want.size()));
      }
    Batch b;
    b.tokens = tok.data(), b.positions = pos.data(), b.rows = row.data();
    b.T = static_cast<int>(tok.size());
    for (auto &t : tables)
      b.tables.push_back(t.data()), b.table_sizes.push_back(6);
    b.logit_rows = want.data(), b.R = b.T;
    std::vector<float> y(want.size() * kVocab);
    m.step(b, y.data());
    for (int s = 0; s < sequences; ++s)
      std::memcpy(&out[static_cast<size_t>((s * T + at) * kVocab)],
                  &y[static_cast<size_t>(s * n * kVocab)], static_cast<size_t>(n * kVocab) * 4);
    at += n;
  }
  return out;
}

template <class Fn> bool refused(Fn f) {
  try {
    f();
  } catch (const std::invalid_argument &) {
    return true;
  }
  return false;
}

} // namespace

// Every item once, whoever takes it and however many threads and items there are.
int shares_are_whole() {
  int checked = 0;
  for (int threads : {1, 2, 3, 5})
    for (int items : {0, 1, 2, 7, 64, 1000})
      for (int size : {1, 3, 16}) {
        ThreadPool pool(threads);
        Shares shares(threads, items);
        std::vector<std::atomic<int>> taken(static_cast<size_t>(items));
        for (int again = 1; again <= 2; ++again) {
          shares.reset();
          pool.run([&](int thread) {
            if (thread == 1)
              return; // one that is late: the others do its share
            for (Shares::Run r; (r = shares.take(thread, size)).count > 0;)
              for (int i = r.first; i < r.first + r.count; ++i)
                taken[static_cast<size_t>(i)].fetch_add(1);
          });
          for (const auto &n : taken)
            CHECK(n == again, "%d threads, %d items by %d: taken %d times", threads, items, size,
                  n.load());
        }
        ++checked;
      }
  return checked;
}

// Pages that went out to a file come back into others, bit for bit; what ends too soon does not.
int pages_come_back() {
#ifdef _WIN32
  auto descriptor = [](std::FILE *f) { return _fileno(f); };
#else
  auto descriptor = [](std::FILE *f) { return fileno(f); };
#endif
  Model a("", 2), b("", 3);
  build(a, Shape::Plain), build(b, Shape::Plain);
  run(a, {330}, 1);
  const size_t bytes = a.page_bytes();
  constexpr int kPages = 6;
  constexpr size_t kHead = 100;
  std::vector<std::vector<uint8_t>> out(kPages, std::vector<uint8_t>(bytes));
  std::vector<uint64_t> sums, found;
  std::vector<std::FILE *> files;
  std::vector<int> to, descriptors;
  for (int i = 0; i < kPages; ++i) {
    std::vector<uint8_t> &page = out[static_cast<size_t>(i)];
    sums.push_back(a.save_page(i, kPageTokens, page.data()));
    std::FILE *f = files.emplace_back(std::tmpfile());
    std::fwrite(page.data(), 1, kHead, f);                      // a head
    std::fwrite(page.data(), 1, i == 4 ? bytes - 1 : bytes, f); // the fifth is cut short
    std::fflush(f);
    descriptors.push_back(i == 5 ? -1 : descriptor(f)), to.push_back(20 - i);
  }
  b.populate(24);
  const std::vector<bool> read = b.load_pages(to, descriptors, kHead, found);
  for (size_t i = 0; i < kPages; ++i) {
    CHECK(read[i] == (i < 4), "page %zu read: %d", i, static_cast<int>(read[i]));
    if (!read[i])
      continue;
    std::vector<uint8_t> again(bytes);
    CHECK(found[i] == sums[i], "page %zu has another checksum", i);
    CHECK(b.save_page(to[i], kPageTokens, again.data()) == sums[i] && again == out[i],
          "page %zu differs", i);
  }
  for (std::FILE *f : files)
    std::fclose(f);
  CHECK(refused([&] { a.save_page(24, kPageTokens, out[0].data()); }), "a page that is not there");
  CHECK(refused([&] { a.load_pages({0, 1}, {0}, 0, found); }), "two pages from one file");
  CHECK(refused([&] { a.load_pages({-1}, {0}, 0, found); }), "page -1");
  return kPages;
}

// One changed word always shows, wherever it is and however long the rest.
int checksums_differ() {
  std::mt19937 rng(3);
  int checked = 0;
  for (size_t n : {1, 7, 8, 63, 64, 65, 200, 1024}) {
    std::vector<uint8_t> data(n);
    for (auto &x : data)
      x = static_cast<uint8_t>(rng());
    const uint64_t sum = checksum(data.data(), n);
    for (size_t bit = 0; bit < 8 * n; ++bit, ++checked) {
      data[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
      CHECK(checksum(data.data(), n) != sum, "bit %zu of %zu bytes", bit, n);
      data[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    }
    data.push_back(0);
    CHECK(checksum(data.data(), n + 1) != sum, "a zero after %zu bytes", n);
  }
  return checked;
}

#ifdef INSULA_HAVE_TILES_EMULATED
namespace insula {
const KernelTable *table_amx_emulated();
}
#endif

int main() {
  int checked = shares_are_whole() + pages_come_back() + checksums_differ();
#ifdef INSULA_HAVE_TILES_EMULATED
  std::string error;
  add_level({"amx-emulated", select_level("avx512", &error) != nullptr, table_amx_emulated(), ""});
#endif
  for (Shape shape : {Shape::Plain, Shape::PostNorm, Shape::Experts}) {
    Model one("scalar", 1);
    build(one, shape);
    const std::vector<float> want = run(one, {330}, 1);
    for (const Level &l : levels()) {
      if (!l.available)
        continue;
      const uint64_t before = l.table->calls->load();
      for (int threads : {1, 3}) {
        Model m(l.name, threads);
        CHECK(!std::strcmp(m.isa(), l.table->name), "%s instead of %s", m.isa(), l.name);
        build(m, shape);
        for (const std::vector<int> &slices : {std::vector<int>{330}, {100, 1, 33}, {2, 1, 1, 64}})
          for (int sequences : {1, 3}) {
            if (slices[0] * sequences > 512)
              continue;
            const std::vector<float> got = run(m, slices, sequences);
            for (int s = 0; s < sequences; ++s, ++checked)
              CHECK(!std::memcmp(&got[static_cast<size_t>(s) * want.size()], want.data(),
                                 want.size() * 4),
                    "%s, %d threads, slices from %d, sequence %d of %d differs", l.name, threads,
                    slices[0], s, sequences);
          }
        for (int slice : {1, 5}) { // the first chunk's pages are shared, and read together
          const std::vector<float> got = run(m, {slice}, 4, kAttnChunk);
          const size_t skip = size_t{kAttnChunk} * kVocab;
          for (size_t s = 0; s < 4; ++s, ++checked)
            CHECK(!std::memcmp(&got[s * want.size() + skip], &want[skip], (want.size() - skip) * 4),
                  "%s, %d threads, slices of %d, sequence %zu with a shared prefix differs", l.name,
                  threads, slice, s);
        }
      }
      CHECK(l.table->calls->load() > before, "%s did not run", l.name);
    }
  }
  Model m("", 1);
  const std::vector<uint8_t> few(33);
  CHECK(refused([&] { m.add_weight(8, 1, 32, few.data(), few.size(), false); }), "short tensor");
  CHECK(refused([&] { m.add_weight(8, 1, 33, few.data(), few.size(), false); }), "ragged row");
  CHECK(refused([&] { m.add_weight(10, 1, 256, few.data(), few.size(), false); }), "Q2_K");
  CHECK(refused([&] { m.set_program({}, {}, {}); }), "no ops");
  Op o;
  o.kind = OpKind::Logits, o.src = 0, o.weight = 3;
  CHECK(refused([&] { m.set_program({o}, {64}, {}); }), "a weight that is not there");
  o = Op();
  o.kind = OpKind::Experts, o.src = 0, o.dst = 1, o.k = 2, o.experts = 3, o.used = 4;
  CHECK(refused([&] { m.set_program({o}, {64, 64, 3}, {}); }), "more experts used than there are");
  CHECK(refused([&] { Model("sse9", 1); }), "unknown level");
  CHECK(refused([&] { m.allocate(1, KVType::F16, 1); }), "pages without a program");
  std::printf("%d passed, %d failed\n", checked, failures);
  return failures != 0;
}
