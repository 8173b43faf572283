#include "unicode.h"
#include <algorithm>

namespace insula::tok {

namespace {

// Length of the well-formed sequence at p, 0 if there is none.
unsigned well_formed(const uint8_t *p, size_t left) {
  const auto tail = [&](size_t i, uint8_t low = 0x80, uint8_t high = 0xBF) {
    return i < left && p[i] >= low && p[i] <= high;
  };
  const uint8_t lead = p[0];
  if (lead < 0x80)
    return 1;
  if (lead < 0xC2)
    return 0;
  if (lead < 0xE0)
    return tail(1) ? 2 : 0;
  if (lead < 0xF0) {
    const uint8_t low = lead == 0xE0 ? 0xA0 : 0x80, high = lead == 0xED ? 0x9F : 0xBF;
    return tail(1, low, high) && tail(2) ? 3 : 0;
  }
  if (lead > 0xF4)
    return 0;
  const uint8_t low = lead == 0xF0 ? 0x90 : 0x80, high = lead == 0xF4 ? 0x8F : 0xBF;
  return tail(1, low, high) && tail(2) && tail(3) ? 4 : 0;
}

uint32_t combining_class(uint32_t cp) {
  size_t low = 0, high = tables::combining_count;
  while (low < high) {
    const size_t mid = (low + high) / 2;
    if (tables::combining[2 * mid] < cp)
      low = mid + 1;
    else
      high = mid;
  }
  const bool found = low < tables::combining_count && tables::combining[2 * low] == cp;
  return found ? tables::combining[2 * low + 1] : 0;
}

} // namespace

size_t find_invalid(std::string_view text) {
  const auto *p = reinterpret_cast<const uint8_t *>(text.data());
  for (size_t i = 0; i < text.size();) {
    const unsigned n = well_formed(p + i, text.size() - i);
    if (n == 0)
      return i;
    i += n;
  }
  return std::string_view::npos;
}

void append_utf8(std::string &out, uint32_t cp) {
  if (cp < 0x80) {
    out += char(cp);
  } else if (cp < 0x800) {
    out += char(0xC0 | cp >> 6);
    out += char(0x80 | (cp & 0x3F));
  } else if (cp < 0x10000) {
    out += char(0xE0 | cp >> 12);
    out += char(0x80 | (cp >> 6 & 0x3F));
    out += char(0x80 | (cp & 0x3F));
  } else {
    out += char(0xF0 | (cp >> 18 & 0x07));
    out += char(0x80 | (cp >> 12 & 0x3F));
    out += char(0x80 | (cp >> 6 & 0x3F));
    out += char(0x80 | (cp & 0x3F));
  }
}

uint32_t to_lower(uint32_t cp) {
  if (cp < 0x80)
    return cp - 'A' < 26u ? cp + 32 : cp;
  size_t low = 0, high = tables::lowercase_count;
  while (low < high) {
    const size_t mid = (low + high) / 2;
    if (tables::lowercase[2 * mid] < cp)
      low = mid + 1;
    else
      high = mid;
  }
  const bool found = low < tables::lowercase_count && tables::lowercase[2 * low] == cp;
  return found ? tables::lowercase[2 * low + 1] : cp;
}

void nfd(std::vector<uint32_t> &code_points) {
  std::vector<uint32_t> out;
  out.reserve(code_points.size());
  const uint32_t *keys = tables::decomposition_keys;
  for (const uint32_t cp : code_points) {
    if (cp < 0xC0) {
      out.push_back(cp);
    } else if (cp - 0xAC00 < 11172u) { // Hangul: The Unicode Standard, section 3.12
      const uint32_t s = cp - 0xAC00;
      out.push_back(0x1100 + s / 588);
      out.push_back(0x1161 + s % 588 / 28);
      if (s % 28)
        out.push_back(0x11A7 + s % 28);
    } else {
      const auto *key = std::lower_bound(keys, keys + tables::decomposition_count, cp);
      const size_t i = size_t(key - keys);
      if (i == tables::decomposition_count || *key != cp) {
        out.push_back(cp);
      } else {
        const uint32_t *pool = tables::decomposition_pool;
        out.insert(out.end(), pool + tables::decomposition_starts[i],
                   pool + tables::decomposition_starts[i + 1]);
      }
    }
  }
  // Canonical ordering: stable sort of each run of marks by combining class.
  std::vector<std::pair<uint32_t, uint32_t>> run;
  for (size_t i = 0; i < out.size();) {
    if (out[i] < 0x300) {
      ++i;
      continue;
    }
    run.clear();
    size_t j = i;
    for (; j < out.size(); ++j) {
      const uint32_t ccc = combining_class(out[j]);
      if (ccc == 0)
        break;
      run.emplace_back(ccc, out[j]);
    }
    std::stable_sort(run.begin(), run.end(),
                     [](const auto &a, const auto &b) { return a.first < b.first; });
    for (size_t k = 0; k < run.size(); ++k)
      out[i + k] = run[k].second;
    i = std::max(j, i + 1);
  }
  code_points.swap(out);
}

} // namespace insula::tok
