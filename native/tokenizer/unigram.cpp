#include "unigram.h"
#include "error.h"
#include "unicode.h"
#include <algorithm>
#include <cstring>
#include <limits>

namespace insula::tok {

namespace {
// Every place of the text is compared with all pieces that might begin there.
constexpr size_t kLongestPiece = 1024;
} // namespace

UnigramModel::UnigramModel(const Vocabulary &vocabulary, const Options &options)
    : vocabulary_(vocabulary), unknown_(options.unknown),
      add_space_prefix_(options.add_space_prefix),
      remove_extra_whitespace_(options.remove_extra_whitespace) {
  if (const std::string_view map = options.charsmap; !map.empty()) {
    uint32_t bytes = 0;
    if (map.size() >= 4)
      std::memcpy(&bytes, map.data(), 4);
    if (map.size() < 4 || bytes % 4 || bytes > map.size() - 4)
      throw Fault("tokenizer.ggml.precompiled_charsmap: its table of " + std::to_string(bytes) +
                  " bytes does not fit into " + std::to_string(map.size()) + " bytes");
    map_.resize(bytes / 4);
    if (bytes)
      std::memcpy(map_.data(), map.data() + 4, bytes);
    replacements_ = map.substr(4 + bytes);
    if (!replacements_.empty() && replacements_.back() != '\0')
      throw Fault("tokenizer.ggml.precompiled_charsmap: its last text does not end");
    if (find_invalid(replacements_) != std::string_view::npos)
      throw Fault("tokenizer.ggml.precompiled_charsmap: its texts are not valid UTF-8");
  }
  double lowest = 0;
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < int32_t(vocabulary.size()); ++id) {
    if (vocabulary.has(id, Normal))
      lowest = std::min(lowest, double(vocabulary.score(id)));
    if (!vocabulary.has(id, Normal | UserDefined | Unused))
      continue;
    if (vocabulary.text(id).size() > kLongestPiece)
      throw Fault("token " + std::to_string(id) + " has " +
                  std::to_string(vocabulary.text(id).size()) +
                  " bytes; a unigram vocabulary has at"
                  " most " +
                  std::to_string(kLongestPiece));
    ids.push_back(id);
  }
  unknown_score_ = lowest - 10.0; // kUnkPenalty
  std::sort(ids.begin(), ids.end(),
            [&](int32_t a, int32_t b) { return vocabulary.text(a) < vocabulary.text(b); });
  build(ids);
}

void UnigramModel::build(const std::vector<int32_t> &sorted) {
  // Breadth first over ranges of the sorted texts that share a prefix.
  struct Range {
    uint32_t node;
    size_t low, high, depth;
  };
  nodes_.emplace_back();
  std::vector<Range> ranges{{0, 0, sorted.size(), 0}};
  for (size_t r = 0; r < ranges.size(); ++r) {
    Range range = ranges[r];
    if (range.low < range.high && vocabulary_.text(sorted[range.low]).size() == range.depth)
      nodes_[range.node].id = sorted[range.low++];
    nodes_[range.node].first_edge = uint32_t(edges_.size());
    while (range.low < range.high) {
      const auto byte = uint8_t(vocabulary_.text(sorted[range.low])[range.depth]);
      size_t stop = range.low;
      while (stop < range.high && uint8_t(vocabulary_.text(sorted[stop])[range.depth]) == byte)
        ++stop;
      edges_.emplace_back(byte, uint32_t(nodes_.size()));
      ranges.push_back({uint32_t(nodes_.size()), range.low, stop, range.depth + 1});
      nodes_.emplace_back();
      ++nodes_[range.node].edges;
      range.low = stop;
    }
  }
}

uint32_t UnigramModel::child(uint32_t node, uint8_t byte) const {
  const auto first = edges_.begin() + nodes_[node].first_edge, last = first + nodes_[node].edges;
  const auto at = std::lower_bound(first, last, byte,
                                   [](const auto &edge, uint8_t b) { return edge.first < b; });
  return at != last && at->first == byte ? at->second : 0;
}

