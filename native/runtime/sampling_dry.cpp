#include "sampling_dry.h"

#include "sampling_math.h"

namespace insula {

void SequenceBreakers::add(std::vector<int32_t> ids) {
  const size_t head = static_cast<size_t>(ids.front());
  if (marks_.size() <= head)
    marks_.resize(head + 1, 0);
  marks_[head] |= ids.size() == 1 ? kAlone : kBegins;
  if (ids.size() > 1)
    longer_.push_back(std::move(ids));
}

size_t SequenceBreakers::tokens_after(const int32_t *window, size_t n) const {
  for (size_t start = n; start-- > 0;) {
    const uint8_t marked = mark(window[start]);
    if (!marked)
      continue;
    size_t length = marked & kAlone ? 1 : 0;
    if (marked & kBegins)
      for (const auto &ids : longer_)
        if (ids.size() > length && ids.size() <= n - start &&
            std::equal(ids.begin(), ids.end(), window + start))
          length = ids.size();
    if (length)
      return n - start - length;
  }
  return n;
}

double DrySettings::penalty(int32_t length) const {
  const auto excess = static_cast<uint64_t>(length - allowed_length);
  return std::min(multiplier * sampling::power(base, excess), double{sampling::kFloatMax});
}

void Repetitions::find(const DrySettings &settings, const int32_t *window, size_t n) {
  found_.clear();
  const auto limit = static_cast<int64_t>(settings.breakers.tokens_after(window, n));
  if (limit < settings.allowed_length)
    return;
  // The Z-algorithm (Gusfield, Algorithms on Strings, 1997, 1.4) on the window read backwards:
  // match_[k] is how many tokens before distance k equal the last ones. [left, right) is the match
  // that reaches furthest; inside it, an earlier answer is a bound that saves comparing again.
  const int32_t *last = window + (n - 1);
  match_.resize(n);
  size_t left = 0, right = 0;
  for (size_t k = 1; k < n; ++k) {
    size_t m = 0;
    if (k < right)
      m = std::min(static_cast<size_t>(match_[k - left]), right - k);
    if (k + m >= right) {
      while (k + m < n && last[-static_cast<ptrdiff_t>(m)] == last[-static_cast<ptrdiff_t>(k + m)])
        ++m;
      if (k + m > right) {
        left = k;
        right = k + m;
      }
    }
    match_[k] = static_cast<int32_t>(m);
    const int64_t length = std::min(static_cast<int64_t>(m), limit);
    if (length < settings.allowed_length)
      continue;
    const int32_t next = last[1 - static_cast<ptrdiff_t>(k)];
    if (settings.breakers.alone(next))
      continue;
    if (longest_.size() <= static_cast<size_t>(next))
      longest_.resize(static_cast<size_t>(next) + 1, 0);
    int32_t &known = longest_[static_cast<size_t>(next)];
    if (!known)
      found_.emplace_back(next, 0);
    known = std::max(known, static_cast<int32_t>(length) + 1);
  }
  for (auto &[id, length] : found_) {
    length = longest_[static_cast<size_t>(id)] - 1;
    longest_[static_cast<size_t>(id)] = 0;
  }
}

} // namespace insula
