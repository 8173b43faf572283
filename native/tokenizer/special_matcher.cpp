#include "special_matcher.h"
#include "error.h"
#include <algorithm>

namespace insula::tok {

namespace {
// A token is compared once per place it might begin: this bounds the work per byte of text.
constexpr size_t kLongestSpecial = 1024;
} // namespace

SpecialMatcher::SpecialMatcher(const Vocabulary &vocabulary, int bits, int without)
    : vocabulary_(vocabulary) {
  for (int32_t id = 0; id < int32_t(vocabulary.size()); ++id)
    if (vocabulary.has(id, bits) && !vocabulary.has(id, without)) {
      if (vocabulary.text(id).size() > kLongestSpecial)
        throw Fault("special token " + std::to_string(id) + " has " +
                    std::to_string(vocabulary.text(id).size()) + " bytes; at most " +
                    std::to_string(kLongestSpecial) + " are accepted");
      ids_.push_back(id);
    }
  std::sort(ids_.begin(), ids_.end(),
            [&](int32_t a, int32_t b) { return vocabulary.text(a) < vocabulary.text(b); });
  for (const int32_t id : ids_)
    ++starts_[size_t(uint8_t(vocabulary.text(id)[0])) + 1];
  for (size_t i = 1; i < starts_.size(); ++i)
    starts_[i] += starts_[i - 1];
}

SpecialMatcher::Match SpecialMatcher::next(std::string_view text, size_t from) const {
  if (ids_.empty())
    return {-1, text.size(), text.size()};
  for (size_t at = from; at < text.size(); ++at) {
    const auto lead = uint8_t(text[at]);
    auto low = ids_.begin() + starts_[lead], high = ids_.begin() + starts_[size_t(lead) + 1];
    if (low == high)
      continue;
    // Narrow to the texts that agree with text[at, at + depth); among those, the one that ends
    // at `depth` sorts first.
    Match best{-1, at, at};
    for (size_t depth = 1; low != high; ++depth) {
      if (vocabulary_.text(*low).size() == depth) {
        best = {*low, at, at + depth};
        if (++low == high)
          break;
      }
      if (at + depth == text.size())
        break;
      const auto c = uint8_t(text[at + depth]);
      const auto less = [&](int32_t id, uint8_t byte) {
        return uint8_t(vocabulary_.text(id)[depth]) < byte;
      };
      const auto more = [&](uint8_t byte, int32_t id) {
        return byte < uint8_t(vocabulary_.text(id)[depth]);
      };
      low = std::lower_bound(low, high, c, less);
      high = std::upper_bound(low, high, c, more);
    }
    if (best.id >= 0)
      return best;
  }
  return {-1, text.size(), text.size()};
}

} // namespace insula::tok
