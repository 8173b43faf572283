#include "regex.h"
#include <bit>

namespace insula::tok {

size_t Regex::match(const char *text, size_t from, size_t end, uint32_t pc, Scratch &stack) const {
  constexpr size_t kFail = std::string_view::npos;
  size_t at = from;
  size_t registers[4] = {};
  stack.clear();
  for (;;) {
    const Instruction &i = code_[pc];
    bool ok = true;
    switch (i.op) {
    case Op::Match:
      return at;
    case Op::One: {
      unsigned length = 0;
      ok = at < end && sets_[i.set].contains(decode_valid(text + at, length));
      at += ok ? length : 0;
      ++pc;
      break;
    }
    case Op::Span:
    case Op::SpanPossessive: {
      const CharSet &set = sets_[i.set];
      uint32_t count = 0;
      size_t least = at;
      while (count < i.y && at < end) {
        unsigned length = 0;
        if (!set.contains(decode_valid(text + at, length)))
          break;
        at += length;
        if (++count == i.x)
          least = at;
      }
      ok = count >= i.x;
      ++pc;
      if (ok && at > least && i.op == Op::Span)
        stack.push_back({pc, true, at, least});
      break;
    }
    case Op::Split:
      stack.push_back({i.y, false, at, 0});
      pc = i.x;
      break;
    case Op::Jump:
      pc = i.x;
      break;
    case Op::Ahead:
    case Op::NotAhead: {
      unsigned length = 0;
      const bool in = at < end && sets_[i.set].contains(decode_valid(text + at, length));
      ok = in == (i.op == Op::Ahead);
      ++pc;
      break;
    }
    case Op::Mark:
      registers[i.set] = stack.size();
      ++pc;
      break;
    case Op::Cut:
      stack.resize(registers[i.set]);
      ++pc;
      break;
    }
    if (ok)
      continue;
    if (stack.empty())
      return kFail;
    Frame &frame = stack.back();
    pc = frame.pc;
    if (frame.run) {
      do
        --frame.position;
      while ((uint8_t(text[frame.position]) & 0xC0) == 0x80);
      at = frame.position;
      if (at == frame.least)
        stack.pop_back();
    } else {
      at = frame.position;
      stack.pop_back();
    }
  }
}

void Regex::split(const char *text, size_t begin, size_t end, std::vector<size_t> &ends,
                  Scratch &stack) const {
  size_t gap = begin;
  for (size_t at = begin; at < end;) {
    unsigned length = 0;
    const uint32_t cp = decode_valid(text + at, length);
    size_t stop = std::string_view::npos;
    if (cp < 128) {
      for (uint32_t bits = ascii_[cp]; bits && stop == std::string_view::npos; bits &= bits - 1)
        stop = match(text, at, end, alternatives_[size_t(std::countr_zero(bits))].start, stack);
    } else {
      for (size_t i = 0; i < alternatives_.size() && stop == std::string_view::npos; ++i)
        if (alternatives_[i].first.contains(cp))
          stop = match(text, at, end, alternatives_[i].start, stack);
    }
    if (stop == std::string_view::npos || stop == at) {
      at += length;
      continue;
    }
    if (gap < at)
      ends.push_back(at);
    ends.push_back(stop);
    at = gap = stop;
  }
  if (gap < end)
    ends.push_back(end);
}

} // namespace insula::tok
