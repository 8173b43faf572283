// Merging adjacent symbols, best pair first, leftmost among equals: the loop that byte-pair
// encoding and SentencePiece's BPE share. Short words are scanned; long ones use a heap, so that
// a word of n symbols costs O(n log n). Both give the same result.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace insula::tok {

constexpr uint32_t kNoMerge = 0xFFFFFFFF;
struct Merge {
  uint32_t rank = kNoMerge; // lower is better; below 2^24 where there is one
  int32_t id = -1;
};

class Merger {
public:
  void clear() { ids.clear(), begins.clear(); }
  void add(int32_t id, size_t begin) { ids.push_back(id), begins.push_back(uint32_t(begin)); }

  // The symbols of one word, in and out: id (-1 where the text is no token) and first byte.
  std::vector<int32_t> ids;
  std::vector<uint32_t> begins;

  // pair(left id, right id, first byte, byte after the end) -> Merge. `end` is the word's end.
  template <class Pair> void run(size_t end, Pair pair) {
    if (ids.size() < 2)
      return;
    if (ids.size() <= kShort)
      scan(uint32_t(end), pair);
    else
      heap(uint32_t(end), pair);
  }

private:
  static constexpr size_t kShort = 32;

  template <class Pair> void scan(uint32_t end, Pair pair) {
    Merge merges[kShort];
    uint32_t at[kShort + 1];
    int32_t *id = ids.data();
    size_t n = ids.size();
    for (size_t i = 0; i < n; ++i)
      at[i] = begins[i];
    at[n] = end;
    for (size_t i = 0; i + 1 < n; ++i)
      merges[i] = pair(id[i], id[i + 1], at[i], at[i + 2]);
    while (n > 1) {
      size_t best = 0;
      for (size_t i = 1; i + 1 < n; ++i)
        if (merges[i].rank < merges[best].rank)
          best = i;
      if (merges[best].rank == kNoMerge)
        break;
      id[best] = merges[best].id;
      --n;
      for (size_t i = best + 1; i < n; ++i)
        id[i] = id[i + 1];
      for (size_t i = best + 1; i <= n; ++i)
        at[i] = at[i + 1];
      for (size_t i = best; i + 1 < n; ++i)
        merges[i] = merges[i + 1];
      if (best + 1 < n)
        merges[best] = pair(id[best], id[best + 1], at[best], at[best + 2]);
      if (best > 0)
        merges[best - 1] = pair(id[best - 1], id[best], at[best - 1], at[best + 1]);
    }
    ids.resize(n);
    begins.resize(n);
    for (size_t i = 0; i < n; ++i)
      begins[i] = at[i];
  }

  template <class Pair> void heap(uint32_t end, Pair pair) {
    constexpr uint32_t kNone = 0xFFFFFFFF;
    const auto n = uint32_t(ids.size());
    next_.resize(n);
    previous_.resize(n);
    merges_.assign(n, Merge{});
    keys_.clear();
    for (uint32_t i = 0; i < n; ++i) {
      next_[i] = i + 1 < n ? i + 1 : kNone;
      previous_[i] = i > 0 ? i - 1 : kNone;
    }
    const auto consider = [&](uint32_t i) {
      const uint32_t j = next_[i];
      if (j == kNone)
        return void(merges_[i] = Merge{});
      const uint32_t stop = next_[j] == kNone ? end : begins[next_[j]];
      merges_[i] = pair(ids[i], ids[j], begins[i], stop);
    };
    const auto key = [&](uint32_t i) { return uint64_t(merges_[i].rank) << 32 | i; };
    for (uint32_t i = 0; i + 1 < n; ++i) {
      consider(i);
      if (merges_[i].rank != kNoMerge)
        keys_.push_back(key(i));
    }
    for (size_t i = keys_.size() / 4 + 1; i-- > 0;)
      sink(i);
    while (!keys_.empty()) {
      const uint64_t top = keys_[0];
      const auto i = uint32_t(top);
      // An entry is out of date when its symbol is gone or has another partner by now.
      if (merges_[i].rank != top >> 32) {
        pop();
        continue;
      }
      const uint32_t j = next_[i];
      ids[i] = merges_[i].id;
      next_[i] = next_[j];
      if (next_[j] != kNone)
        previous_[next_[j]] = i;
      merges_[j] = Merge{};
      consider(i);
      if (merges_[i].rank != kNoMerge)
        keys_[0] = key(i), sink(0);
      else
        pop();
      if (const uint32_t h = previous_[i]; h != kNone) {
        consider(h);
        if (merges_[h].rank != kNoMerge)
          push(key(h));
      }
    }
    size_t kept = 0;
    for (uint32_t i = 0; i != kNone; i = next_[i], ++kept)
      ids[kept] = ids[i], begins[kept] = begins[i];
    ids.resize(kept);
    begins.resize(kept);
  }

  // A 4-ary heap of rank and position: its four children share a cache line.
  void sink(size_t i) {
    const size_t n = keys_.size();
    if (i >= n)
      return;
    const uint64_t value = keys_[i];
    for (size_t child; (child = 4 * i + 1) < n;) {
      size_t least = child;
      for (size_t k = child + 1; k < child + 4 && k < n; ++k)
        if (keys_[k] < keys_[least])
          least = k;
      if (keys_[least] >= value)
        break;
      keys_[i] = keys_[least];
      i = least;
    }
    keys_[i] = value;
  }
  void push(uint64_t value) {
    keys_.push_back(value);
    size_t i = keys_.size() - 1;
    for (; i > 0 && keys_[(i - 1) / 4] > value; i = (i - 1) / 4)
      keys_[i] = keys_[(i - 1) / 4];
    keys_[i] = value;
  }
  void pop() {
    keys_[0] = keys_.back();
    keys_.pop_back();
    sink(0);
  }

  std::vector<uint32_t> next_, previous_;
  std::vector<Merge> merges_;
  std::vector<uint64_t> keys_;
};

} // namespace insula::tok