// The charsmap is a Darts-clone double array: a unit holds the offset to its children (bits 10-30,
// times 256 if bit 9), whether a value hangs below it (bit 8), and its label (bits 0-7, bit 31).
std::pair<std::string_view, size_t> UnigramModel::replacement(std::string_view text,
                                                              size_t at) const {
  const size_t length = utf8_length(uint8_t(text[at]));
  const std::string_view unchanged = text.substr(at, length);
  if (map_.empty())
    return {unchanged, length};
  const auto unit = [this](size_t i) {
    if (i >= map_.size())
      throw Fault("tokenizer.ggml.precompiled_charsmap points outside itself");
    return map_[i];
  };
  const auto offset = [](uint32_t u) { return size_t(u >> 10) << ((u & (1u << 9)) >> 6); };
  size_t node = offset(unit(0)), taken = 0, value = 0;
  for (size_t i = at; i < text.size() && text[i]; ++i) {
    const auto byte = uint8_t(text[i]);
    node ^= byte;
    const uint32_t u = unit(node);
    if ((u & 0x800000FF) != byte)
      break;
    node ^= offset(u);
    if (u >> 8 & 1)
      value = unit(node) & 0x7FFFFFFF, taken = i - at + 1;
  }
  if (!taken)
    return {unchanged, length};
  if (value >= replacements_.size())
    throw Fault("tokenizer.ggml.precompiled_charsmap points outside its texts");
  return {replacements_.c_str() + value, taken};
}

std::string UnigramModel::normalize(std::string_view text) const {
  std::string out;
  out.reserve(text.size() + text.size() / 2 + 3);
  bool begun = false, spaces = false; // spaces: seen since the last other character
  for (size_t at = 0; at < text.size();) {
    const auto [changed, taken] = replacement(text, at);
    at += taken;
    for (const char c : changed) {
      if (c == ' ' && remove_extra_whitespace_) {
        spaces = true;
        continue;
      }
      if (begun ? spaces : add_space_prefix_)
        out += kSpaceMark;
      begun = true;
      spaces = false;
      if (c == ' ')
        out += kSpaceMark;
      else
        out += c;
    }
  }
  return out;
}

void UnigramModel::encode(std::string_view text, bool, std::vector<int32_t> &out) const {
  const std::string all = normalize(text);
  if (all.empty())
    return;
  struct Best {
    double score = -std::numeric_limits<double>::infinity();
    uint32_t from = 0;
    int32_t id = -1;
  };
  std::vector<Best> best(all.size() + 1);
  best[0].score = 0;
  for (size_t at = 0; at < all.size();) {
    const size_t length = utf8_length(uint8_t(all[at]));
    const double base = best[at].score;
    bool whole_character = false;
    uint32_t node = 0;
    for (size_t stop = at; stop < all.size();) {
      node = child(node, uint8_t(all[stop++]));
      if (!node)
        break;
      const int32_t id = nodes_[node].id;
      if (id < 0)
        continue;
      if (stop - at == length)
        whole_character = true;
      const double score =
          base + (vocabulary_.has(id, UserDefined) ? 0.0 : double(vocabulary_.score(id)));
      if (score > best[stop].score)
        best[stop] = {score, uint32_t(at), id};
    }
    if (!whole_character) {
      const double score = base + unknown_score_;
      if (score > best[at + length].score)
        best[at + length] = {score, uint32_t(at), unknown_};
    }
    at += length;
  }
  const size_t start = out.size();
  for (size_t at = all.size(); at > 0; at = best[at].from) {
    const int32_t id = best[at].id;
    if (id < 0)
      refuse_character(all, best[at].from);
    if (id == unknown_ && out.size() > start && out.back() == unknown_)
      continue; // runs are one
    out.push_back(id);
  }
  std::reverse(out.begin() + int64_t(start), out.end());
}

void UnigramModel::piece(std::string_view token, std::string &out) const {
  append_unmarked(token, out);
}

} // namespace insula::tok
