#include "charset.h"
#include <algorithm>
#include <map>

namespace insula::tok {

namespace {
constexpr size_t kBlocks = 0x1100;

// Evaluates `wanted` once per distinct block of the property table and shares the result.
template <class Wanted> void fill(std::vector<uint16_t> &index, auto &blocks, Wanted wanted) {
  size_t distinct = 0;
  for (size_t i = 0; i < kBlocks; ++i)
    distinct = std::max(distinct, size_t(tables::block_index[i]) + 1);
  blocks.assign(distinct, {});
  for (size_t i = 0; i < distinct * 256; ++i)
    if (wanted(tables::block_pool[i]))
      blocks[i / 256][i / 64 % 4] |= uint64_t(1) << (i & 63);
  index.assign(tables::block_index, tables::block_index + kBlocks);
}
} // namespace

CharSet::CharSet() : index_(kBlocks, 0), blocks_(1, Block{}) {}

CharSet CharSet::of_categories(uint32_t mask) {
  CharSet set;
  fill(set.index_, set.blocks_, [&](uint8_t p) { return mask >> (p & kCategoryMask) & 1; });
  return set;
}

CharSet CharSet::of_property(uint8_t bit) {
  CharSet set;
  fill(set.index_, set.blocks_, [&](uint8_t p) { return (p & bit) != 0; });
  return set;
}

void CharSet::add(uint32_t first, uint32_t last) {
  for (uint32_t block = first >> 8; block <= last >> 8; ++block) {
    Block bits = blocks_[index_[block]];
    const uint32_t low = std::max(first, block << 8), high = std::min(last, (block << 8) + 255);
    for (uint32_t cp = low; cp <= high; ++cp)
      bits[cp >> 6 & 3] |= uint64_t(1) << (cp & 63);
    const auto same = std::find(blocks_.begin(), blocks_.end(), bits);
    index_[block] = uint16_t(same - blocks_.begin());
    if (same == blocks_.end())
      blocks_.push_back(bits);
  }
}

void CharSet::complement() {
  for (auto &block : blocks_)
    for (auto &word : block)
      word = ~word;
}

void CharSet::combine(const CharSet &other, bool both) {
  std::map<std::pair<uint16_t, uint16_t>, uint16_t> made;
  std::vector<Block> blocks;
  for (size_t i = 0; i < kBlocks; ++i) {
    const std::pair key{index_[i], other.index_[i]};
    const auto [at, fresh] = made.try_emplace(key, uint16_t(blocks.size()));
    if (fresh) {
      Block bits;
      for (size_t w = 0; w < 4; ++w) {
        const uint64_t a = blocks_[key.first][w], b = other.blocks_[key.second][w];
        bits[w] = both ? a & b : a | b;
      }
      blocks.push_back(bits);
    }
    index_[i] = at->second;
  }
  blocks_.swap(blocks);
}

} // namespace insula::tok
