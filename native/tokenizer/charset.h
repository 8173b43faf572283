// A set of code points as a two-stage bitmap: membership is two loads for any code point.
#pragma once
#include "unicode.h"
#include <array>

namespace insula::tok {

class CharSet {
public:
  CharSet(); // empty
  static CharSet of_categories(uint32_t mask);
  static CharSet of_property(uint8_t bit); // kWhitespace or kHan
  void add(uint32_t first, uint32_t last);
  void unite(const CharSet &other) { combine(other, false); }
  void intersect(const CharSet &other) { combine(other, true); }
  void complement();
  bool contains(uint32_t cp) const {
    return blocks_[index_[cp >> 8]][cp >> 6 & 3] >> (cp & 63) & 1;
  }

private:
  using Block = std::array<uint64_t, 4>;
  void combine(const CharSet &other, bool both);
  std::vector<uint16_t> index_; // 0x1100 blocks of 256 code points
  std::vector<Block> blocks_;
};

} // namespace insula::tok
